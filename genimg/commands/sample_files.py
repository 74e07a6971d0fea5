"""Where genimg-sample puts single images: files below a directory, or one archive."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genimg.commands.conditions import KEYS
from genimg.files import atomically
from genimg.images import write_png
from genimg.interfaces import Batch


class Sink(ABC):
    """Takes images, batch by batch."""

    path: Path

    @abstractmethod
    def add(self, place: str, indices: range, drawn: Batch, images: Tensor) -> None:
        """Take uint8 images [N, C, H, W].

        Args:
            place: of all of them, for names of files; empty, or it ends with a slash.
            indices: N numbers.
            drawn: what they were made of.
        """

    @abstractmethod
    def close(self) -> None:
        """When all images are there."""


class Files(Sink):
    """PNG files, and metadata.jsonl, which says which image has which label or caption, as ``data=folder`` reads it.

    Args:
        folder: to write to.
        class_name: of a label, for a directory of each class; None for none.
    """

    def __init__(self, folder: Path, class_name: Callable[[int], str] | None) -> None:
        self.path = folder
        self._class_name = class_name
        self._lines: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, place: str, indices: range, drawn: Batch, images: Tensor) -> None:
        places = [place] * len(indices)
        if self._class_name is not None and not place:
            places = [f"{self._class_name(label)}/" for label in drawn["label"].tolist()]
        names = [f"{each}{index:06d}.png" for each, index in zip(places, indices, strict=True)]
        for name, image in zip(names, images, strict=True):
            write_png(image, self.path / name)
        self._lines += _lines(names, drawn)

    def close(self) -> None:
        if self._lines:
            with atomically(self.path / "metadata.jsonl") as temporary:
                temporary.write_text("\n".join(self._lines) + "\n", encoding="utf-8")


class Archive(Sink):
    """An .npz with ``images``, uint8 [N, H, W, C], and ``labels``, int64 [N], where there are some; it appears whole.

    So ``data=npz``, genimg-eval and most other programs read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, place: str, indices: range, drawn: Batch, images: Tensor) -> None:
        self._images.append(images.permute(0, 2, 3, 1))
        if "label" in drawn:
            self._labels.append(drawn["label"].cpu())

    def close(self) -> None:
        arrays: dict[str, Any] = {"images": torch.cat(self._images).numpy()}
        if self._labels:
            arrays["labels"] = torch.cat(self._labels).numpy()
        with atomically(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def _lines(names: Sequence[str], drawn: Batch) -> list[str]:
    """Which image has which condition; nothing without conditions."""
    entries: list[dict[str, object]] = [{"file_name": name} for name in names]
    for option, key in KEYS.items():
        if key in drawn:
            for entry, value in zip(entries, drawn[key].cpu().numpy(), strict=True):
                # A caption's last character may be cut.
                is_text = key == "caption"
                entry[option] = value.tobytes().rstrip(b"\0").decode("utf-8", "ignore") if is_text else int(value)
    return [json.dumps(entry, ensure_ascii=False) for entry in entries if len(entry) > 1]
