"""Everything that changes from step to step as a number: scheduled numbers, learning rates, weights of averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.methods.base import Method
from genimg.schedules import ScheduledNumbers
from genimg.training.ema import Exponential, Profile
from genimg.training.optimizers import make_capturable
from genimg.training.schedules import OptimizerSchedules
from genimg.types import Progress


class StepNumbers:
    """Sets the numbers of each step.

    Normally these are floats. The operations of a CUDA graph, however, repeat with the numbers with which they were captured,
    so ``hold_on`` keeps the numbers in memory of the device, to which a step's values are copied before it runs.

    Args:
        method: Method in training.
        optimizers: Its optimizers, newly built.
        schedules: Schedules of the optimizers' settings.
        profiles: Profiles of the averages, by name.

    Attributes:
        shares: Share of the trained weights in the new value of each average (see ``WeightAverage.update``).
    """

    def __init__(
        self,
        method: Method,
        optimizers: Mapping[str, Optimizer],
        schedules: OptimizerSchedules,
        profiles: Mapping[str, Profile],
    ) -> None:
        self._optimizers = optimizers
        self._schedules = schedules
        self._base_rates = schedules.base_rates(optimizers)
        self._rates = {name: list(rates) for name, rates in self._base_rates.items()}
        self._profiles = profiles
        self._scheduled = ScheduledNumbers(method)
        self._of_profiles = ScheduledNumbers(nn.Module(), {f"ema.{name}": profile for name, profile in profiles.items()})
        self._interval = method.inference_interval
        self._changes: list[Callable[[int, int], None]] = [
            each.advance for each in (self._scheduled, self._of_profiles) if each
        ]
        if schedules:
            self._changes.append(self._schedule)
        self.shares: Mapping[str, float | Tensor] = {}
        self._memory: Tensor | None = None
        self._places: list[Tensor] = []  # elements of the memory: rates, shares, scheduled numbers
        self._filled: list[float] = []

    def hold_on(self, device: torch.device) -> None:
        """From the next ``begin`` on, keep the numbers in memory of ``device``.

        Raises:
            ConfigError: If an optimizer or a schedule needs its numbers on the host.
        """
        for name, optimizer in self._optimizers.items():
            make_capturable(optimizer, self._schedules.settings.get(name, {}))
        count = len(self._rates_of_groups()) + len(self._profiles) + len(self._scheduled)
        self._memory = torch.zeros(count, device=device)
        self._places, self._filled = list(self._memory.unbind()), []
        self._scheduled.hold(self._places[count - len(self._scheduled) :])

    def begin(self, progress: Progress) -> None:
        """Set the numbers of a step."""
        images, batch_size = progress.images, progress.batch_size
        for change in self._changes:
            change(images, batch_size)
        seen = batch_size * self._interval
        shares = {name: 1.0 - each.decay(seen, images + batch_size) for name, each in self._profiles.items()}
        if self._memory is None:
            self.shares = shares
        else:
            self._fill(self._memory, shares)

    def _schedule(self, images: int, batch_size: int) -> None:
        self._schedules.apply(self._optimizers, self._base_rates, images, batch_size)
        self._rates = {name: [group["lr"] for group in each.param_groups] for name, each in self._optimizers.items()}

    def _fill(self, memory: Tensor, shares: Mapping[str, float]) -> None:
        values = [*self._rates_of_groups(), *shares.values(), *self._scheduled.values().values()]
        if values != self._filled:
            memory.copy_(torch.tensor(values), non_blocking=True)
            self._filled = values
        places = iter(self._places)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = next(places)
        self.shares = {name: next(places) for name in shares}

    def _rates_of_groups(self) -> list[float]:
        return [rate for rates in self._rates.values() for rate in rates]

    @property
    def are_zero(self) -> tuple[bool, ...]:
        """Which scheduled numbers are 0 in this step; code may skip what is multiplied by them."""
        return tuple(value == 0 for value in self._scheduled.values().values())

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each optimizer's first parameter group."""
        return {name: rates[0] for name, rates in self._rates.items()}

    def scheduled(self, images_seen: int) -> dict[str, float]:
        """Return the scheduled numbers of this step, and half-lives that are still limited by their ramp-up."""
        limited = {name: each for name, each in self._profiles.items() if isinstance(each, Exponential)}
        return (
            self._scheduled.values()
            | self._of_profiles.values()
            | self._schedules.values(self._optimizers)
            | {
                f"ema.{name}.half_life": each.half_life_at(images_seen)
                for name, each in limited.items()
                if each.ramp_up < math.inf
            }
        )
