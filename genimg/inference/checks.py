"""Checks shared by the commands and the Python API."""

from __future__ import annotations

from torch import Tensor

from genimg.errors import CheckpointError


def require_finite(images: Tensor) -> Tensor:
    """Return a model's output if all values are finite.

    Raises:
        CheckpointError: If there are NaN or infinite values, which would be written as black or white.
    """
    if not images.isfinite().all():
        raise CheckpointError("the model returns NaN or infinite values: its training has diverged; use another checkpoint")
    return images
