"""Axis ticks at round numbers, and short forms of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers, from the first at or below ``low`` to the first at or above ``high``."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / max(count - 1, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return powers of ten that enclose a range of positive numbers, with multiples of 2 and 5 if these are few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    factors = (1, 2, 5) if (last - first) * 3 <= count * 1.5 else (1,)
    step = max(1, math.ceil((last - first) / count))
    found = [factor * 10.0**power for power in range(first, last, step) for factor in factors] + [10.0**last]
    below = [tick for tick in found if tick <= low * 1.0001]
    above = [tick for tick in found if tick >= high * 0.9999]
    inside = [tick for tick in found if below[-1] <= tick <= above[0]]
    return inside if len(inside) > 1 else [below[-1], 10.0 * below[-1]]


def images_in_words(images: float) -> str:
    """Return a short number of images: 1500000 -> 1.5M, 20000 -> 20k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(images) >= size:
            return f"{images / size:.4g}{unit}"
    return f"{images:.4g}"


def number_in_words(number: float, digits: int = 4) -> str:
    """Return a number with at most ``digits`` significant digits, without an exponent if that is short."""
    if number == 0:
        return "0"
    if 1e-4 <= abs(number) < 1e6:
        text = f"{number:.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{number:.{max(1, digits - 2)}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def spans_a_decade(values: Sequence[float]) -> bool:
    """Return whether numbers are positive and span at least a factor of 10."""
    return min(values) > 0 and max(values) >= 10 * min(values) * 0.9999


def thinned(count: int, most: int) -> list[int]:
    """Return at most ``most`` evenly spaced indices of ``range(count)``, including the first and the last."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})
