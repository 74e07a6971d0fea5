"""Outputs of genimg-sample for separate images: files in a directory, or one archive."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.inference.conditions import KEYS
from genimg.types import Batch
from genimg.utils.files import atomically
from genimg.utils.images import on_white, save_png, to_float, to_uint8
from genimg.utils.outputs import Record, own_folder, require_own_file, require_own_folder, stamp_archive

_BATCH = 256


class Sink(AbstractContextManager["Sink"], ABC):
    """Writes batches of images; the output appears complete when the ``with`` block ends without an error."""

    path: Path

    @property
    def picture(self) -> Path:
        """Path of the grid beside the directory or archive."""
        return self.path.with_name(self.path.name.removesuffix(".npz") + ".png")

    @abstractmethod
    def add(self, place: str, indices: range, drawn: Batch, images: Tensor) -> None:
        """Add a batch of images.

        Args:
            place: Prefix of the file names; empty, or ending with a slash.
            indices: Indices of the N images.
            drawn: Inputs that the images were generated from.
            images: Images, uint8 [N, C, H, W].
        """


class PngFolder(Sink):
    """Writes PNG files and metadata.jsonl, with the images' labels or captions in the format of ``data=folder``.

    Args:
        folder: Output directory; it is replaced if genimg-sample wrote it.
        class_name: Function from label to class name, to write one directory per class; None writes one directory.
        record: Metadata stored in the folder.

    Raises:
        ConfigError: If the folder has contents that genimg-sample did not write.
    """

    def __init__(self, folder: Path, class_name: Callable[[int], str] | None, record: Record) -> None:
        self.path = folder
        self._class_name = class_name
        self._record = record
        self._lines: list[str] = []
        self._open = ExitStack()
        require_own_folder(folder, record["made_by"])

    def __enter__(self) -> Self:
        self._folder = self._open.enter_context(own_folder(self.path, self._record))
        return self

    def add(self, place: str, indices: range, drawn: Batch, images: Tensor) -> None:
        places = [place] * len(indices)
        if self._class_name is not None and not place:
            places = [f"{self._class_name(label)}/" for label in drawn["label"].tolist()]
        names = [f"{each}{index:06d}.png" for each, index in zip(places, indices, strict=True)]
        for name, image in zip(names, images, strict=True):
            save_png(image, self._folder / name)
        self._lines += _lines(names, drawn)

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None and self._lines:
            (self._folder / "metadata.jsonl").write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        return self._open.__exit__(*error)


class NpzArchive(Sink):
    """Writes an .npz file atomically: ``arr_0``, uint8 [N, H, W, 3], and ``arr_1``, int64 [N], if there are labels.

    These are the names of ADM's samples (Dhariwal & Nichol 2021), which other evaluators read. Images that are not RGB are
    converted, by repeating grey or compositing on white, and also stored unchanged as ``images``. Labels are also stored as
    ``labels``.

    Args:
        path: Path of the file; it is replaced if genimg-sample wrote it.
        record: Metadata stored in the file.

    Raises:
        ConfigError: If the file exists and genimg-sample did not write it.
    """

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self._record = record
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []
        require_own_file(path, f"output={path}")

    def add(self, place: str, indices: range, drawn: Batch, images: Tensor) -> None:
        self._images.append(images)
        if "label" in drawn:
            self._labels.append(drawn["label"].cpu())

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            return
        images = torch.cat(self._images)
        arrays: dict[str, Any] = {"arr_0": _channels_last(_as_rgb(images))}
        if images.shape[1] != 3:
            arrays["images"] = _channels_last(images)
        if self._labels:
            arrays["arr_1"] = arrays["labels"] = torch.cat(self._labels).numpy()
        with atomically(self.path) as temporary:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            stamp_archive(temporary, self._record)


def _channels_last(images: Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _as_rgb(images: Tensor) -> Tensor:
    """Convert uint8 images [N, C, H, W] to RGB, in batches, because floats take four times the memory."""
    if images.shape[1] == 4:
        return torch.cat([to_uint8(on_white(to_float(some))) for some in images.split(_BATCH)])
    return images.expand(-1, 3, -1, -1)


def _lines(names: Sequence[str], drawn: Batch) -> list[str]:
    """Return lines of JSON with the condition of each image; none without conditions."""
    entries: list[dict[str, object]] = [{"file_name": name} for name in names]
    for option, key in KEYS.items():
        if key in drawn:
            for entry, value in zip(entries, drawn[key].cpu().numpy(), strict=True):
                # The last character of a caption may be incomplete.
                is_text = key == "caption"
                entry[option] = value.tobytes().rstrip(b"\0").decode("utf-8", "ignore") if is_text else int(value)
    return [json.dumps(entry, ensure_ascii=False) for entry in entries if len(entry) > 1]
