"""Published points of a training curve, and whether a run is on the curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from genimg.evaluation.names import DEVIATION
from genimg.utils.type_hints import as_written

_MOST_NAMED = 3  # metrics named in a message


@dataclass(frozen=True, kw_only=True)
class ExpectedPoint:
    """A published value of a metric at one point of training.

    Attributes:
        images: Images seen.
        metric: Full name of the metric, such as ``fid50k``.
        value: Published value.
        tolerance: Largest difference from the value at which a run is on the curve, above 0.
        source: Source of the value, with its protocol.
        sampling: Sampling options that the value was measured with, by name; empty if the metric's name is sufficient.

    Raises:
        ValueError: If a number is out of range, or a text is empty.
    """

    images: int
    metric: str
    value: float
    tolerance: float
    source: str
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images={self.images} must be 1 or more")
        if not math.isfinite(self.value):
            raise ValueError(f"value={self.value} must be a finite number")
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise ValueError(f"tolerance={self.tolerance:g} must be above 0")
        for name in ("metric", "source"):
            if not getattr(self, name).strip():
                raise ValueError(
                    f"{name} is empty: {'name the metric' if name == 'metric' else 'name the source of the value'}"
                )

    def judge(self, images: int, values: Mapping[str, float], provenance: Mapping[str, Any]) -> str:
        """Return one line that says whether a run is on the curve.

        Args:
            images: Images that the run has seen.
            values: Values of its evaluation by full metric name.
            provenance: Provenance of these values.
        """
        expected = f"{self.value:g} ± {self.tolerance:g} after {self.images:,} images ({self.source})"
        if self.metric not in values:
            names = [name for name in values if not name.endswith(DEVIATION)]
            measured = ", ".join(names[:_MOST_NAMED]) + ("" if len(names) <= _MOST_NAMED else " and others")
            return (
                f"not comparable with the curve: {self.metric} is expected to be {expected}, but this evaluation has {measured}"
            )
        made = provenance.get("generated", {})
        if other := {name: value for name, value in self.sampling.items() if made.get(name) != value}:
            theirs, ours = (
                ", ".join(f"{name}={as_written(each.get(name))}" for name in other) for each in (self.sampling, made)
            )
            return (
                f"not comparable with the curve: {self.metric} is expected to be {expected} with {theirs}, but this evaluation "
                f"used {ours}"
            )
        value = values[self.metric]
        place = "on" if abs(value - self.value) <= self.tolerance else "off"
        return f"{place} the curve: {self.metric} is {value:.4g} after {images:,} images, expected {expected}"


def due(points: Sequence[ExpectedPoint], images: int, interval: int) -> list[ExpectedPoint]:
    """Return the points for which an evaluation is the first one at or after them.

    Args:
        points: Published points.
        images: Images seen at the evaluation.
        interval: Interval between evaluations.
    """
    before = (images - 1) // interval * interval
    return [point for point in points if before < point.images <= images]


def near(points: Sequence[ExpectedPoint], images: int) -> list[ExpectedPoint]:
    """Return the points that a checkpoint may be compared with: those at most 10 % earlier."""
    return [point for point in points if 0.9 * images <= point.images <= images]
