"""Random numbers of diffusion models, and the type of a solver's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg.utils.exact import has_float64
from genimg.utils.rng import normal_numbers

NOISE, TIME, KEPT, AUGMENT = range(4)
"""Purposes of a training sample's random key: the noise, the time, whether the condition is kept, and augmentation."""


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers [N, C, H, W] in the memory format of images, channels last; see ``normal_numbers``.

    Args:
        keys: Random keys, int64 [N].
        shape: Shape [C, H, W].
    """
    channels, height, width = shape
    return normal_numbers(keys, (height, width, channels)).permute(0, 3, 1, 2)


def state_type(tensor: Tensor) -> torch.dtype:
    """Return the type of a solver's state: float64, because rounding errors add up over many steps; MPS has only float32."""
    return torch.float64 if has_float64(tensor.device) else torch.float32
