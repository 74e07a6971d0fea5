"""Conditional random fields as an output layer."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.networks.crf import ConditionalRandomField, WithCRF

SETTINGS = {
    "window": 7, "num_iterations": 5, "bilateral_weight": 0.5, "bilateral_width": 2.5, "guide_width": 0.2,
    "spatial_weight": 0.002, "spatial_width": 1.5,
}  # fmt: skip
NAMES = [name for name in SETTINGS if name not in ("window", "num_iterations")]


def field(**changes: Any) -> ConditionalRandomField:
    return ConditionalRandomField(**(SETTINGS | changes))


def images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def matrix(guide: Tensor, *, window: int, **numbers: float) -> Tensor:
    """k_ij of one guide [G, H, W] between all its pixels, in the order of their rows: [H * W, H * W]."""
    _, height, width = guide.shape
    pixels = list(product(range(height), range(width)))
    kernel = torch.zeros(len(pixels), len(pixels), dtype=torch.float64)
    for (i, one), (j, two) in product(enumerate(pixels), enumerate(pixels)):
        down, right = two[0] - one[0], two[1] - one[1]
        if i == j or max(abs(down), abs(right)) > window // 2:
            continue
        distance = down**2 + right**2
        difference = sum((float(channel[one]) - float(channel[two])) ** 2 for channel in guide)
        alike = math.exp(-distance / (2 * numbers["bilateral_width"] ** 2) - difference / (2 * numbers["guide_width"] ** 2))
        near = math.exp(-distance / (2 * numbers["spatial_width"] ** 2))
        kernel[i, j] = numbers["bilateral_weight"] * alike + numbers["spatial_weight"] * near
    return kernel


def reference(image: Tensor, kernel: Tensor, num_iterations: int) -> Tensor:
    """Pixel by pixel, for one image [C, H, W]."""
    result = torch.empty_like(image)
    for channel, plane in enumerate(image.flatten(1).tolist()):
        mean = plane
        for _ in range(num_iterations):
            mean = [
                (plane[i] + sum(k * x for k, x in zip(row, mean, strict=True))) / (1 + sum(row))
                for i, row in enumerate(kernel.tolist())
            ]
        result[channel] = torch.tensor(mean, dtype=image.dtype).view_as(image[channel])
    return result


@pytest.mark.parametrize(
    ("size", "window", "num_iterations"), [((6, 8), 3, 1), ((6, 8), 5, 3), ((5, 4), 7, 4), ((2, 9), 7, 2), ((1, 1), 3, 2)]
)
def test_updates_are_those_of_a_double_loop_over_pixels(size, window, num_iterations):
    """The last three windows are larger than the image."""
    numbers = {
        "bilateral_weight": 0.7, "bilateral_width": 1.6, "guide_width": 0.9, "spatial_weight": 0.3, "spatial_width": 1.1
    }  # fmt: skip
    image, guide = images(2, 3, *size), images(2, 2, *size, seed=2)
    actual = field(window=window, num_iterations=num_iterations, **numbers).double()(image, guide)
    for one, its_guide, result in zip(image, guide, actual, strict=True):
        expected = reference(one, matrix(its_guide, window=window, **numbers), num_iterations)
        assert torch.allclose(result, expected, rtol=0, atol=1e-6)  # the logarithms were made in float32


def test_updates_converge_to_the_minimum_of_the_energy():
    """Where the gradient of the quadratic energy is 0: (1 + sum_j k_ij) x_i - sum_j k_ij x_j = z_i."""
    image, guide = images(1, 2, 6, 7), images(1, 3, 6, 7, seed=2)
    numbers = {name: SETTINGS[name] for name in NAMES} | {"guide_width": 0.8}
    kernel = matrix(guide[0], window=5, **numbers)
    system = torch.diag(1 + kernel.sum(1)) - kernel
    expected = torch.linalg.solve(system, image[0].flatten(1).T).T.view_as(image[0])
    actual = field(window=5, num_iterations=200, **numbers).double()(image, guide)[0]
    assert torch.allclose(actual, expected, rtol=0, atol=1e-6)
    few = field(window=5, num_iterations=2, **numbers).double()(image, guide)[0]
    assert (few - expected).abs().max() > 0.01


def test_gradients_are_those_of_finite_differences():
    crf = field(window=3, num_iterations=2, guide_width=0.9, spatial_weight=0.3).double()
    names, parameters = zip(*crf.named_parameters(), strict=True)
    assert len(names) == 5

    def run(image: Tensor, guide: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(crf, dict(zip(names, values, strict=True)), (image, guide))

    image, guide = images(1, 2, 3, 4).requires_grad_(), images(1, 2, 3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(run, (image, guide, *parameters))


def test_constants_stay_and_no_value_leaves_the_range():
    guide = images(2, 3, 12, 10, dtype=torch.float32)
    constant = torch.tensor([0.3, -1.0]).view(1, 2, 1, 1).expand(2, 2, 12, 10)
    assert torch.allclose(field()(constant, guide), constant, rtol=0, atol=1e-6)
    image = images(2, 2, 12, 10, seed=2, dtype=torch.float32)
    result = field()(image, guide)
    assert image.amin() < result.amin() < result.amax() < image.amax()


def step_and_variance(result: Tensor) -> tuple[float, float]:
    """The mean rise between the two columns at the edge in the middle, and the variance far from it and from the borders."""
    middle = result.shape[-1] // 2
    inside = result[..., 16:-16, :]
    step = inside[..., middle].mean() - inside[..., middle - 1].mean()
    regions = torch.stack([inside[..., 16 : middle - 16], inside[..., middle + 16 : -16]])
    return step.item(), (regions - regions.mean((-2, -1), keepdim=True)).square().mean().item()


def test_noise_goes_and_an_edge_of_the_guide_stays():
    """A step of 1 under white noise of variance 0.04, and a guide of other values with the edge at the same place.

    The variance inside a region falls 90 times, by the sum of squares of the field's answer to a single bright pixel. A
    Gaussian blur with as large a sum, 1 / (4 pi sigma^2), and the same field with a guide that has no edge leave less than a
    fifth of the step between the two columns at the edge.
    """
    size, noise = 96, 0.2
    clean = torch.full((1, 1, size, size), -0.5)
    clean[..., size // 2 :] = 0.5
    guide = torch.cat([0.8 * clean, 0.3 - clean], 1)
    noisy = clean + noise * torch.randn((8, 1, size, size), generator=torch.Generator().manual_seed(0))
    crf = field().requires_grad_(False)

    pixel = torch.zeros(1, 1, 31, 31)  # 5 updates move it by 15 pixels
    pixel[..., 15, 15] = 1
    factor = crf(pixel, torch.zeros(1, 2, 31, 31)).square().sum().item()
    assert 1 / factor == pytest.approx(90, rel=0.02)

    before, variance = step_and_variance(noisy)
    assert variance == pytest.approx(noise**2, rel=0.05)
    guided, guided_variance = step_and_variance(crf(noisy, guide.expand(8, -1, -1, -1)))
    assert guided_variance / variance == pytest.approx(factor, rel=0.15)
    assert before == pytest.approx(1, abs=0.02)
    assert guided == pytest.approx(1, abs=0.02)

    sigma = 1 / math.sqrt(4 * math.pi * factor)
    taps = torch.exp(-(torch.arange(-12.0, 13) ** 2) / (2 * sigma**2))
    weight = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    blurred, blurred_variance = step_and_variance(nn.functional.conv2d(noisy, weight, padding=12))
    assert blurred_variance / variance == pytest.approx(factor, rel=0.15)
    assert blurred == pytest.approx(math.erf(0.5 / sigma / math.sqrt(2)), abs=0.02)
    assert blurred < 0.2
    unguided, unguided_variance = step_and_variance(crf(noisy, torch.zeros(8, 2, size, size)))
    assert unguided_variance / variance == pytest.approx(factor, rel=0.15)
    assert unguided < 0.2


def test_every_number_and_the_network_learn():
    torch.manual_seed(0)
    network = WithCRF(translator=nn.Conv2d(3, 2, 3, padding=1), crf=field(guide_width=0.8))
    source = images(2, 3, 9, 8, dtype=torch.float32)
    result = network(source)
    assert torch.equal(result, network.crf(network.translator(source), source))
    (result - images(2, 2, 9, 8, seed=2, dtype=torch.float32)).square().mean().backward()
    learnt = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-6}
    assert learnt == {f"crf.log_{name}" for name in NAMES} | {"translator.weight", "translator.bias"}


def test_bfloat16_is_computed_in_float32():
    image, guide = images(2, 3, 9, 8, dtype=torch.float32), images(2, 3, 9, 8, seed=2, dtype=torch.float32)
    torch.manual_seed(0)
    network = WithCRF(translator=nn.Conv2d(3, 3, 1), crf=field())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        translated, refined, under_autocast = network.translator(image), network(image), network.crf(image, guide)
    assert translated.dtype == torch.bfloat16
    assert refined.dtype == torch.float32
    assert torch.equal(refined, network.crf(translated.float(), image))
    assert torch.equal(under_autocast, network.crf(image, guide))
    rough = guide.bfloat16()
    assert torch.equal(network.crf(image, rough), network.crf(image, rough.float()))


def test_size_multiple_is_that_of_the_translator():
    translator = nn.Conv2d(3, 3, 1)
    assert WithCRF(translator=translator, crf=field()).size_divisor == 1
    translator.size_divisor = 4
    assert WithCRF(translator=translator, crf=field()).size_divisor == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 4}, "window=4"),
        ({"window": 1}, "window=1"),
        ({"num_iterations": 0}, "num_iterations=0"),
        *(({name: 0.0}, f"{name}=0.0") for name in NAMES),
        ({"guide_width": math.nan}, "guide_width=nan"),
        ({"spatial_width": math.inf}, "spatial_width=inf"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        field(**changes)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 8, 4), (2, 3, 4, 8)])
def test_guides_of_another_shape_are_refused(shape):
    with raises(ConfigError, word="height"):
        field()(torch.zeros(2, 3, 8, 8), torch.zeros(shape))
