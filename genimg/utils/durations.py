"""Durations written as text, such as ``25 epochs``, ``100k steps`` or ``5M images``."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NewType

from genimg.errors import ConfigError

NumImages = NewType("NumImages", int)
"""A duration or interval in images seen. The builder converts text such as ``25 epochs``, ``100k steps`` or ``5M images``
in a config for a constructor parameter of this type."""


_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kKM]?)\s*(epoch|step|image)s?\s*")
_FACTOR = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}


def to_images(text: object, *, epoch_size: int, batch_size: int, key: str) -> NumImages:
    """Convert a written duration to images, rounded up to whole steps.

    Args:
        text: Number, optionally with ``k`` or ``M``, and a unit: epochs, steps or images.
        epoch_size: Number of images in the training data.
        batch_size: Number of images per step.
        key: Config key, for the error message.

    Raises:
        ConfigError: If ``text`` is not a duration.
    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(
            f"{key}={text} is not a duration: write a number and a unit, such as '25 epochs', '100k steps' or '5M images'"
        )
    number, factor, unit = match.groups()
    # Exact arithmetic, because rounding a binary 32.2 times a million would add a step.
    images = Fraction(number) * _FACTOR[factor] * {"epoch": epoch_size, "step": batch_size, "image": 1}[unit]
    return NumImages(math.ceil(images / batch_size) * batch_size)


def time_in_words(seconds: float) -> str:
    """Format a time as ``1 h 05 min``, ``3 min 20 s`` or ``45 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
