"""Latents of packed images: ``latents.npy``, float16 [N, C, h, w], and their CRC-32.

They are encoded once by a trained autoencoder, or are the noise from which a model generated the images.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genimg.data.packed_files import LATENT_CHECKSUMS, Description, Latents, check_header, damaged, read_vector, require_size
from genimg.errors import DataError

LATENTS = "latents.npy"


@dataclass(frozen=True)
class LatentSource:
    """Source of the latents of images: an encoder, which needs the images, or noise, which their indices determine.

    Attributes:
        latents_of: Function from uint8 images [N, C', H, W] and their indices in the dataset, int64 [N], to latents, float16
            [N, C, h, w].
        latents: Shape, origin and kind of the latents.
    """

    latents_of: Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.float16]]
    latents: Latents


class PackedLatents:
    """The latents of a packed directory, read through a memory map that each process opens when needed.

    Args:
        folder: Directory written by genimg-prepare.
        description: Description of the directory's content, including latents.

    Raises:
        DataError: If a file is missing, truncated, or does not match the description.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        assert description.latents is not None
        self.key = description.latents.key
        self._path = folder / LATENTS
        self._shape = (description.num_images, *description.latents.shape)
        size = 2 * math.prod(self._shape)
        require_size(self._path, None)
        with open(self._path, "rb") as file:
            self._offset = check_header(file, self._path, self._shape, np.float16)
        require_size(self._path, self._offset + size)
        self._checksums = read_vector(folder / LATENT_CHECKSUMS, description, np.uint32)
        self._opened: NDArray[np.float16] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Omit the memory map, because pickling it would send all latents to the worker."""
        return {**self.__dict__, "_opened": None}

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the latents of images, float16 [N, C, h, w].

        Raises:
            DataError: If they differ from the packed ones.
        """
        if self._opened is None:
            try:
                self._opened = np.asarray(np.memmap(self._path, np.float16, "r", self._offset, self._shape))
            except ValueError as error:
                raise damaged(self._path, str(error)) from error
        latents = self._opened[indices]
        for row, (index, checksum) in enumerate(zip(indices.tolist(), self._checksums[indices].tolist(), strict=True)):
            if zlib.crc32(latents[row]) != checksum:
                raise DataError(
                    f"the latents or noise of image {index} in {self._path} differ from the packed ones: pack the images again"
                )
        return latents
