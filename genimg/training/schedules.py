"""Schedules of optimizers: a factor on all learning rates, and any other setting that is given as a schedule."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from genimg import schedules
from genimg.schedules import Schedule
from genimg.utils.durations import NumImages


class RateSchedule(Schedule):
    """A factor in [0, 1] on each optimizer's own learning rate, after a linear warm-up from 0.

    Args:
        warmup: Number of images over which the rate rises linearly; 0 for none.
    """

    def __init__(self, *, warmup: NumImages) -> None:
        self.warmup = warmup

    def at(self, images: int, batch_size: int) -> float:
        """Return the factor for the step that starts after ``images`` images; it is positive even in the first step."""
        rise = min(1.0, (images + batch_size) / self.warmup) if self.warmup else 1.0
        return rise * self.decay(images)

    @abstractmethod
    def decay(self, images: int) -> float:
        """Return the factor without warm-up."""

    @property
    def extremes(self) -> tuple[float, float]:
        return 0.0, 1.0


class Constant(RateSchedule):
    """1 after the warm-up."""

    @property
    def extremes(self) -> tuple[float, float]:
        return (0.0 if self.warmup else 1.0), 1.0

    def decay(self, images: int) -> float:
        return 1.0


class Linear(RateSchedule):
    """1 until ``start``, then a straight line down to ``final`` at ``duration``.

    Args:
        duration: Duration of the run.
        start: Images after which the decay begins.
        final: Factor at the end.
        warmup: See ``RateSchedule``.
    """

    def __init__(self, *, duration: NumImages, start: NumImages, final: float, warmup: NumImages) -> None:
        super().__init__(warmup=warmup)
        if start >= duration:
            raise ValueError(f"start={start} images must lie before duration={duration} images, the end of the training")
        self._line = schedules.Linear(start=1.0, end=_checked(final), duration=duration, begin=start)

    def decay(self, images: int) -> float:
        return self._line.at(images, 0)


class Cosine(RateSchedule):
    """Half a cosine from 1 to ``final`` (Loshchilov & Hutter 2017, equation 5, without restarts).

    Args:
        duration: Duration of the run.
        final: Factor at the end.
        warmup: See ``RateSchedule``.
    """

    def __init__(self, *, duration: NumImages, final: float, warmup: NumImages) -> None:
        super().__init__(warmup=warmup)
        if duration < 1:
            raise ValueError(f"duration={duration} images must be positive")
        self._curve = schedules.Cosine(start=1.0, end=_checked(final), duration=duration)

    def decay(self, images: int) -> float:
        return self._curve.at(images, 0)


class InverseSquareRoot(RateSchedule):
    """1 until ``start``, then sqrt(start / images): Karras et al. 2024, equation 67.

    Args:
        start: Images after which the decay begins.
        warmup: See ``RateSchedule``.
    """

    def __init__(self, *, start: NumImages, warmup: NumImages) -> None:
        super().__init__(warmup=warmup)
        if start < 1:
            raise ValueError(f"start={start} images must be positive")
        self.start = start

    def decay(self, images: int) -> float:
        return math.sqrt(self.start / max(images, self.start))


def _checked(final: float) -> float:
    if final == 1.0:
        raise ValueError("final=1.0 leaves the rates as they are: choose a constant schedule")
    if not math.isfinite(final):
        raise ValueError(f"final={final} must be finite")
    return final


class OptimizerSchedules:
    """Sets scheduled settings of optimizers before each step: all learning rates, and other settings that are schedules.

    Args:
        factor: Factor on the learning rate of every group.
        settings: Scheduled settings of each parameter group of the method: numbers, or lists such as Adam's betas.
    """

    def __init__(self, factor: Schedule, settings: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.factor = factor
        self.settings = {name: driven for name, driven in (settings or {}).items() if driven}

    def __bool__(self) -> bool:
        """Return whether anything changes."""
        return bool(self.settings) or self.factor.extremes != (1.0, 1.0)

    def base_rates(self, optimizers: Mapping[str, Optimizer]) -> dict[str, list[float]]:
        """Return the learning rates of newly built optimizers, which the factor multiplies."""
        return {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}

    def apply(
        self, optimizers: Mapping[str, Optimizer], base_rates: Mapping[str, list[float]], images: int, batch_size: int
    ) -> None:
        """Set the settings for the step of ``batch_size`` images that starts after ``images`` images."""
        factor = self.factor.at(images, batch_size)
        for name, optimizer in optimizers.items():
            now = {key: valued(value, images, batch_size) for key, value in self.settings.get(name, {}).items()}
            for group, base in zip(optimizer.param_groups, base_rates[name], strict=True):
                group.update(now)
                group["lr"] = now.get("lr", base) * factor

    def values(self, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Return the last step's scheduled settings other than learning rates, such as ``generator.betas.1``."""
        found: dict[str, float] = {}
        for name, settings in self.settings.items():
            group = optimizers[name].param_groups[0]
            for key, value in settings.items():
                if isinstance(value, list):
                    found |= {f"{name}.{key}.{i}": group[key][i] for i, each in enumerate(value) if isinstance(each, Schedule)}
                elif key != "lr":
                    found[f"{name}.{key}"] = group[key]
        return found


def valued(value: Any, images: int, batch_size: int) -> Any:
    """Return a setting with numbers in place of its schedules."""
    if isinstance(value, list):
        return [valued(each, images, batch_size) for each in value]
    return value.at(images, batch_size) if isinstance(value, Schedule) else value


def holds_schedule(value: Any) -> bool:
    """Return whether a setting is a schedule, or a list that holds one."""
    return any(map(holds_schedule, value)) if isinstance(value, list) else isinstance(value, Schedule)
