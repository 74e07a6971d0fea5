"""The order of images that are read fastest file by file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Locality:
    """The files of a dataset whose images are read fastest in the order in which they are stored.

    An epoch visits such files in random order, in groups of at most ``buffer`` images (but at least one file), and shuffles the
    images of each group. While a group is used, only its files are read.

    Attributes:
        sizes: Number of images in each file, int64 [F], positive; the dataset's images are those of the first file, then those
            of the second, and so on.
        buffer: Maximum number of images in a group of several files.
    """

    sizes: NDArray[np.int64]
    buffer: int

    def order(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the indices of all images in the order of an epoch, int64 [N]; any permutation if the buffer holds all."""
        count = int(self.sizes.sum())
        if count <= self.buffer:
            return random.permutation(count)
        return np.concatenate([random.permutation(group) for group in self._groups(random)])

    def _groups(self, random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Return the indices of each group's images in the order in which the groups are visited."""
        starts = np.cumsum(self.sizes) - self.sizes
        groups: list[list[NDArray[np.int64]]] = []
        count = 0
        for file in random.permutation(len(self.sizes)).tolist():
            size = int(self.sizes[file])
            if not groups or count + size > self.buffer:
                groups.append([])
                count = 0
            groups[-1].append(np.arange(starts[file], starts[file] + size, dtype=np.int64))
            count += size
        return [np.concatenate(group) for group in groups]

    def of(self, indices: NDArray[np.int64]) -> Locality:
        """Return the locality of a part of the images, given their increasing indices, int64 [N]."""
        files = np.searchsorted(np.cumsum(self.sizes), indices, side="right")
        sizes = np.bincount(files, minlength=len(self.sizes)).astype(np.int64)
        return Locality(sizes[sizes > 0], self.buffer)
