import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from genimg.networks.resampling import Blur, Downsample, Upsample

TAPS = [(1, 3, 3, 1), (1, 2, 1), (1, 1), (1, 2, 3), (1, 2, 3, 4)]  # the last two show on which side a filter is turned


def reference(features, taps, *, up=1, down=1, before, behind, gain=1.0):
    """Zeros between the pixels, zeros around them, a full two-dimensional convolution, every ``down``-th pixel."""
    kernel = gain * np.outer(taps, taps) / np.sum(taps) ** 2
    planes = features.flatten(0, 1).numpy()
    spread = np.zeros((len(planes), planes.shape[1] * up, planes.shape[2] * up))
    spread[:, ::up, ::up] = planes
    padded = np.pad(spread, ((0, 0), (before, behind), (before, behind)))
    result = np.stack([convolve2d(plane, kernel, mode="valid") for plane in padded])[:, ::down, ::down]
    return torch.from_numpy(result).unflatten(0, features.shape[:2])


def features_like(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("taps", TAPS)
def test_upsampling_is_zeros_between_pixels_and_the_filter(taps):
    features, count = features_like(2, 3, 5, 4), len(taps)
    expected = reference(features, taps, up=2, before=(count + 1) // 2, behind=(count - 2) // 2, gain=4.0)
    actual = Upsample(taps).double()(features)
    assert actual.shape == (2, 3, 10, 8)
    assert torch.allclose(actual, expected, rtol=1e-7, atol=1e-7)  # the filter is made in float32


@pytest.mark.parametrize("taps", TAPS)
def test_downsampling_is_the_filter_at_every_second_pixel(taps):
    features, count = features_like(2, 3, 6, 8), len(taps)
    expected = reference(features, taps, down=2, before=(count - 1) // 2, behind=(count - 2) // 2)
    actual = Downsample(taps).double()(features)
    assert actual.shape == (2, 3, 3, 4)
    assert torch.allclose(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_blurring_is_the_filter_at_every_pixel(padding):
    features = features_like(2, 3, 6, 5)
    expected = reference(features, (1, 3, 3, 1), before=padding, behind=padding, gain=4.0)
    actual = Blur((1, 3, 3, 1), padding=padding, gain=4.0).double()(features)
    assert torch.allclose(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("taps", TAPS[:3])
@pytest.mark.parametrize("layer", [Upsample, Downsample, lambda taps: Blur(taps, padding=2, gain=1.0)])
def test_constants_stay_away_from_the_edges(layer, taps):
    result = layer(taps)(torch.full((1, 2, 12, 12), 3.0))
    assert torch.allclose(result[:, :, 2:-2, 2:-2], torch.tensor(3.0), rtol=1e-6)


@pytest.mark.parametrize("layer", [Upsample((1, 3, 3, 1)), Downsample((1, 3, 3, 1)), Blur((1, 3, 3, 1), padding=2, gain=1.0)])
def test_second_derivatives_are_those_of_finite_differences(layer):
    features = features_like(1, 2, 4, 4).requires_grad_()
    layer = layer.double()
    assert torch.autograd.gradcheck(layer, features)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), features)


@pytest.mark.parametrize("layer", [Upsample((1, 3, 3, 1)), Downsample((1, 3, 3, 1)), Blur((1, 3, 3, 1), padding=2, gain=1.0)])
def test_memory_format_and_precision_of_the_features_stay(layer):
    features = features_like(2, 8, 6, 6).float()
    expected = layer(features)
    assert layer(features.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(features.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, rtol=0.02, atol=0.02)  # bfloat16 has 8 bits


def test_the_filter_is_no_part_of_a_checkpoint():
    assert Upsample((1, 3, 3, 1)).state_dict() == {}
