"""Images that genimg-prepare packed: a few large files of decoded pixels, read without decoding anything.

A directory holds ``shard-00000.npy``, ``shard-00001.npy``, ... (uint8 [N, C, H, W]); where there are any, ``labels.npy``
(int64 [N]) and ``captions.jsonl`` (a JSON string a line); and ``dataset.json``, which is written last and describes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genimg.data.contents import digest_of_contents
from genimg.data.datasets.builtin import Source, digest
from genimg.errors import ConfigError, DataError
from genimg.types import height_width

FORMAT = 1
DESCRIPTION, LABELS, CAPTIONS = "dataset.json", "labels.npy", "captions.jsonl"


@dataclass(frozen=True)
class Shard:
    """One file of images.

    Attributes:
        file: its name.
        num_images: in it.
        num_bytes: of the file.
        sha256: of the file.
    """

    file: str
    num_images: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """What ``dataset.json`` says.

    Attributes:
        num_images: in all shards.
        shape: (C, H, W).
        class_names: by label; empty without labels.
        labelled, captioned: whether there is a file of labels, and of captions.
        shards: in order.
        source: where the images came from, in primitives: name, fingerprint, number of images, fit and more.
        genimg_version: that packed them.
    """

    num_images: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    labelled: bool
    captioned: bool
    shards: tuple[Shard, ...]
    source: dict[str, Any]
    genimg_version: str

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, **asdict(self)}
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")

    @classmethod
    def read(cls, path: Path) -> Description:
        """The description that a file holds.

        Raises:
            DataError: If it is damaged, or of another format.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format")
            if version == FORMAT:
                return cls._checked(content)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"the file {path} is damaged, or not genimg-prepare's ({reason}): pack the images again") from error
        raise DataError(
            f"the file {path} is of format {version}, and this genimg reads format {FORMAT}: pack the images again, or use the "
            "genimg that packed them"
        )

    @classmethod
    def _checked(cls, content: dict[str, Any]) -> Description:
        channels, height, width = map(int, content["shape"])
        description = cls(
            **content
            | {
                "shape": (channels, height, width),
                "class_names": tuple(map(str, content["class_names"])),
                "shards": tuple(Shard(**shard) for shard in content["shards"]),
            }
        )
        numbers = [
            description.num_images,
            *(each for shard in description.shards for each in (shard.num_images, shard.num_bytes)),
        ]
        flags = (description.labelled, description.captioned)
        if any(type(number) is not int or number < 1 for number in numbers) or any(type(flag) is not bool for flag in flags):
            raise TypeError("a number, or whether there are labels or captions, is of another type")
        if sum(shard.num_images for shard in description.shards) != description.num_images or description.num_images < 1:
            raise ValueError("the shards' numbers of images do not add up")
        if not isinstance(description.source["name"], str):
            raise TypeError("the source has no name")
        if any(Path(shard.file).name != shard.file for shard in description.shards):  # it may have been downloaded
            raise ValueError("a shard lies elsewhere")
        return description


class PreparedSource(Source):
    """Packed images, read through memory maps of the shards, which each process opens when it needs them.

    Args:
        folder: that genimg-prepare wrote.
        description: of its content.

    Raises:
        DataError: If a file is missing, truncated, or not what the description says.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder = folder
        self.description = description
        self.name = f"prepared {description.source['name']}"
        self.shape = description.shape
        self.class_names = description.class_names
        for shard in description.shards:
            _require_size(folder / shard.file, shard.num_bytes)
        # Of the contents, so that a copy elsewhere has the same; of the files too, in case they are not those described.
        files = digest_of_contents(folder, [shard.file for shard in description.shards])
        self.fingerprint = digest("prepared", *(shard.sha256 for shard in description.shards), files)
        if description.labelled:
            self.labels = self._read_labels()
        self.captioned = description.captioned
        if description.captioned:
            _require_size(folder / CAPTIONS, None)
        counts = [shard.num_images for shard in description.shards]
        self._starts = np.cumsum([0, *counts])  # the number of each shard's first image, and that of all images
        self._opened: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return self.description.num_images

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps: pickling one would send all of its pixels to the worker."""
        return {**self.__dict__, "_opened": {}}

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.read_many(np.array([index], dtype=np.int64))[0]

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            rows = numbers == number
            images[rows] = self._shard(number)[indices[rows] - self._starts[number]]
        return images

    def caption(self, index: int) -> str | None:
        return self._captions[index] if self.description.captioned else None

    @cached_property
    def _captions(self) -> list[str | None]:
        path = self.folder / CAPTIONS
        try:
            with open(path, encoding="utf-8") as lines:
                captions = [json.loads(line) for line in lines]
        except ValueError as error:
            raise DataError(f"the file {path} is damaged ({error}): copy it again, or pack the images again") from error
        if len(captions) != len(self):
            raise DataError(f"the file {path} holds {len(captions)} captions of {len(self)} images: copy it again")
        return captions

    def _read_labels(self) -> NDArray[np.int64]:
        path = self.folder / LABELS
        _require_size(path, None)
        labels = _load(path, None)
        if labels.shape != (len(self),) or labels.dtype != np.int64:
            raise DataError(
                f"the file {path} holds {labels.dtype} {list(labels.shape)}, not int64 [{len(self)}]: copy it again"
            )
        if labels.min() < 0 or labels.max() >= len(self.class_names) > 0:
            raise DataError(
                f"the file {path} holds labels from {labels.min()} to {labels.max()} of {len(self.class_names)} classes: copy "
                "it again, or pack the images again"
            )
        return labels

    def _shard(self, number: int) -> NDArray[np.uint8]:
        if number not in self._opened:
            shard = self.description.shards[number]
            path = self.folder / shard.file
            images = _load(path, "r")
            if images.shape != (shard.num_images, *self.shape) or images.dtype != np.uint8:
                raise DataError(
                    f"the file {path} holds {images.dtype} {list(images.shape)}, not uint8 {[shard.num_images, *self.shape]} "
                    f"as {DESCRIPTION} says: copy it again, or pack the images again"
                )
            self._opened[number] = np.asarray(images)  # NumPy's memmap class makes indexing slower
        return self._opened[number]


def prepared(*, root: str, image_size: int | Sequence[int], channels: int) -> Source:
    """Images that genimg-prepare packed.

    Args:
        root: its ``output``.
        image_size, channels: as they were packed, because the model is built by them.

    Raises:
        DataError: If ``root`` or one of its files is missing or damaged.
        ConfigError: If the images have another size.
    """
    folder = Path(root).expanduser()
    if not (folder / DESCRIPTION).is_file():
        what = "does not exist" if not folder.exists() else f"holds no {DESCRIPTION}, which genimg-prepare writes last"
        raise DataError(
            f"root={root} {what}: give a directory that genimg-prepare wrote to its end (the dataset folder reads image files)"
        )
    description = Description.read(folder / DESCRIPTION)
    own_channels, *own_size = description.shape
    wrong = []
    if height_width(image_size) != tuple(own_size):
        wrong.append(("image_size", image_size, own_size[0] if own_size[0] == own_size[1] else own_size))
    if channels != own_channels:
        wrong.append(("channels", channels, own_channels))
    if wrong:
        given, needed = (" ".join(f"{w[0]}={w[i]}".replace(", ", ",") for w in wrong) for i in (1, 2))
        raise ConfigError(
            f"{given} does not fit root={root}, which holds {own_size[0]}x{own_size[1]} images of {own_channels} "
            f"channel{'s' * (own_channels > 1)}: set {needed}"
        )
    return PreparedSource(folder, description)


def is_prepared(folder: Path) -> bool:
    """Whether a folder is one of genimg-prepare, even a damaged one; StyleGAN's datasets have a dataset.json as well."""
    file = folder / DESCRIPTION
    if not file.is_file():
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True  # its reader says what is wrong
    return isinstance(content, dict) and "shards" in content


def _require_size(path: Path, num_bytes: int | None) -> None:
    if not path.is_file():
        raise DataError(f"the file {path} is missing: copy it again, or pack the images again")
    found = path.stat().st_size
    if num_bytes is not None and found != num_bytes:
        raise DataError(
            f"the file {path} has {found} bytes, and {DESCRIPTION} says {num_bytes}: copy it again, or pack the images again"
        )


def _load(path: Path, mmap_mode: Any) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"the file {path} is damaged ({error}): copy it again, or pack the images again") from error
