"""PSNR against its formula, SSIM against scipy's filters."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from genimg.evaluation.reconstruction import psnr, ssim


def noisy_pair(shape, deviation=20.0, seed=0):
    """Smooth uint8 images and the same with noise."""
    rng = np.random.default_rng(seed)
    num_images, channels, height, width = shape
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0.0, 6.0, (num_images, channels, 1, 1))
    original = 128.0 + 90.0 * np.sin(x / 3.0 + phases) * np.cos(y / 4.0 + phases)
    reconstruction = original + rng.normal(0.0, deviation, shape)
    return tuple(torch.from_numpy(np.clip(values.round(), 0, 255).astype(np.uint8)) for values in (original, reconstruction))


def ssim_of_scipy(original, reconstruction):
    """Wang et al. 2004, equations 13 to 16, over the windows that lie in the image; of one image [C, H, W]."""
    half = (min(11, *original.shape[1:]) - 1) // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / 1.5) ** 2)
    weights /= weights.sum()

    def blurred(values):
        rows = correlate1d(values, weights, axis=0, mode="constant")
        whole = correlate1d(rows, weights, axis=1, mode="constant")
        return whole[half : values.shape[0] - half, half : values.shape[1] - half]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    channels = []
    for x, y in zip(original.astype(np.float64), reconstruction.astype(np.float64), strict=True):
        mean_x, mean_y = blurred(x), blurred(y)
        variance_x, variance_y = blurred((x - x.mean()) ** 2) - (mean_x - x.mean()) ** 2, blurred(y**2) - mean_y**2
        covariance = blurred(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        channels.append((luminance * structure).mean())
    return np.mean(channels)


SHAPES = [(3, 1, 32, 32), (2, 3, 32, 32), (2, 3, 20, 45), (2, 1, 11, 11), (2, 1, 12, 12), (3, 3, 8, 8), (2, 1, 5, 30)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_psnr_is_that_of_its_formula(shape):
    original, reconstruction = noisy_pair(shape)
    found = psnr(original, reconstruction)
    assert found.shape == (shape[0],)
    for value, x, y in zip(found.tolist(), original.numpy(), reconstruction.numpy(), strict=True):
        error = ((x.astype(np.float64) - y.astype(np.float64)) ** 2).mean()
        assert value == pytest.approx(10.0 * math.log10(255**2 / error), rel=1e-6)


def test_psnr_of_black_against_white_is_zero():
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert psnr(black, black + 255).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_psnr_of_one_step_everywhere_is_that_of_the_peak():
    grey = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    assert psnr(grey, grey + 1).item() == pytest.approx(20.0 * math.log10(255.0), rel=1e-6)
    assert psnr(grey, grey - 1).item() == pytest.approx(20.0 * math.log10(255.0), rel=1e-6)  # not 255^2 by uint8's wrapping


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ssim_is_that_of_scipys_filters(shape):
    original, reconstruction = noisy_pair(shape)
    found = ssim(original, reconstruction)
    assert found.shape == (shape[0],)
    for value, x, y in zip(found.tolist(), original.numpy(), reconstruction.numpy(), strict=True):
        assert value == pytest.approx(ssim_of_scipy(x, y), abs=2e-5)  # float32: variances are differences of squares
        assert 0.1 < value < 0.95


def test_ssim_of_flat_images_is_that_of_their_brightness():
    dark, bright = torch.full((1, 1, 16, 16), 50, dtype=torch.uint8), torch.full((1, 1, 16, 16), 100, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, bright).item() == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1), rel=1e-4)


def test_ssim_of_a_negative_is_below_zero():
    original, _ = noisy_pair((1, 1, 32, 32))
    assert ssim(original, 255 - original).item() < -0.5


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 1)], ids=str)
def test_identical_images_have_100_decibels_and_a_similarity_of_one(shape):
    original, _ = noisy_pair(shape)
    assert psnr(original, original.clone()).tolist() == [100.0] * shape[0]
    assert ssim(original, original.clone()).tolist() == pytest.approx([1.0] * shape[0], abs=1e-6)


def test_each_image_is_judged_by_itself():
    original, reconstruction = noisy_pair((3, 3, 16, 16))
    reconstruction[1] = original[1]
    for measure, best in ((psnr, 100.0), (ssim, 1.0)):
        together = measure(original, reconstruction).tolist()
        alone = [measure(original[i : i + 1], reconstruction[i : i + 1]).item() for i in range(3)]
        assert together == pytest.approx(alone, rel=1e-5)
        assert together[1] == pytest.approx(best)
        assert max(together[0], together[2]) < 0.9 * best


def test_more_noise_is_worse_on_both_scales():
    for measure in (psnr, ssim):
        values = [measure(*noisy_pair((1, 3, 32, 32), deviation)).item() for deviation in (2.0, 10.0, 40.0)]
        assert values == sorted(values, reverse=True)
        assert values[0] > 1.2 * values[2]
