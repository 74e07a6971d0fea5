"""Settings that are a number, or a range from which one is drawn for every sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genimg.utils.rng import Stream, uniform

Range = tuple[float, float]


def checked_range(name: str, value: float | Sequence[float], least: float, most: float, *, above: bool = False) -> Range:
    """Return a number as (number, number), or [low, high] as (low, high).

    Args:
        name: Name of the setting, for messages.
        value: A number, or a range.
        least, most: Bounds of the value.
        above: Whether the number, or the end of the range, must be more than ``least``.

    Raises:
        ValueError: If ``value`` is not a number or range within the bounds.
    """
    single = isinstance(value, int | float)
    bounds = [value, value] if isinstance(value, int | float) else list(value) if isinstance(value, Sequence) else []
    if len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds):
        raise ValueError(f"{name}={value} must be a number, or [low, high]")
    low, high = bounds
    if not (least <= low <= high <= most) or (above and high == least):
        rule = f"{'more than' if above else 'at least'} {least:g} and at most {most:g}"
        raise ValueError(f"{name}={value} must be {rule}{'' if single else ', in ascending order'}")
    if low == high and not single:
        raise ValueError(f"{name}={value} is not a range: set {name}={low}")
    return low, high


def drawn(bounds: Range, seed: int, stream: Stream, *position: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw numbers uniformly from the range, as a function of the other arguments."""
    low, high = bounds
    return low + (high - low) * uniform(seed, stream, *position)


def drawn_integers(bounds: tuple[int, int], seed: int, stream: Stream, *position: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw integers uniformly from the range, both ends included, as a function of the other arguments."""
    low, high = bounds
    return low + np.floor((high - low + 1) * uniform(seed, stream, *position)).astype(np.int64)
