import pytest
import torch
from errors import raises
from torch import nn

from genimg.methods.ema import EMA
from genimg.schedules import Linear, ScheduledNumbers


def weight(value: float) -> nn.Module:
    """A network with one weight."""
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, value)
    return layer


def test_after_half_life_images_the_old_weight_has_the_factor_one_half():
    ema = EMA(weight(1.0), half_life=1000, ramp_up=None)
    for _ in range(10):
        ema.update(weight(0.0), num_images=100, images_seen=10**9)
    assert ema.network.weight.item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 50, 200, 500, 1000])
def test_the_average_means_the_same_at_any_batch_size(batch_size):
    ema = EMA(weight(1.0), half_life=300, ramp_up=None)
    for _ in range(1000 // batch_size):
        ema.update(weight(0.0), num_images=batch_size, images_seen=10**9)
    assert ema.network.weight.item() == pytest.approx(0.5 ** (1000 / 300), rel=1e-10)


def test_a_changing_weight_is_averaged_as_by_hand():
    ema = EMA(weight(2.0), half_life=20, ramp_up=None)
    expected = 2.0
    for value in (3.0, -1.0, 5.0):
        ema.update(weight(value), num_images=10, images_seen=10**9)
        expected = 0.5**0.5 * expected + (1 - 0.5**0.5) * value
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-12)


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
    ema = EMA(weight(0.0), half_life=1000, ramp_up=0.05)
    assert ema.decay(64, images) == pytest.approx(expected, rel=1e-12)


def test_a_schedule_drives_the_half_life_and_the_fraction_limits_it():
    schedule = Linear(start=0.0, end=1000.0, duration=10_000)
    free, limited = (EMA(weight(0.0), half_life=schedule, ramp_up=ramp_up) for ramp_up in (None, 0.05))
    assert free.decay(64, 64) == 0.0  # a half-life of 0: the average is the network itself
    for ema, expected in ((free, 500.0), (limited, 0.05 * 5064)):
        ScheduledNumbers(ema).advance(5000, 64)
        assert ema.decay(64, 5064) == pytest.approx(0.5 ** (64 / expected), rel=1e-12)


def test_the_first_step_all_but_forgets_the_initial_weights():
    ema = EMA(weight(1.0), half_life=10_000, ramp_up=0.05)
    ema.update(weight(0.0), num_images=64, images_seen=64)
    assert abs(ema.network.weight.item()) < 1e-5  # 2^-20


def test_floating_buffers_are_averaged_and_counters_are_copied():
    network = nn.BatchNorm1d(2)
    ema = EMA(network, half_life=10, ramp_up=None)
    network.running_mean.fill_(4.0)
    network.running_var.fill_(3.0)
    network.num_batches_tracked.fill_(17)
    ema.update(network, num_images=10, images_seen=10**9)
    assert ema.network.running_mean.tolist() == pytest.approx([2.0, 2.0], rel=1e-6)
    assert ema.network.running_var.tolist() == pytest.approx([2.0, 2.0], rel=1e-6)
    assert ema.network.num_batches_tracked.item() == 17


def test_the_average_is_a_copy_that_no_gradient_reaches():
    network = weight(1.0)
    ema = EMA(network, half_life=10, ramp_up=None)
    with torch.no_grad():
        network.weight.fill_(9.0)
    assert ema.network.weight.item() == 1.0
    ema.update(network, num_images=10, images_seen=10**9)
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert network.weight.requires_grad
    assert network.weight.item() == 9.0


def test_the_average_stays_in_evaluation_mode():
    ema = EMA(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), half_life=10, ramp_up=None)
    holder = nn.ModuleList([ema])
    holder.train()
    assert not any(module.training for module in ema.modules())
    inputs = torch.randn(5, 2)
    assert torch.equal(ema(inputs), ema(inputs))
    assert ema.network[0].num_batches_tracked.item() == 0


def test_the_network_that_is_followed_keeps_its_mode():
    network = nn.BatchNorm1d(2).train()
    EMA(network, half_life=10, ramp_up=None)
    assert network.training


def test_the_state_is_in_the_state_dict():
    one, other = (EMA(weight(value), half_life=10, ramp_up=None) for value in (1.0, 2.0))
    other.load_state_dict(one.state_dict())
    assert other.network.weight.item() == 1.0


@pytest.mark.parametrize(
    ("half_life", "ramp_up", "words"),
    [(0, 1.0, "half_life=0"), (-5, None, "half_life=-5"), (10, 0.0, "ramp_up=0.0"), (10, -1.0, "ramp_up=-1.0")],
)
def test_settings_that_are_not_above_zero_are_refused(half_life, ramp_up, words):
    with raises(ValueError, words):
        EMA(weight(0.0), half_life=half_life, ramp_up=ramp_up)


def test_standing_statistics_are_the_means_of_the_batches_that_are_given():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    ema = EMA(network, half_life=100, ramp_up=None)
    batches = [torch.randn(8, 2, 4, 4) for _ in range(5)]
    momentum = ema.network[1].momentum
    ema.take_standing_statistics((batch,) for batch in batches)
    hidden = [network[0](batch) for batch in batches]
    mean = torch.stack([h.mean(dim=(0, 2, 3)) for h in hidden]).mean(0)
    variance = torch.stack([h.var(dim=(0, 2, 3), unbiased=True) for h in hidden]).mean(0)
    torch.testing.assert_close(ema.network[1].running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ema.network[1].running_var, variance, rtol=1e-4, atol=1e-6)
    assert ema.network[1].momentum == momentum
    assert not any(module.training for module in ema.network.modules())


def test_buffers_other_than_batch_norms_are_copied():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.register_buffer("direction", torch.ones(2))

    network = Counting()
    ema = EMA(network, half_life=100, ramp_up=None)
    network.direction.fill_(5.0)
    ema.update(network, 1, 10**9)
    assert ema.network.direction.tolist() == [5.0, 5.0]
