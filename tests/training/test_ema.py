import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from genimg.errors import ConfigError
from genimg.methods.base import Method
from genimg.methods.modes import take_standing_statistics
from genimg.schedules import Linear, ScheduledNumbers
from genimg.training.ema import Exponential, PowerFunction, WeightAverage, chosen_weights, exponent_of, label_of, with_networks


class Training(Method):
    """A method with one network for inference and one that only training needs."""

    inference_networks = ("network",)
    batch_keys = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.other = nn.Linear(1, 1)

    def parameter_groups(self):
        raise NotImplementedError

    step = check = preview = parameter_groups


def weight(value: float) -> Training:
    """A method whose network is one weight."""
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, value)
    return Training(layer)


def averaged(method: Training, profile=None) -> tuple[WeightAverage, nn.Module]:
    average = WeightAverage(method, profile or Exponential(half_life=10, ramp_up=None))
    return average, average.method.network


def follow(average: WeightAverage, num_images: int, images_seen: int) -> None:
    """Update an average as after ``num_images`` images of training."""
    average.update(1.0 - average.profile.decay(num_images, images_seen))


def set_weight(method: Training, value: float) -> None:
    with torch.no_grad():
        method.network.weight.fill_(value)


def test_after_half_life_images_the_old_weight_has_the_factor_one_half():
    method = weight(1.0)
    average, network = averaged(method, Exponential(half_life=1000, ramp_up=None))
    set_weight(method, 0.0)
    for _ in range(10):
        follow(average, 100, 10**9)
    assert network.weight.item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 50, 1000])
def test_the_average_means_the_same_at_any_batch_size(batch_size):
    method = weight(1.0)
    average, network = averaged(method, Exponential(half_life=300, ramp_up=None))
    set_weight(method, 0.0)
    for _ in range(1000 // batch_size):
        follow(average, batch_size, 10**9)
    assert network.weight.item() == pytest.approx(0.5 ** (1000 / 300), rel=1e-10)


def test_a_changing_weight_is_averaged_as_by_hand():
    method, expected = weight(2.0), 2.0
    average, network = averaged(method, Exponential(half_life=20, ramp_up=None))
    for value in (3.0, -1.0, 5.0):
        set_weight(method, value)
        follow(average, 10, 10**9)
        expected = 0.5**0.5 * expected + (1 - 0.5**0.5) * value
    assert network.weight.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (64, 0.5 ** (64 / (0.05 * 64))),  # a twentieth of the images seen
        (10_000, 0.5 ** (64 / 500)),
        (20_000, 0.5 ** (64 / 1000)),
        (10**9, 0.5 ** (64 / 1000)),  # the half-life itself
    ],
)
def test_early_in_training_the_half_life_is_a_fraction_of_the_images_seen(images, expected):
    assert Exponential(half_life=1000, ramp_up=0.05).decay(64, images) == pytest.approx(expected, rel=1e-12)


def test_a_schedule_drives_the_half_life_and_the_fraction_limits_it():
    schedule = Linear(start=0.0, end=1000.0, duration=10_000)
    free, limited = (Exponential(half_life=schedule, ramp_up=ramp_up) for ramp_up in (None, 0.05))
    assert free.decay(64, 64) == 0.0  # a half-life of 0: the average is the network itself
    for profile, expected in ((free, 500.0), (limited, 0.05 * 5064)):
        ScheduledNumbers(nn.Module(), {"ema.x": profile}).advance(5000, 64)
        assert profile.decay(64, 5064) == pytest.approx(0.5 ** (64 / expected), rel=1e-12)


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(length, exponent):
    assert exponent_of(length) == pytest.approx(exponent, abs=0.005)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.2, 0.27])
def test_the_exponent_gives_a_profile_of_that_standard_deviation(length):
    t = (np.arange(200_000) + 0.5) / 200_000
    profile = t ** exponent_of(length)
    profile /= profile.sum()
    mean = (profile * t).sum()
    assert math.sqrt((profile * (t - mean) ** 2).sum()) == pytest.approx(length, rel=1e-3)


def test_a_power_function_weighs_every_step_by_its_share_of_the_profile():
    profile, method = PowerFunction(length=0.1, num_snapshots=0), weight(0.0)
    average, network = averaged(method, profile)
    values, batch, steps = np.random.default_rng(0).normal(size=50), 8, 50
    for step, value in enumerate(values.tolist(), start=1):
        set_weight(method, value)
        follow(average, batch, step * batch)
    bounds = (np.arange(steps + 1) / steps) ** (profile.exponent + 1)  # the profile's integral
    assert network.weight.item() == pytest.approx(float((np.diff(bounds) * values).sum()), rel=1e-9)


def test_the_first_step_of_either_profile_all_but_forgets_the_initial_weights():
    for profile in (Exponential(half_life=10_000, ramp_up=0.05), PowerFunction(length=0.05, num_snapshots=0)):
        method = weight(1.0)
        average, network = averaged(method, profile)
        set_weight(method, 0.0)
        follow(average, 64, 64)
        assert abs(network.weight.item()) < 1e-5  # 2^-20


def test_batch_norms_statistics_are_averaged_and_other_buffers_are_copied():
    class Counting(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(2)
            self.inner = nn.Module()
            self.inner.register_buffer("direction", torch.ones(2))

    method = Training(Counting())
    average, network = averaged(method)
    method.network.running_mean.fill_(4.0)
    method.network.running_var.fill_(3.0)
    method.network.num_batches_tracked.fill_(17)
    method.network.inner.direction.fill_(5.0)
    follow(average, 10, 10**9)
    assert network.running_mean.tolist() == pytest.approx([2.0, 2.0], rel=1e-6)
    assert network.running_var.tolist() == pytest.approx([2.0, 2.0], rel=1e-6)
    assert network.num_batches_tracked.item() == 17
    assert network.inner.direction.tolist() == [5.0, 5.0]
    assert set(average.copied_buffers()) == {"network.num_batches_tracked", "network.inner.direction"}


def test_the_average_is_a_copy_in_evaluation_mode_that_no_gradient_reaches():
    method = Training(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    _, network = averaged(method)
    method.train()
    assert not any(module.training for module in network.modules())
    assert method.network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    inputs = torch.randn(5, 2)
    assert torch.equal(network(inputs), network(inputs))
    assert network[0].num_batches_tracked.item() == 0


def test_the_state_is_named_as_the_methods_own_and_is_restored():
    one, other = weight(1.0), weight(2.0)
    (average, _), (restored, network) = averaged(one), averaged(other)
    assert average.state_dict().keys() == {"network.weight"}
    restored.load_state_dict(average.state_dict())
    assert network.weight.item() == 1.0
    with pytest.raises(RuntimeError):
        restored.load_state_dict({})


def test_a_methods_copy_has_other_networks_and_shares_what_has_no_parameters():
    gan = tiny.gan()
    other = tiny.generator()
    copied = with_networks(gan, {"generator": other})
    assert copied.generator is other
    assert gan.generator is not other
    assert copied.class_counts is gan.class_counts
    assert set(dict(copied.named_children())) == {"generator", "penalties"}


@pytest.mark.parametrize(("settings", "name"), [
    ({"half_life": 0, "ramp_up": 1.0}, "half_life"), ({"half_life": -5, "ramp_up": None}, "half_life"),
    ({"half_life": 10, "ramp_up": 0.0}, "ramp_up"), ({"half_life": 10, "ramp_up": -1.0}, "ramp_up"),
    ({"length": 0.004, "num_snapshots": 1}, "length"), ({"length": 0.29, "num_snapshots": 1}, "length"),
    ({"length": 0.1, "num_snapshots": -1}, "num_snapshots"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, name):
    kind = Exponential if "half_life" in settings else PowerFunction
    with pytest.raises(ValueError, match=f"^{name}="):
        kind(**settings)


def test_weights_are_chosen_by_name():
    averages = {"slow": 1, "fast": 2}
    assert [chosen_weights(averages, each) for each in ("auto", "ema", "fast", "raw")] == ["slow", "slow", "fast", "raw"]
    assert chosen_weights({}, "auto") == "raw"
    assert [label_of(averages, each) for each in ("slow", "raw")] == ["slow", "raw"]
    assert label_of({"exponential": 1, "slow": 2}, "exponential") == "ema"  # the usual one
    assert label_of({"slow": 2, "exponential": 1}, "exponential") == "exponential"
    for known, weights in (({}, "ema"), (averages, "other")):
        with pytest.raises(ConfigError) as raised:
            chosen_weights(known, weights)
        assert raised.value.key == "weights"


def test_standing_statistics_are_the_means_of_the_batches_that_are_given():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    batches = [torch.randn(8, 2, 4, 4) for _ in range(5)]
    momentum, hidden = network[1].momentum, [network[0](batch) for batch in batches]
    take_standing_statistics(network, ((batch,) for batch in batches))
    mean = torch.stack([h.mean(dim=(0, 2, 3)) for h in hidden]).mean(0)
    variance = torch.stack([h.var(dim=(0, 2, 3), unbiased=True) for h in hidden]).mean(0)
    torch.testing.assert_close(network[1].running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network[1].running_var, variance, rtol=1e-4, atol=1e-6)
    assert network[1].momentum == momentum
    assert all(module.training for module in network.modules())
