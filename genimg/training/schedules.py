"""Learning-rate schedules: images seen -> factor on each optimizer's own rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from genimg.interfaces import Images


class Schedule(ABC):
    """A factor in [0, 1], after a linear warm-up from 0.

    Args:
        warmup: images over which the rate rises linearly; 0 for none.
    """

    def __init__(self, *, warmup: Images) -> None:
        self.warmup = warmup

    def factor(self, images: int, batch_size: int) -> float:
        """The factor for the step that starts at ``images`` seen."""
        rise = min(1.0, (images + batch_size) / self.warmup) if self.warmup else 1.0
        return rise * self.decay(images)

    @abstractmethod
    def decay(self, images: int) -> float:
        """The factor without warm-up."""


class Constant(Schedule):
    """Always 1."""

    def decay(self, images: int) -> float:
        return 1.0


class Linear(Schedule):
    """1 until ``start``, then down to ``final`` in a straight line, reached at ``duration``.

    Args:
        duration: of the training.
        start: where the decay begins.
        final: factor at the end.
    """

    def __init__(self, *, duration: Images, start: Images, final: float, warmup: Images) -> None:
        super().__init__(warmup=warmup)
        if start >= duration:
            raise ValueError(f"schedule.start ({start} images) must lie before trainer.duration ({duration} images)")
        self.duration, self.start, self.final = duration, start, final

    def decay(self, images: int) -> float:
        done = min(max((images - self.start) / (self.duration - self.start), 0.0), 1.0)
        return 1.0 + (self.final - 1.0) * done


class Cosine(Schedule):
    """From 1 to ``final`` along half a cosine (Loshchilov & Hutter 2017, equation 5, without restarts).

    Args:
        duration: of the training.
        final: factor at the end.
    """

    def __init__(self, *, duration: Images, final: float, warmup: Images) -> None:
        super().__init__(warmup=warmup)
        if duration < 1:
            raise ValueError("schedule.duration must be longer than nothing")
        self.duration, self.final = duration, final

    def decay(self, images: int) -> float:
        done = min(images / self.duration, 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))
