"""Digests of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of the names, types, shapes and values of tensors on the CPU."""
    found = hashlib.sha256()
    add_tensors(found, tensors)
    return found.hexdigest()


def add_tensors(found: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors on the CPU to a hash of ``hashlib``."""
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode("ascii") + b"\n")
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
