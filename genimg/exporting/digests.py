"""A digest of an exported file's tensors and metadata, by which damage to it is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

DIGEST = "content_sha256"
"""The key of the digest among the metadata."""


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors and metadata in hexadecimal.

    Args:
        tensors: On the CPU, by name; names, types, shapes and values count.
        metadata: Text by key; the digest itself does not count.
    """
    found = hashlib.sha256()
    texts = {key: value for key, value in metadata.items() if key != DIGEST}
    found.update(json.dumps(texts, sort_keys=True).encode("ascii") + b"\n")
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode("ascii") + b"\n")
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
