"""Captions as tensors of UTF-8 bytes, padded with zeros, which no caption contains."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

_MOST_BYTES = 256  # two or three sentences; longer captions are cut
_MULTIPLE = 16


def encode(texts: Sequence[str | None], length: int) -> Tensor:
    """Return the UTF-8 bytes of each text, cut after the last whole character and zero-padded: uint8 [N, length].

    None counts as an empty text. Zeros inside a text are removed, and half a surrogate pair becomes a question mark.
    """
    rows = b"".join(_cut(_bytes(text), length).ljust(length, b"\0") for text in texts)
    return torch.from_numpy(np.frombuffer(bytearray(rows), dtype=np.uint8).reshape(len(texts), length))


def decode(captions: Tensor) -> list[str]:
    """Return the texts of encoded captions, uint8 [N, L]."""
    return [row.tobytes().rstrip(b"\0").decode() for row in captions.cpu().numpy()]


def caption_length(texts: Sequence[str | None]) -> int:
    """Return the size in bytes of the longest text, as a multiple of 16 up to 256, with a warning if texts are cut."""
    lengths = [len(_bytes(text)) for text in texts]
    if (longest := max(lengths)) > _MOST_BYTES:
        count = sum(length > _MOST_BYTES for length in lengths)
        log.warning("%d of %d captions are truncated to %d bytes: the longest has %d", count, len(texts), _MOST_BYTES, longest)
    return min(_MOST_BYTES, max(_MULTIPLE, -(-longest // _MULTIPLE) * _MULTIPLE))


def _bytes(text: str | None) -> bytes:
    return (text or "").replace("\0", "").encode("utf-8", "replace")


def _cut(content: bytes, length: int) -> bytes:
    # Only a partial character at the end cannot be decoded.
    return content if len(content) <= length else content[:length].decode("utf-8", "ignore").encode()
