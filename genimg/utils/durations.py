"""Durations written as text, such as ``25 epochs``, ``100k steps``, ``5M images``, ``8 hours`` or ``20 %``."""

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
_TIME_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(second|minute|hour)s?\s*")
_SHARE_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*%\s*")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_FACTOR = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}


def to_seconds(text: object) -> Fraction | None:
    """Convert a written time such as ``8 hours`` to seconds; return None for anything else."""
    match = _TIME_PATTERN.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else Fraction(match[1]) * _SECONDS[match[2]]


def to_share(text: object) -> Fraction | None:
    """Convert a written share of the training such as ``20 %`` to 1/5; return None for anything else."""
    match = _SHARE_PATTERN.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else Fraction(match[1]) / 100


def to_images(
    text: object,
    *,
    epoch_size: int,
    batch_size: int,
    key: str,
    images_per_second: float | None = None,
    training: str | None = None,
) -> NumImages:
    """Convert a written duration to images, rounded up to whole steps.

    Args:
        text: Number and unit: epochs, steps or images, optionally with ``k`` or ``M``; seconds, minutes or hours; or ``%`` of
            the training.
        epoch_size: Number of images in the training data.
        batch_size: Number of images per step.
        key: Config key, for the error message.
        images_per_second: Images that a second stands for; None if it stands for no number.
        training: Written duration of the training; None if ``text`` cannot be a share of it.

    Raises:
        ConfigError: If ``text`` is not a duration, or a time or share that stands for no number of images.
    """
    share = to_share(text)
    if share is not None:
        if training is None:
            raise ConfigError(f"{key}={text} must not be a share of the training: give epochs, steps, images or a time")
        whole = to_images(
            training, epoch_size=epoch_size, batch_size=batch_size, key="trainer.duration", images_per_second=images_per_second
        )
        return NumImages(math.ceil(share * whole / batch_size) * batch_size)
    seconds = to_seconds(text)
    if seconds is not None:
        if not seconds:
            raise ConfigError(f"{key}={text} must be positive: write a time such as '5 minutes'")
        if images_per_second is None:
            raise ConfigError(
                f"{key}={text} is a time, which only trainer.duration, and with it other durations, can be",
                "give epochs, steps or images, or set trainer.duration to a time, too",
                key=key,
            )
        return NumImages(math.ceil(seconds * Fraction(images_per_second) / batch_size) * batch_size)
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(
            f"{key}={text} is not a duration: write a number and a unit, such as '25 epochs', '100k steps', '5M images', "
            "'8 hours' or '20 %' of the training"
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
