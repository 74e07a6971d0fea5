"""The classical baselines against scikit-image called by hand, Pillow's neighbours and closed forms."""

import sys

import numpy as np
import pytest
import torch
from errors import raises

from genimg.errors import UserError
from genimg.evaluation.baselines import biharmonic, non_local_means
from genimg.evaluation.image_metrics import psnr


@pytest.fixture
def restoration():
    return pytest.importorskip("skimage.restoration", reason="the optional package scikit-image is not installed")


def waves(shape):
    """Smooth uint8 images."""
    num_images, channels, height, width = shape
    y, x = np.mgrid[:height, :width]
    phases = np.random.default_rng(0).uniform(0.0, 6.0, (num_images, channels, 1, 1))
    return torch.from_numpy((128.0 + 90.0 * np.sin(x / 5.0 + phases) * np.cos(y / 6.0 + phases)).round().astype(np.uint8))


def with_noise(images, sigma):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * sigma
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


SHAPES = [(3, 1, 24, 27), (2, 3, 20, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_non_local_means_is_scikit_images_of_each_image_and_removes_noise(restoration, shape):
    images = waves(shape)
    noisy = with_noise(images, 25.0)
    found = non_local_means(noisy, sigma=25.0)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    settings = {"patch_size": 5, "patch_distance": 6, "h": 0.8 * 25 / 255, "sigma": 25 / 255, "fast_mode": False}
    for row, image in zip(found.numpy(), noisy.numpy() / 255.0, strict=True):
        if len(image) == 1:
            expected = restoration.denoise_nl_means(image[0], **settings)[None]
        else:
            expected = np.moveaxis(restoration.denoise_nl_means(np.moveaxis(image, 0, -1), channel_axis=-1, **settings), -1, 0)
        assert np.abs(row - 255.0 * expected).max() < 0.5 + 0.01  # rounding
    assert psnr(images, found).min() > psnr(images, noisy).max() + 5.0


def test_non_local_means_hardly_changes_what_is_flat(restoration):
    grey = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    assert torch.equal(non_local_means(grey, sigma=10.0), grey)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_non_local_means_needs_noise(sigma):
    with raises(ValueError, f"sigma={sigma}"):
        non_local_means(waves((1, 1, 16, 16)), sigma=sigma)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_biharmonic_is_scikit_images_of_each_image_and_keeps_what_is_known(restoration, shape):
    images = waves(shape)
    mask = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    for i in range(shape[0]):
        mask[i, :, 5 + i : 12, 4 : 14 - i] = True
    mask[0, 0, 0, :6] = True  # at a border too
    found = biharmonic(images, mask)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    assert torch.equal(torch.where(mask, images, found), images)
    for row, image, hole in zip(found.numpy(), images.numpy(), mask[:, 0].numpy(), strict=True):
        values = restoration.inpaint_biharmonic(np.moveaxis(image, 0, -1) / 255.0, hole, channel_axis=-1)
        expected = np.moveaxis(values, -1, 0) * 255.0
        assert np.abs(row - expected).max() < 0.5 + 0.01  # rounding
    assert psnr(images, found).min() > psnr(images, images * ~mask).max() + 10.0


def test_biharmonic_does_not_look_into_the_hole_and_takes_one_float_mask_for_all(restoration):
    images, mask = waves((3, 3, 20, 20)), torch.zeros(1, 1, 20, 20)
    mask[:, :, 6:13, 7:15] = 1.0
    emptied = torch.where(mask.bool(), torch.tensor(255, dtype=torch.uint8), images)
    assert torch.equal(biharmonic(images, mask), biharmonic(emptied, mask.bool().expand(3, -1, -1, -1)))


def test_biharmonic_goes_on_with_a_slope(restoration):
    slope = (40 + 8 * torch.arange(20)).clamp(max=255).to(torch.uint8).expand(1, 1, 20, 20)
    mask = torch.zeros(1, 1, 20, 20)
    mask[:, :, 7:13, 7:13] = 1.0
    assert torch.equal(biharmonic(slope * (mask == 0), mask), slope)  # its Laplacian is 0


def test_biharmonic_leaves_images_without_a_hole(restoration):
    images, mask = waves((2, 1, 16, 16)), torch.zeros(2, 1, 16, 16)
    mask[1, :, 3:6, 3:6] = 1.0
    assert torch.equal(biharmonic(images, mask)[0], images[0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 3, 16, 16), "not [2, 3, 16, 16]"),
        (torch.zeros(2, 1, 16, 15), "not [2, 1, 16, 15]"),
        (torch.zeros(3, 1, 16, 16), "not [3, 1, 16, 16]"),
        (torch.zeros(16, 16), "not [16, 16]"),
        (torch.ones(1, 1, 16, 16), "covers"),
    ],
    ids=["channels", "size", "images", "axes", "everything"],
)
def test_biharmonic_refuses_other_masks(mask, message):
    with raises(ValueError, word=message):
        biharmonic(waves((2, 3, 16, 16)), mask)


def test_the_baselines_say_which_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    images, mask = waves((1, 1, 16, 16)), torch.zeros(1, 1, 16, 16)
    for baseline in (lambda: non_local_means(images, sigma=5.0), lambda: biharmonic(images, mask)):
        with raises(UserError, word="scikit-image"):
            baseline()
