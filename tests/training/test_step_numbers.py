"""Numbers of a step: the same training whether they are floats or in memory of the device, here that of a CPU."""

import copy

import pytest
import torch
from errors import raises
from tiny import gan
from torch import nn

from genimg.errors import ConfigError
from genimg.losses.penalties import LeCam, WeightClipping
from genimg.schedules import Linear, Schedule, is_zero
from genimg.training.device import Precision
from genimg.training.ema import Exponential, PowerFunction, WeightAverage
from genimg.training.optimizers import make_capturable
from genimg.training.schedules import Cosine, OptimizerSchedules
from genimg.training.step_numbers import StepNumbers
from genimg.training.update import StepRNG, Updater
from genimg.types import Progress
from genimg.utils.durations import NumImages

BATCH = 4
PROFILES = {
    "exponential": Exponential(half_life=NumImages(40), ramp_up=0.5),
    "power": PowerFunction(length=0.1, num_snapshots=0),
}


def line(start: float, end: float) -> Schedule:
    return Linear(start=start, end=end, duration=NumImages(40))


def train(num_steps: int, *, holds: bool) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A GAN with a schedule for everything, and its averages."""
    penalties = {"lecam": LeCam(weight=line(0.0, 0.3), decay=0.9, start=NumImages(12), interval=1),
                 "clipping": WeightClipping(limit=line(0.5, 0.2))}  # fmt: skip
    method = gan(penalties=penalties)
    groups = method.parameter_groups()
    optimizers = {
        name: torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.99), fused=True) for name, parameters in groups.items()
    }
    schedules = OptimizerSchedules(Cosine(duration=NumImages(100), final=0.1, warmup=NumImages(20)))
    averages = {name: WeightAverage(method, profile) for name, profile in PROFILES.items()}
    numbers = StepNumbers(method, optimizers, schedules, PROFILES)
    device = torch.device("cpu")
    updater = Updater(groups, optimizers, precision=Precision("fp32", device), max_grad_norm=None, rng=StepRNG(0, 1, device))
    if holds:
        numbers.hold_on(device)
        updater.hold_step()
    for step in range(num_steps):
        progress = Progress(step * BATCH, BATCH)
        numbers.begin(progress)
        updater.begin(step)
        image = torch.rand(BATCH, 1, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1
        method.step([{"image": image}], progress, updater)
        for name, average in averages.items():
            average.update(numbers.shares[name])
    state = dict(method.state_dict())
    for name, average in averages.items():
        state |= {f"{name}.{key}": value for key, value in average.state_dict().items()}
    return state, {f"lr/{k}": v for k, v in numbers.rates().items()} | numbers.scheduled(num_steps * BATCH)


def test_a_training_is_the_same_with_numbers_on_the_device() -> None:
    (floats, logged), (held, logged_held) = train(12, holds=False), train(12, holds=True)
    for name, value in floats.items():
        torch.testing.assert_close(held[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert logged_held == pytest.approx(logged, rel=1e-6)
    assert {"lr/generator", "penalties.lecam.weight", "penalties.clipping.limit", "ema.exponential.half_life"} <= logged.keys()


def test_a_number_that_is_zero_stays_a_float_so_that_code_can_ask() -> None:
    method = gan(penalties={"lecam": LeCam(weight=line(0.0, 0.3), decay=0.9, start=NumImages(12), interval=1)})
    numbers = StepNumbers(method, {}, OptimizerSchedules(Cosine(duration=NumImages(9), final=0.1, warmup=NumImages(0))), {})
    numbers.hold_on(torch.device("cpu"))
    penalty, found = method.penalties["lecam"], []
    for step in range(5):
        numbers.begin(Progress(step * BATCH, BATCH))
        found.append((is_zero(penalty.weight), is_zero(penalty.started), numbers.are_zero))
        assert isinstance(penalty.weight, torch.Tensor) == (step > 0)
    assert found[0] == (True, True, (True, True))
    assert found[1] == found[2] == (False, True, (False, True))
    assert found[3] == found[4] == (False, False, (False, False))
    assert float(penalty.weight) == pytest.approx(0.3 * 16 / 40)


@pytest.mark.parametrize(
    ("make", "settings", "named"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, foreach=True), {}, "SGD"),
        (lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1), {"weight_decay": line(0.0, 0.1)}, "weight_decay"),
    ],
)
def test_what_needs_its_numbers_on_the_host_is_refused_by_name(make, settings, named) -> None:
    layer = nn.Linear(2, 2)
    method = gan()
    schedules = OptimizerSchedules(Cosine(duration=NumImages(9), final=0.1, warmup=NumImages(0)), {"x": settings})
    numbers = StepNumbers(method, {"x": make(list(layer.parameters()))}, schedules, {})
    with raises(ConfigError, "graph", word=named):
        numbers.hold_on(torch.device("cpu"))


def test_restored_counts_of_steps_move_to_the_device_in_the_optimizers_type() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.RMSprop(layer.parameters(), lr=0.1)
    for parameter in layer.parameters():
        optimizer.state[parameter]["step"] = torch.tensor(3.0, dtype=torch.float64)
    make_capturable(optimizer, {})
    assert all(group["capturable"] for group in optimizer.param_groups)
    assert all(state["step"].dtype == torch.float32 and state["step"] == 3 for state in optimizer.state.values())


def test_an_average_moves_by_the_same_share_whether_it_is_a_float_or_a_tensor() -> None:
    one = WeightAverage(gan(), PROFILES["exponential"])
    other = copy.deepcopy(one)
    for average in (one, other):
        with torch.no_grad():
            for parameter in average._current:
                parameter.add_(1.0)
    one.update(0.25)
    other.update(torch.tensor(0.25))
    for ours, theirs in zip(one._averaged, other._averaged, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
