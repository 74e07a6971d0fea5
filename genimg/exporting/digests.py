"""A digest of an exported file's tensors and metadata, to detect damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from genimg.utils.digests import add_tensors

DIGEST = "content_sha256"
"""Metadata key of the digest."""


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors and metadata in hexadecimal.

    Args:
        tensors: Tensors on the CPU by name; names, types, shapes and values are hashed.
        metadata: Text by key; all entries except the digest itself are hashed.
    """
    found = hashlib.sha256()
    texts = {key: value for key, value in metadata.items() if key != DIGEST}
    found.update(json.dumps(texts, sort_keys=True).encode("ascii") + b"\n")
    add_tensors(found, tensors)
    return found.hexdigest()
