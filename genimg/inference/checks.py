"""Checks of numbers that the commands and the Python API share; each names the option, its value and the fix."""

from __future__ import annotations

from torch import Tensor

from genimg.errors import CheckpointError, ConfigError


def check_truncation(truncation: object) -> None:
    """Refuse a truncation that means nothing to any model.

    Args:
        truncation: The value of the option; None for no truncation.

    Raises:
        ConfigError: If it is neither None nor a number, 0 or more.
    """
    if truncation is not None and not (isinstance(truncation, int | float) and truncation >= 0):
        raise ConfigError(f"truncation={truncation} must be a number, 0 or more, or null for none")


def require_finite(images: Tensor) -> Tensor:
    """Return what a model has made, if it is images.

    Raises:
        CheckpointError: For NaN and infinite values, which would otherwise be written as black or white.
    """
    if not images.isfinite().all():
        raise CheckpointError("the model answers NaN or infinite values: its training has diverged; use another checkpoint")
    return images
