from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from errors import raises
from torch import Tensor, nn

from genimg.diffusion.noise import NOISE, TIME, normal
from genimg.diffusion.time_pairs import LogitNormalPairs, TimePair
from genimg.errors import ConfigError
from genimg.losses.few_steps import AdaptiveLoss
from genimg.methods.mean_flow import MeanFlow, MeanFlowOptions
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.types import Batch
from genimg.utils.rng import mixed_keys

STD = 0.6  # of Gaussian data


class Velocity(nn.Module):
    """A small network of two times, with every input of a real one."""

    num_times = 2

    def __init__(self, condition: ConditionEncoder) -> None:
        super().__init__()
        self.condition = condition
        self.vector = nn.Linear(condition.dim + 2, 3)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
        self.seen: list[Tensor | None] = []

    def forward(self, noisy, time, condition, keep=None):
        self.seen.append(keep)
        vector = self.condition(condition).to(time.dtype)
        if keep is not None:
            vector = vector * keep.to(vector.dtype)[:, None]
        shift = self.vector(torch.cat([vector, time], dim=1))
        return self.layers(noisy * (1.0 + shift[:, :, None, None].sin()))


class GaussianVelocity(nn.Module):
    """The average velocity for images of independent N(0, STD^2) pixels: the flow maps z_t to z_t sigma_r / sigma_t."""

    num_times = 2

    def __init__(self) -> None:
        super().__init__()
        self.condition = Unconditional()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, noisy, time, condition, keep=None):
        later, distance = time[:, 0, None, None, None], time[:, 1, None, None, None]
        return noisy * (1.0 - deviation(later - distance) / deviation(later)) / distance


def deviation(time: Tensor) -> Tensor:
    """The standard deviation of (1 - t) x + t e."""
    return ((1.0 - time).square() * STD**2 + time.square()).sqrt()


def build(num_classes=0, **changes) -> MeanFlow:
    torch.manual_seed(0)
    settings = {
        "network": Velocity(OneHot(num_classes=num_classes) if num_classes else Unconditional()),
        "times": LogitNormalPairs(
            mean=-0.4, std=1.0, earlier_mean=-0.4, earlier_std=1.0, ordering="swap", share=0.5
        ),
        "loss": AdaptiveLoss(power=0.75, offset=1e-3), "sampling": MeanFlowOptions(), "condition_dropout": 0.0,
        "image_size": 8, "channels": 3,
    }  # fmt: skip
    return MeanFlow(**(settings | changes))


def batch(count=6, num_classes=0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    made = {"image": torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, "noise_key": torch.arange(count) * 7919 + 13}
    return made | ({"label": torch.arange(count) % num_classes} if num_classes else {})


def drawn(method: MeanFlow, whole: Batch) -> tuple[Tensor, Tensor, TimePair]:
    """The states, velocities and times of a batch, computed apart from the method."""
    noise = normal(mixed_keys(whole["noise_key"], NOISE), (3, 8, 8))
    pair = method.times.at(mixed_keys(whole["noise_key"], TIME))
    time = pair.later[:, None, None, None]
    return whole["image"] + time * (noise - whole["image"]), noise - whole["image"], pair


def test_the_target_agrees_with_finite_differences():
    method = build(num_classes=2).double()
    torch.manual_seed(3)
    state, velocity = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    later = torch.tensor([0.9, 0.5, 0.7, 0.3, 1.0], dtype=torch.float64)
    earlier = torch.tensor([0.1, 0.5, 0.6, 0.0, 0.0], dtype=torch.float64)  # the second pair is one time
    labels = torch.arange(5) % 2
    target = method._target(state, velocity, TimePair(later, earlier), labels, None)

    def average(step: float) -> Tensor:
        moved = later + step
        times = torch.stack([moved, moved - earlier], dim=1)
        return method.network(state + step * velocity, times, labels)

    with torch.no_grad():
        change = (average(1e-5) - average(-1e-5)) / 2e-5
    expected = velocity - (later - earlier)[:, None, None, None] * change
    torch.testing.assert_close(target, expected, rtol=1e-7, atol=1e-8)
    assert torch.equal(target[1], velocity[1])
    assert not target.requires_grad


def test_the_loss_is_the_error_of_the_average_velocity():
    method, whole = build(), batch()
    state, velocity, pair = drawn(method, whole)
    target = method._target(state, velocity, pair, torch.empty(6, 0), None)
    output = method.network(state, torch.stack([pair.later, pair.later - pair.earlier], dim=1), torch.empty(6, 0))
    total = (output - target).square().sum(dim=(1, 2, 3))
    loss, metrics = method._loss(whole)
    assert loss.item() == pytest.approx((total / (total + 1e-3) ** 0.75).mean().item(), rel=1e-4)
    assert metrics["loss/squared_error"].item() == pytest.approx(total.mean().item() / 192, rel=1e-4)


def test_with_one_time_it_is_flow_matching():
    """The loss and the gradient are those of the plain squared error of the velocity."""
    times = LogitNormalPairs(mean=0.0, std=1.0, earlier_mean=0.0, earlier_std=1.0, ordering="swap", share=0.0)
    method, whole = build(times=times, loss=AdaptiveLoss(power=0.0, offset=1e-3)), batch()
    loss, _ = method._loss(whole)
    loss.backward()
    found = [parameter.grad.clone() for parameter in method.network.parameters()]
    method.zero_grad()
    state, velocity, pair = drawn(method, whole)
    output = method.network(state, torch.stack([pair.later, torch.zeros(6)], dim=1), torch.empty(6, 0))
    expected = (output - velocity).square().sum() / 6
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, parameter in zip(found, method.network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_known_average_velocity_of_gaussian_data_is_the_minimiser():
    """Given z, the target's mean over v is the target of v's mean, because it is linear in v; it must be the network's u."""
    method = build(network=GaussianVelocity()).double()
    state = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    later = torch.tensor([1.0, 0.9, 0.6, 0.4, 0.2, 0.05], dtype=torch.float64)
    earlier = torch.tensor([0.0, 0.5, 0.1, 0.39, 0.0, 0.01], dtype=torch.float64)
    time = later[:, None, None, None]
    mean_velocity = (time - (1.0 - time) * STD**2) / deviation(time).square() * state  # E[e - x | z]
    target = method._target(state, mean_velocity, TimePair(later, earlier), torch.empty(6, 0), None)
    average = method.network(state, torch.stack([later, later - earlier], dim=1), torch.empty(6, 0))
    torch.testing.assert_close(target, average, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_number_of_steps_solves_the_flow_of_gaussian_data(steps):
    method = build(network=GaussianVelocity())
    latents = method.draw(range(4), 0)
    images = method.sample(latents, MeanFlowOptions(steps=steps))
    expected = (STD * latents["latent"].view(4, 3, 8, 8)).clamp(-1.0, 1.0)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_one_and_two_steps_follow_the_average_velocity():
    method = build()
    start = method.draw(range(4), 7)
    noise, nothing = start["latent"].view(4, 3, 8, 8), torch.empty(4, 0)

    def velocity(state: Tensor, later: float, earlier: float) -> Tensor:
        return method.network(state, torch.tensor([[later, later - earlier]]).expand(4, 2), nothing)

    with torch.no_grad():
        once = noise - velocity(noise, 1.0, 0.0)
        middle = noise - 0.5 * velocity(noise, 1.0, 0.5)
        twice = middle - 0.5 * velocity(middle, 0.5, 0.0)
    torch.testing.assert_close(method.sample(start), once.clamp(-1, 1))
    torch.testing.assert_close(method.sample(start, MeanFlowOptions(steps=2)), twice.clamp(-1, 1))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_extrapolates_from_the_estimate_without_the_condition(guidance):
    method = build(num_classes=2, condition_dropout=0.3)
    start = method.draw(range(4), 7)
    noise, times = start["latent"].view(4, 3, 8, 8), torch.tensor([[1.0, 1.0]]).expand(4, 2)
    with torch.no_grad():
        given = method.network(noise, times, start["label"])
        without = method.network(noise, times, start["label"], torch.zeros(4))
    expected = (noise - (guidance * given - (guidance - 1.0) * without)).clamp(-1, 1)
    torch.testing.assert_close(method.sample(start, MeanFlowOptions(guidance=guidance)), expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_a_function_of_seed_and_index_alone():
    method = build(num_classes=2, condition_dropout=0.3)
    options = MeanFlowOptions(steps=2, guidance=2.0)
    whole = method.sample(method.draw(range(5), 3), options)
    assert whole.shape == (5, 3, 8, 8)
    for index in (0, 4):
        torch.testing.assert_close(method.sample(method.draw([index], 3), options)[0], whole[index], rtol=0, atol=1e-5)
    assert not torch.allclose(method.sample(method.draw(range(5), 4), options), whole)
    assert method.network.training


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    method, whole = build(num_classes=2, condition_dropout=0.5), batch(num_classes=2)
    loss, metrics = method._loss(whole)
    each = [method._loss({key: value[i : i + 1] for key, value in whole.items()})[0].item() for i in range(6)]
    assert loss.item() == pytest.approx(sum(each) / 6, rel=1e-5)
    assert metrics["loss/mean_flow"].item() == loss.item()


def test_conditions_are_dropped_at_the_given_rate_in_both_passes():
    method, whole = build(num_classes=2, condition_dropout=0.3), batch(4000, num_classes=2)
    method._loss(whole)
    derivative, keep = method.network.seen
    assert 1 - keep.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert 1 - derivative.float().mean().item() == pytest.approx(0.3, abs=0.03)
    pair = method.times.at(mixed_keys(whole["noise_key"], TIME))
    assert torch.equal(derivative, keep[pair.later > pair.earlier])
    assert build(condition_dropout=0.3).condition_dropout == 0.0  # without a condition there is nothing to drop


def test_options_state_their_cost():
    assert MeanFlowOptions().num_evaluations == 1
    assert MeanFlowOptions(steps=2, guidance=1.5).num_evaluations == 4
    assert asdict(build().sampling_options) == {"steps": 1, "guidance": 1.0}


@pytest.mark.parametrize(("settings", "name"), [({"steps": 0}, "steps=0"), ({"guidance": -1.0}, "guidance=-1"),
                                                ({"guidance": math.inf}, "guidance=inf")])  # fmt: skip
def test_options_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        MeanFlowOptions(**settings)


def test_guidance_without_a_condition_or_its_dropout_is_refused():
    for method in (build(), build(num_classes=2)):
        with raises(ConfigError, "guidance"):
            method.check_options(MeanFlowOptions(guidance=2.0))
    with raises(ConfigError, "sampling.guidance"):
        build(sampling=MeanFlowOptions(guidance=2.0))
    with pytest.raises(ValueError, match=r"condition_dropout=1"):
        build(condition_dropout=1.0)


@pytest.mark.parametrize(("name", "value"), [("num_times", 1), ("augment_dim", 6)])
def test_a_network_for_another_method_is_refused(name, value):
    network = Velocity(Unconditional())
    setattr(network, name, value)
    with raises(ConfigError, f"network.{name}"):
        build(network=network)


def test_a_network_of_another_shape_is_refused():
    method = build()
    method.network.layers[2] = nn.Conv2d(8, 1, 3, padding=1)
    with raises(ConfigError, "network"):
        method.check(batch(2))
