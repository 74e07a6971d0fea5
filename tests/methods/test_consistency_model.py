from __future__ import annotations

import math

import pytest
import torch
from errors import raises
from torch import Tensor, nn

from genimg.diffusion.noise import NOISE, TIME, normal
from genimg.diffusion.paths import StraightLine, VarianceExploding
from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.errors import ConfigError
from genimg.losses.few_steps import ConsistencyLoss
from genimg.methods.consistency import ConsistencyModel, ConsistencyOptions
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.schedules import ScheduledNumbers
from genimg.types import Batch
from genimg.utils.durations import NumImages
from genimg.utils.rng import mixed_keys


class Denoiser(nn.Module):
    """A small network with dropout, with every input of a real one."""

    def __init__(self, condition: ConditionEncoder, dropout: float) -> None:
        super().__init__()
        self.condition = condition
        self.vector = nn.Linear(condition.dim + 1, 3)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), self.dropout, nn.Conv2d(8, 3, 3, padding=1))
        self.masks: list[Tensor] = []
        self.dropout.register_forward_hook(lambda _, inputs, output: self.masks.append((output == 0) & (inputs[0] != 0)))

    def forward(self, noisy, time, condition, keep=None):
        shift = self.vector(torch.cat([self.condition(condition), time[:, None]], dim=1))
        return self.layers(noisy + shift[:, :, None, None])


def build(num_classes=0, dropout=0.0, **changes) -> ConsistencyModel:
    torch.manual_seed(0)
    settings = {
        "network": Denoiser(OneHot(num_classes=num_classes) if num_classes else Unconditional(), dropout),
        "path": VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0), "times": LogNormalSigma(mean=-1.1, std=2.0),
        "loss": ConsistencyLoss(offset=0.0), "sampling": ConsistencyOptions(), "sigma_data": 0.5, "ratio": 2.0,
        "stage": NumImages(1000), "image_size": 8, "channels": 3,
    }  # fmt: skip
    return ConsistencyModel(**(settings | changes))


def batch(count=6, num_classes=0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    made = {"image": torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, "noise_key": torch.arange(count) * 7919 + 13}
    return made | ({"label": torch.arange(count) % num_classes} if num_classes else {})


def at(method: ConsistencyModel, images: int) -> ConsistencyModel:
    ScheduledNumbers(method).advance(images, 6)
    return method


@pytest.mark.parametrize(("images", "stage"), [(0, 1), (999, 1), (1000, 2), (4500, 5)])
def test_the_smaller_time_approaches_the_larger_in_stages(images, stage):
    time = torch.tensor([0.01, 0.5, 1.0, 3.0, 20.0, 80.0])
    expected = [max(0.0, each * (1.0 - (1.0 + 8.0 / (1.0 + math.exp(each))) / 2.0**stage)) for each in time.double().tolist()]
    torch.testing.assert_close(at(build(), images).earlier(time), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_without_stages_the_mapping_stays():
    method, time = build(ratio=256.0, stage=None), torch.tensor([0.5, 5.0])
    assert torch.equal(at(method, 0).earlier(time), at(method, 10**7).earlier(time))
    assert (method.earlier(time) / time > 0.97).all()


def test_the_smaller_time_never_rounds_to_the_larger():
    times = torch.tensor([0.01, 1.0, 80.0])
    for method in (build(), build(ratio=256.0)):
        assert (at(method, 10**9).earlier(times) < times).all()


@pytest.mark.parametrize("images", [0, 3000])
def test_the_loss_is_the_distance_of_two_estimates_with_the_same_noise(images):
    method, whole, nothing = at(build(), images), batch(), torch.empty(6, 0)
    noise = normal(mixed_keys(whole["noise_key"], NOISE), (3, 8, 8))
    time = method.times.at(mixed_keys(whole["noise_key"], TIME), method.denoiser.path)
    earlier = method.earlier(time)

    def estimate(sigma: Tensor) -> Tensor:
        return method.denoiser.estimate(whole["image"] + sigma[:, None, None, None] * noise, sigma, nothing)

    with torch.no_grad():
        target = [estimate(earlier)[i] if earlier[i] > 0 else whole["image"][i] for i in range(6)]
        distance = (estimate(time) - torch.stack(target)).flatten(1).norm(dim=1)
    loss, metrics = method._loss(whole)
    assert loss.item() == pytest.approx((distance / (time - earlier)).mean().item(), rel=1e-4)
    assert metrics["loss/distance"].item() == pytest.approx(distance.mean().item(), rel=1e-4)
    assert (earlier == 0).any() == (images == 0)


def test_the_target_has_no_gradient():
    method, whole = build(), batch()
    noise, time = torch.randn(6, 3, 8, 8), torch.linspace(1.0, 9.0, 6)
    target = method._target(whole["image"], noise, time, at(method, 3000).earlier(time), torch.empty(6, 0))
    assert not target.requires_grad


def test_both_passes_have_the_same_dropout_mask_and_different_steps_do_not():
    method = build(dropout=0.5)
    at(method, 3000)._loss(batch())
    at(method, 3000)._loss(batch())
    target, estimate, next_target, next_estimate = method.denoiser.network.masks
    assert 0.4 < target.float().mean() < 0.6
    assert torch.equal(target, estimate)
    assert torch.equal(next_target, next_estimate)
    assert not torch.equal(estimate, next_estimate)


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    method, whole = build(num_classes=2), batch(num_classes=2)
    loss, _ = at(method, 2000)._loss(whole)
    each = [method._loss({key: value[i : i + 1] for key, value in whole.items()})[0].item() for i in range(6)]
    assert loss.item() == pytest.approx(sum(each) / 6, rel=1e-5)


def test_one_and_two_steps_estimate_the_image_from_noise():
    method = build()
    start, nothing = method.draw(range(4), 7), torch.empty(4, 0)
    noise = start["latent"].view(4, 3, 8, 8)
    with torch.no_grad():
        once = method.denoiser.estimate(80.0 * noise, torch.full((4,), 80.0), nothing)
        fresh = normal(mixed_keys(start["noise_key"], NOISE), (3, 8, 8))
        twice = method.denoiser.estimate(once + 0.821 * fresh, torch.full((4,), 0.821), nothing)
        other = method.denoiser.estimate(once + 2.0 * fresh, torch.full((4,), 2.0), nothing)
    torch.testing.assert_close(method.sample(start), once.clamp(-1, 1))
    torch.testing.assert_close(method.sample(start, ConsistencyOptions(steps=2)), twice.clamp(-1, 1))
    torch.testing.assert_close(method.sample(start, ConsistencyOptions(steps=2, middle=2)), other.clamp(-1, 1))


def test_an_image_is_a_function_of_seed_and_index_alone():
    method, options = build(num_classes=2), ConsistencyOptions(steps=2)
    whole = method.sample(method.draw(range(5), 3), options)
    for index in (0, 4):
        torch.testing.assert_close(method.sample(method.draw([index], 3), options)[0], whole[index], rtol=0, atol=1e-5)
    assert not torch.allclose(method.sample(method.draw(range(5), 4), options), whole)
    assert method.denoiser.training


def test_sigma_data_is_measured_if_requested():
    images = 0.3 * torch.randn(64, 3, 8, 8)
    for method in (build(sigma_data="auto"), build(sigma_data=0.7)):
        method.set_data_statistics(images)
    measured = build(sigma_data="auto")
    measured.set_data_statistics(images)
    assert measured.denoiser.sigma_data.item() == pytest.approx(images.std().item(), rel=1e-3)
    assert method.denoiser.sigma_data.item() == pytest.approx(0.7)


@pytest.mark.parametrize(("settings", "name"), [
    ({"steps": 3}, "steps=3"), ({"middle": 0.5}, "middle=0.5"), ({"steps": 2, "middle": 0.0}, "middle=0"),
])  # fmt: skip
def test_options_without_effect_or_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        ConsistencyOptions(**settings)
    with raises(ConfigError, "middle"):
        build().check_options(ConsistencyOptions(steps=2, middle=90.0))


@pytest.mark.parametrize(("changes", "key"), [
    ({"path": StraightLine(shift=1.0)}, "path"), ({"times": Uniform()}, "times"), ({"ratio": 1.0}, "ratio"),
    ({"stage": NumImages(0)}, "stage"), ({"sigma_data": "measured"}, "sigma_data"), ({"sigma_data": 0.0}, "sigma_data"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(changes, key):
    with raises((ConfigError, ValueError), key):
        build(**changes)


def test_a_network_for_another_method_is_refused():
    network = Denoiser(Unconditional(), 0.0)
    network.num_times = 2
    with raises(ConfigError, "network.num_times"):
        build(network=network)
