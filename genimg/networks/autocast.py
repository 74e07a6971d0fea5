"""What networks compute without autocast, and in which type."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast on the device of ``tensor``; autocast does not support the device ``meta``."""
    return contextlib.nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
