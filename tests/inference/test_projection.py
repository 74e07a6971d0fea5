"""Projection into a generator's latents, on generators that can make the target exactly."""

import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from genimg.inference.projection import Projector, _ramp, noise_correlation
from genimg.losses.image_distance import PixelDistance
from genimg.methods.generator_latents import GeneratorLatents
from genimg.methods.latent import Normal, Truncated, Uniform


def projector(gan, space, *, steps=200, restarts=1, optimises_noise=False, row=None, seed=0):
    return Projector(GeneratorLatents(gan), PixelDistance(), space, steps, restarts, optimises_noise, seed, row or {})


def targets_of(gan, space, count=2, seed=3, **condition):
    latents = GeneratorLatents(gan)
    codes = latents.codes(latents.draw(range(count), seed) | condition, space)
    with torch.no_grad():
        return codes, latents.images(codes)


KEYS = torch.tensor([5, 7])


def nothing():
    pass


@pytest.mark.parametrize(("space", "share"), [("w", 0.01), ("w+", 0.1)])
def test_an_image_that_the_generator_can_make_is_found(space, share):
    gan = tiny.style_gan()
    _, targets = targets_of(gan, space)
    start = projector(gan, space, steps=1).project(targets, KEYS, nothing)[1]  # the mean: the first learning rate is 0
    found, distances = projector(gan, space, steps=60).project(targets, KEYS, nothing)
    assert (distances < share * start).all()
    assert found.values.shape == ((2, 5) if space == "w" else (2, 6, 5))
    latents = GeneratorLatents(gan)
    with torch.no_grad():
        torch.testing.assert_close(PixelDistance()(latents.images(found), targets), distances)
    mean = latents.style_samples(10_000, 0, {}).mean(dim=0)
    with torch.no_grad():
        image = gan.generator.synthesize(mean.expand(1, 6, -1))
    torch.testing.assert_close(start, PixelDistance()(image.expand_as(targets), targets))


@pytest.mark.parametrize("latent", [Normal(dim=5), Uniform(dim=5), Truncated(dim=5, limit=1.0)])
def test_latents_in_z_are_found_within_their_distribution(latent):
    gan = tiny.gan(latent=latent).eval()
    for parameter in gan.generator.parameters():
        if parameter.ndim == 4:  # its initial weights give nearly equal images
            nn.init.normal_(parameter, std=0.3)
    codes, targets = targets_of(gan, "z")
    found, _ = projector(gan, "z", steps=100, restarts=4).project(targets, KEYS, nothing)
    torch.testing.assert_close(found.values, codes.values, rtol=0, atol=0.05)
    if not isinstance(latent, Normal):
        assert found.values.abs().max() <= 1.0


def test_more_starts_are_never_worse():
    gan = tiny.gan().eval()
    target = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    by_starts = [projector(gan, "z", steps=20, restarts=count).project(target, KEYS, nothing)[1] for count in (1, 2, 5)]
    assert (by_starts[1] <= by_starts[0] + 1e-6).all()
    assert (by_starts[2] <= by_starts[1] + 1e-6).all()
    assert not torch.allclose(by_starts[2], by_starts[0], atol=1e-6)


@pytest.mark.parametrize(("kind", "space"), [("styles", "w"), ("plain", "z")])
def test_an_images_projection_depends_on_neither_its_batch_nor_earlier_random_numbers(kind, space):
    gan = tiny.style_gan() if kind == "styles" else tiny.gan().eval()
    targets = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = projector(gan, space, steps=15, optimises_noise=kind == "styles")
    together, _ = made.project(targets, KEYS, nothing)
    torch.rand(3)
    alone, _ = made.project(targets[1:], KEYS[1:], nothing)
    torch.testing.assert_close(together.values[1:], alone.values, rtol=1e-4, atol=1e-5)
    for both, one in zip(together.noise_maps, alone.noise_maps, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-4)
    other, _ = made.project(targets[1:], KEYS[1:] + 1, nothing)
    assert not torch.allclose(other.values, alone.values, atol=1e-3)


def test_weights_stay_as_they_are_and_trainable():
    gan = tiny.style_gan()
    before = {name: value.clone() for name, value in gan.generator.state_dict().items()}
    frozen = next(gan.generator.parameters()).requires_grad_(False)
    projector(gan, "w", steps=3, optimises_noise=True).project(torch.zeros(2, 1, 16, 16), KEYS, nothing)
    assert all(torch.equal(value, before[name]) for name, value in gan.generator.state_dict().items())
    assert [each.requires_grad for each in gan.generator.parameters()].count(False) == 1
    assert not frozen.requires_grad


def test_optimised_noise_is_standardised_and_used_again():
    gan = tiny.style_gan()
    latents, targets = GeneratorLatents(gan), torch.zeros(2, 1, 16, 16)
    found, distances = projector(gan, "w", steps=30, optimises_noise=True).project(targets, KEYS, nothing)
    assert [tuple(each.shape) for each in found.noise_maps] == [(2, 1, *size) for size in latents.noise_sizes]
    for each in found.noise_maps:
        torch.testing.assert_close(each.mean(dim=(1, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(each.square().mean(dim=(1, 2, 3)), torch.ones(2), rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(PixelDistance()(latents.images(found), targets), distances)


def test_the_condition_of_a_projection_is_the_given_one():
    gan = tiny.style_gan(num_classes=3)
    row = {"label": torch.tensor([2])}
    _, targets = targets_of(gan, "w", label=torch.tensor([2, 2]))
    found, distances = projector(gan, "w", steps=60, row=row).project(targets, KEYS, nothing)
    assert found.condition["label"].tolist() == [2, 2]
    assert (distances < 0.01).all()
    latents = GeneratorLatents(gan)
    expected = latents.codes(latents.draw(range(50), 0) | {"label": torch.full((50,), 2)}, "w").values
    assert torch.equal(latents.style_samples(50, 0, row), expected)


def correlation(noise):
    """Of one map [H, W], by loops."""
    total = 0.0
    while True:
        height, width = noise.shape
        for down, right in ((0, 1), (1, 0)):
            products = [noise[i, j] * noise[i - down, j - right] for i in range(height) for j in range(width)]
            total += np.mean(products) ** 2
        if max(height, width) <= 8:
            return total
        blocks = noise[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2)
        noise = blocks.mean(axis=(1, 3)) * 2


def test_the_correlation_of_noise_by_loops():
    numbers = np.random.default_rng(0)
    maps = [numbers.standard_normal((2, 1, *size)) for size in ((7, 7), (16, 32))]
    found = noise_correlation([torch.from_numpy(each) for each in maps])
    expected = [sum(correlation(each[i, 0]) for each in maps) for i in range(2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine():
    assert _ramp(0.0) == 0.0
    assert math.isclose(_ramp(0.025), 0.5)
    assert _ramp(0.05) == _ramp(0.5) == _ramp(0.75) == 1.0
    assert math.isclose(_ramp(0.875), 0.5)
    assert _ramp(1.0) == 0.0
