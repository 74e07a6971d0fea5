"""When a training that only grows worse is to be stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DivergenceWatch:
    """Stops a training whose primary metric stays far above its best.

    Attributes:
        factor: how many times worse than the best.
        evaluations: in a row.
    """

    factor: float
    evaluations: int

    @classmethod
    def of(cls, settings: Mapping[str, float]) -> DivergenceWatch:
        """From ``{factor: 3, evaluations: 2}``.

        Raises:
            ValueError: for other keys or values that make no sense.
        """
        if not isinstance(settings, Mapping) or set(settings) != {"factor", "evaluations"}:
            raise ValueError(
                f"evaluation.stop_if={settings} must have the keys factor and evaluations, and no others, such as "
                "{factor: 3, evaluations: 2}"
            )
        factor, evaluations = settings["factor"], settings["evaluations"]
        numbers = isinstance(factor, int | float) and isinstance(evaluations, int)
        if not numbers or isinstance(evaluations, bool) or not factor > 1.0 or evaluations < 1:
            raise ValueError(
                f"evaluation.stop_if={dict(settings)}: factor must be above 1, and evaluations a whole number, 1 or more"
            )
        return cls(float(factor), int(evaluations))

    def is_too_bad(self, value: float, best: float, *, higher_is_better: bool) -> bool:
        """Whether ``value`` is more than ``factor`` times worse than ``best``.

        Unbiased distances can be 0 or a little below: what counts is then the way from the best, in units of its size.
        """
        if higher_is_better:
            return value < best - (1.0 - 1.0 / self.factor) * abs(best)
        return value > best + (self.factor - 1.0) * abs(best)
