"""Checks shared by the commands and the Python API."""

from __future__ import annotations

from torch import Tensor

from genimg.errors import CheckpointError, ConfigError


def check_truncation(truncation: object) -> None:
    """Reject a truncation that no model supports.

    Args:
        truncation: Value of the option; None for no truncation.

    Raises:
        ConfigError: If it is neither None nor a non-negative number.
    """
    if truncation is not None and not (isinstance(truncation, int | float) and truncation >= 0):
        raise ConfigError(f"truncation={truncation} must be a number, 0 or more, or null for none")


def require_finite(images: Tensor) -> Tensor:
    """Return a model's output if all values are finite.

    Raises:
        CheckpointError: If there are NaN or infinite values, which would be written as black or white.
    """
    if not images.isfinite().all():
        raise CheckpointError("the model answers NaN or infinite values: its training has diverged; use another checkpoint")
    return images
