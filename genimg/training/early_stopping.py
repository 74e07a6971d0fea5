"""Early stopping of a run that has diverged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from genimg.errors import ConfigError

_FORMS = ({"factor", "evaluations"}, {"metric", "above", "evaluations"}, {"metric", "below", "evaluations"})


@dataclass(frozen=True)
class EarlyStopping:
    """Condition for stopping: the primary metric stays far worse than its best, or a metric stays beyond a bound.

    Attributes:
        factor: Factor by which the primary metric is worse than its best; None if a metric is named.
        evaluations: Number of evaluations in a row for which the condition must hold.
        metric: Name of a metric, such as ``fid5k``, or the part before its count, such as ``fid``.
        above, below: Bound of that metric; at most one is set.
    """

    factor: float | None
    evaluations: int
    metric: str | None = None
    above: float | None = None
    below: float | None = None

    @classmethod
    def of(cls, settings: Mapping[str, float | str]) -> EarlyStopping:
        """Build the condition from an evaluator's parameter ``stop_if``.

        Args:
            settings: ``{factor: 3, evaluations: 2}`` or ``{metric: memorised, above: 0.5, evaluations: 2}``.

        Raises:
            ConfigError: If there are other keys, or a value is out of range.
        """
        if not isinstance(settings, Mapping) or set(settings) not in _FORMS:
            shown = dict(settings) if isinstance(settings, Mapping) else settings
            raise ConfigError(
                f"stop_if={shown} must have either the keys factor and evaluations, such as {{factor: 3, evaluations: 2}}, or "
                "metric, evaluations and one of above and below, such as {metric: memorised, above: 0.5, evaluations: 2}",
                key="stop_if",
            )
        evaluations = settings["evaluations"]
        if not isinstance(evaluations, int) or isinstance(evaluations, bool) or evaluations < 1:
            raise ConfigError(f"stop_if.evaluations={evaluations} must be a whole number, 1 or more")
        if "factor" in settings:
            factor = settings["factor"]
            if not isinstance(factor, int | float) or not factor > 1.0:
                raise ConfigError(f"stop_if.factor={factor} must be a number above 1")
            return cls(float(factor), evaluations)
        metric, (side,) = settings["metric"], settings.keys() & {"above", "below"}
        bound = settings[side]
        if not isinstance(metric, str) or not isinstance(bound, int | float) or isinstance(bound, bool) or bound != bound:
            raise ConfigError(f"stop_if.metric={metric} must be a name, and stop_if.{side}={bound} a number")
        return cls(None, evaluations, metric=metric, **{side: float(bound)})

    def is_too_bad(self, value: float, best: float, *, higher_is_better: bool) -> bool:
        """Return whether ``value`` is more than ``factor`` times worse than ``best``.

        Unbiased distances can be zero or slightly negative, so the difference from the best is compared with the best's
        absolute value.
        """
        assert self.factor is not None
        if higher_is_better:
            return value < best - (1.0 - 1.0 / self.factor) * abs(best)
        return value > best + (self.factor - 1.0) * abs(best)

    def is_beyond(self, value: float) -> bool:
        """Return whether the value of the named metric is beyond its bound."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)

    def name_in(self, values: Mapping[str, float]) -> str:
        """Return the full name of the named metric among the measured ones.

        Raises:
            ConfigError: If no metric or several metrics match.
        """
        assert self.metric is not None
        if self.metric in values:
            return self.metric
        found = [name for name in values if re.fullmatch(rf"{re.escape(self.metric)}\d+k?(_.*)?", name)]
        found = [name for name in found if not name.endswith("_std")]
        if len(found) > 1:
            raise ConfigError(
                f"stop_if.metric={self.metric} is the beginning of several metrics: choose one of {', '.join(found)}",
                key="stop_if.metric",
            )
        if not found:
            raise ConfigError(
                f"stop_if.metric={self.metric} is not a metric of this evaluation: choose one of {', '.join(values)}"
            )
        return found[0]
