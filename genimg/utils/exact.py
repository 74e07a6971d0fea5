"""Numbers in float64, which Apple's GPUs do not have: there the CPU computes them."""

from __future__ import annotations

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Return whether the device computes with float64."""
    return device.type != "mps"


def float64_device(device: torch.device) -> torch.device:
    """Return the device that computes with float64 for tensors of ``device``: itself, or the CPU if it cannot."""
    return device if has_float64(device) else torch.device("cpu")


def double(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64, on its device if that has float64 and on the CPU otherwise."""
    return tensor.to(float64_device(tensor.device)).to(torch.float64)
