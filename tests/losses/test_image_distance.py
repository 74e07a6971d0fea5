import numpy as np
import pytest
import torch
from efficientnet import is_installed
from errors import raises

from genimg.errors import DataError
from genimg.losses import efficientnet_lite
from genimg.losses.image_distance import EfficientNetLiteDistance, PixelDistance, shrunk
from genimg.losses.perceptual import EfficientNetLiteLoss


def by_hand(x, y):
    """Of two images [C, H, W], in float64."""
    scales = []
    difference = x - y
    while True:
        parts = (difference, np.diff(difference, axis=1), np.diff(difference, axis=2))
        scales.append(sum(np.mean(part**2) for part in parts))
        channels, height, width = difference.shape
        if min(height, width) < 16:
            return np.mean(scales)
        difference = difference.reshape(channels, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24), (1, 32, 32)])
def test_the_distance_of_pixels_by_hand(shape):
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 3, *shape))
    found = PixelDistance()(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(found.numpy(), [by_hand(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-12)
    assert PixelDistance()(torch.from_numpy(x), torch.from_numpy(x)).eq(0).all()


def test_large_images_are_averaged_by_a_whole_factor():
    image = torch.rand(1, 3, 300, 520)
    assert shrunk(image).shape == (1, 3, 100, 173)
    torch.testing.assert_close(shrunk(image)[0, 0, 0, 0], image[0, 0, :3, :3].mean())
    assert shrunk(image[:, :, :256, :256]).shape == (1, 3, 256, 256)


@pytest.mark.skipif(not is_installed(), reason="needs the package with the weights")
def test_features_are_compared_for_each_image_and_pixels_are_added():
    x, y = torch.rand(2, 2, 3, 64, 64).mul(2).sub(1)
    distance = EfficientNetLiteDistance(pixel_weight=1.0)
    found = distance(x, y)
    loss = EfficientNetLiteLoss(stages=[1, 2, 3, 5], weight=1.0)
    expected = torch.stack([loss(x[i : i + 1], y[i : i + 1]) for i in range(2)]) + PixelDistance()(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    alone = EfficientNetLiteDistance(pixel_weight=0.0)
    torch.testing.assert_close(alone(x, y), found - PixelDistance()(x, y), rtol=1e-4, atol=1e-5)
    assert (distance.name, alone.name) == ("efficientnet_lite0_pixels", "efficientnet_lite0")
    assert distance.describe()["weights_sha256"] == efficientnet_lite.SHA256


def test_weights_that_are_not_installed_are_a_users_error(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "packaged_weights", lambda: None)
    with raises(DataError, word="genimg[photos]"):
        EfficientNetLiteDistance(pixel_weight=1.0)
