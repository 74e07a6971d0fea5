"""Format numbers and settings as text, and choose a few evenly spaced items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from genimg.reporting.runs import Value


def format_images(images: float | None) -> str:
    """Return a number of images in short form, such as ``1.5M`` or ``20k``, or a dash for None."""
    if images is None:
        return "—"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(images) >= size:
            return f"{images / size:.4g}{unit}"
    return f"{images:.4g}"


def format_number(number: float | None, digits: int = 4) -> str:
    """Return a number with at most ``digits`` significant digits, without an exponent if the text is short; a dash for None."""
    if number is None:
        return "—"
    if number == 0:
        return "0"
    if 1e-4 <= abs(number) < 1e6:
        text = f"{number:.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{number:.{max(1, digits - 2)}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_value(value: Value | None) -> str:
    """Return ``28.49 [27.91, 29.14]`` with a 95 % interval, ``0.409 (sd 0.027)`` with a deviation, or a dash for None."""
    if value is None:
        return "—"
    text = format_number(value.number)
    if value.low is not None and value.high is not None:
        text += f" [{format_number(value.low)}, {format_number(value.high)}]"
    if value.deviation is not None:
        text += f" (sd {format_number(value.deviation, 2)})"
    return text


def format_setting(value: Any) -> str:
    """Return a setting as it is written in a config file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_setting, value))}]"
    return str(value)


def shortened(text: str, most: int) -> str:
    """Return a text shortened to at most ``most`` characters, with an ellipsis at its end if it is cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def thinned(count: int, most: int) -> list[int]:
    """Return at most ``most``, 2 or more, evenly spaced indices of ``range(count)``, including the first and the last."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, most)).round()]
