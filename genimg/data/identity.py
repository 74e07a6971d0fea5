"""The identity of a model's training images, recorded in checkpoints and compared when a run resumes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from genimg.data.datasets.builtin import ImageDataset

Identity = dict[str, Any]  # primitives

_REFUSED = ("num_images", "class_names", "class_counts", "order")
_NAMED = {
    "fingerprint": "the images' contents",
    "labels": "the images' labels",
    "captions": "the images' captions",
    "masks": "the masks",
    "validation": "the images for validation",
}
_MOST_SHOWN = 3  # classes named in a message


def identity_of(source: ImageDataset, *, captions: bool = False, masks: str | None = None) -> Identity:
    """Return the identity of training images, as primitives.

    Args:
        source: Training images.
        captions: Whether the model uses captions; if not, they are not read.
        masks: Fingerprint of a task's mask files; None if it has none.

    Returns:
        ``num_images``; ``part_of``, the number of images from which ``data.max_images`` has chosen them; ``shape`` (C, H, W);
        ``class_names`` and ``class_counts`` by label; ``order``, a digest of the file names if there are files;
        ``fingerprint`` of the contents; digests of ``labels``, ``captions`` and ``masks``; and the fingerprint of the images
        for ``validation``. Missing items are None.
    """
    names, counts = source.file_names(), None
    if source.labels is not None:
        counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    texts = source.captions(np.arange(len(source), dtype=np.int64)) if captions and source.captioned else None
    return {
        "name": source.name,
        "num_images": len(source),
        "part_of": source.part_of,
        "shape": list(source.shape),
        "class_names": list(source.class_names),
        "class_counts": counts,
        "order": None if names is None else _digest(names),
        "fingerprint": source.fingerprint,
        "labels": None if source.labels is None else hashlib.sha256(source.labels.astype("<i8").tobytes()).hexdigest(),
        "captions": None if texts is None else _digest(text or "" for text in texts),
        "masks": masks,
        "validation": None if source.validation is None else source.validation.fingerprint,
    }


def had_labels(state: Mapping[str, Any]) -> bool:
    """Return whether the training images of a checkpoint had labels; True if the checkpoint does not say so."""
    record = state.get("data") or state  # early checkpoints record the names of the classes beside the other entries
    return "class_names" not in record or len(record["class_names"]) > 0


def refused_differences(before: Identity, now: Identity) -> list[str]:
    """Return the differences that change the meaning of labels or the order of images, one phrase each."""
    differing = [key for key in _REFUSED if key in before and before[key] != now[key]]
    found = []
    if "num_images" in differing:
        found.append(f"the data now has {now['num_images']} images, but the checkpoint was trained on {before['num_images']}")
    if "class_names" in differing:
        found.append(f"the classes are now {_shown(now['class_names'], before['class_names'])}, but were "
                     f"{_shown(before['class_names'], now['class_names'])}")  # fmt: skip
    elif "class_counts" in differing and "num_images" not in differing:
        found.append(f"the images of each class are now {now['class_counts']}, but were {before['class_counts']}")
    if differing == ["order"]:
        found.append(f"the {now['num_images']} files have different names, or another order")
    return found


def warned_differences(before: Identity, now: Identity) -> list[str]:
    """Return which other data differ, one phrase each; keys that the record lacks are ignored."""
    return [name for key, name in _NAMED.items() if key in before and before[key] != now[key]]


def _shown(names: list[str], others: list[str]) -> str:
    """Return the first names that differ from the other list at the same index, with their indices."""
    if not names:
        return "none"
    moved = [i for i, name in enumerate(names) if i >= len(others) or others[i] != name]
    if not moved:
        return f"{len(names)}, the last of them {names[-1]}"
    more = f" and {len(moved) - _MOST_SHOWN} more" if len(moved) > _MOST_SHOWN else ""
    return ", ".join(f"{i} {names[i]}" for i in moved[:_MOST_SHOWN]) + more


def _digest(texts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(os.fsencode(text) + b"\0")
    return found.hexdigest()
