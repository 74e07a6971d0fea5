"""The result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        values: Values by full metric name; the first one chooses the best checkpoint.
        provenance: Everything that the values depend on, as primitives.
        intervals: 95 % bootstrap intervals (low, high) by full metric name, if requested.
        warnings: Sentences about values that may be unreliable.
        seconds_per_image: Time to generate an image on one device, in batches of the evaluation; None if nothing was generated.
    """

    values: dict[str, float]
    provenance: dict[str, Any]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds_per_image: float | None = None
