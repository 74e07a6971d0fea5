"""Images packed by genimg-prepare into a few large files of decoded pixels."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genimg.data.contents import digest_of_contents
from genimg.data.datasets.builtin import CorruptImageError, ImageDataset, digest
from genimg.data.packed_files import (
    CAPTIONS,
    CHECKSUMS,
    DESCRIPTION,
    LABELS,
    Description,
    check_header,
    damaged,
    read_vector,
    read_whole,
    require_size,
)
from genimg.data.packed_latents import PackedLatents
from genimg.errors import ConfigError, DataError
from genimg.types import height_width
from genimg.utils.json_text import parse_json

log = logging.getLogger(__name__)


class PreparedDataset(ImageDataset):
    """Packed images, read through memory maps of the shards, which each process opens when needed.

    Every image is compared with its CRC-32 when it is read, except in directories of older versions of genimg, which
    have no checksums.

    Args:
        folder: Directory written by genimg-prepare.
        description: Description of its content.

    Raises:
        DataError: If a file is missing, truncated, or does not match the description.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder = folder
        self.description = description
        self.name = f"prepared {description.source['name']}"
        self.shape = description.shape
        self.class_names = description.class_names
        self._offsets = [self._offset_of_pixels(number) for number in range(len(description.shards))]
        # Computed from the contents, so a copy has the same fingerprint. The files are included, in case they do not match.
        files = digest_of_contents(folder, [shard.file for shard in description.shards])
        self.fingerprint = digest("prepared", *(shard.sha256 for shard in description.shards), files)
        self._checksums = read_vector(folder / CHECKSUMS, description, np.uint32) if description.has_checksums else None
        if description.labelled:
            self.labels = self._read_labels()
        self.captioned = description.captioned
        if description.captioned:
            read_whole(folder / CAPTIONS, description)
        self._latents = None if description.latents is None else PackedLatents(folder, description)
        self.latent_key = None if self._latents is None else self._latents.key
        counts = [shard.num_images for shard in description.shards]
        self._starts = np.cumsum([0, *counts])  # index of each shard's first image, and the total
        self._opened: dict[int, NDArray[np.uint8]] = {}
        if not description.has_checksums:
            log.warning("%s was packed without checksums, so damaged images would not be noticed: pack them again", folder)

    def __len__(self) -> int:
        return self.description.num_images

    def __getstate__(self) -> dict[str, Any]:
        """Omit the memory maps, because pickling one would send all of its pixels to the worker."""
        return {**self.__dict__, "_opened": {}}

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.read_many(np.array([index], dtype=np.int64))[0]

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            rows = numbers == number
            images[rows] = self._shard(number)[indices[rows] - self._starts[number]]
        self._require_undamaged(images, indices)
        return images

    def _require_undamaged(self, images: NDArray[np.uint8], indices: NDArray[np.int64]) -> None:
        """Compare the images in memory with their checksums; the files might change after they are read.

        Raises:
            CorruptImageError: If an image differs; the message names the first one.
        """
        if self._checksums is None:
            return
        for row, (index, checksum) in enumerate(zip(indices.tolist(), self._checksums[indices].tolist(), strict=True)):
            if zlib.crc32(images[row]) != checksum:
                number = int(np.searchsorted(self._starts, index, side="right")) - 1
                raise CorruptImageError(
                    f"{self.folder / self.description.shards[number].file}: image {index - self._starts[number]} of this file "
                    f"differs from the packed one (image {index} of the dataset): copy the file again, or pack the images again"
                )

    def latents(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        assert self._latents is not None
        return self._latents.read(indices)

    def caption(self, index: int) -> str | None:
        return self._captions[index] if self.description.captioned else None

    @cached_property
    def _captions(self) -> list[str | None]:
        path = self.folder / CAPTIONS
        try:
            lines = read_whole(path, self.description).decode("utf-8").removesuffix("\n").split("\n")
            captions = [parse_json(line) for line in lines]
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise damaged(path, f"{type(error).__name__}: {error}") from error
        if len(captions) != len(self):
            raise DataError(f"the file {path} holds {len(captions)} captions of {len(self)} images: copy it again")
        if not all(isinstance(caption, str | None) for caption in captions):
            raise damaged(path, "a caption is not text")
        return captions

    def _read_labels(self) -> NDArray[np.int64]:
        path = self.folder / LABELS
        labels = read_vector(path, self.description, np.int64).copy()
        if labels.min() < 0 or labels.max() >= len(self.class_names) > 0:
            raise DataError(
                f"the file {path} holds labels from {labels.min()} to {labels.max()} of {len(self.class_names)} classes: copy "
                "it again, or pack the images again"
            )
        return labels

    def _offset_of_pixels(self, number: int) -> int:
        """Check the size and header of a shard, and return the offset of its pixels in bytes."""
        shard = self.description.shards[number]
        path = self.folder / shard.file
        require_size(path, shard.num_bytes)
        with open(path, "rb") as file:
            start = check_header(file, path, (shard.num_images, *self.shape), np.uint8)
        if start + shard.num_images * math.prod(self.shape) != shard.num_bytes:
            raise damaged(path, f"its {shard.num_bytes} bytes do not match its header")
        return start

    def _shard(self, number: int) -> NDArray[np.uint8]:
        if number not in self._opened:
            shard = self.description.shards[number]
            path = self.folder / shard.file
            try:
                images = np.memmap(path, np.uint8, "r", self._offsets[number], (shard.num_images, *self.shape))
            except ValueError as error:
                raise damaged(path, str(error)) from error
            self._opened[number] = np.asarray(images)  # NumPy's memmap class makes indexing slower
        return self._opened[number]


def prepared(*, root: str, image_size: int | Sequence[int], channels: int) -> ImageDataset:
    """Open the images that genimg-prepare packed.

    Args:
        root: The ``output`` directory of genimg-prepare.
        image_size, channels: Size and channels of the packed images, from which the model is built.

    Raises:
        DataError: If ``root`` or one of its files is missing or damaged.
        ConfigError: If the images have another size or number of channels.
    """
    folder = Path(root).expanduser()
    if not (folder / DESCRIPTION).is_file():
        what = "does not exist" if not folder.exists() else f"holds no {DESCRIPTION}, which genimg-prepare writes last"
        raise DataError(
            f"root={root} {what}: give a directory that genimg-prepare has completed (the dataset folder reads image files)"
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
    return PreparedDataset(folder, description)


def is_prepared(folder: Path) -> bool:
    """Return whether genimg-prepare wrote a folder, even if damaged; StyleGAN's datasets also have a dataset.json."""
    file = folder / DESCRIPTION
    if not file.is_file():
        return False
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError:
        return True  # reading it will report the error
    return isinstance(content, dict) and "shards" in content
