"""An infinite sampler, whose order and flips in every epoch are functions of (seed, position) alone.

A run can therefore resume exactly in the middle of an epoch, with any number of workers and ranks and no saved state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genimg.utils.rng import Stream, seed_of, uniform


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

    def groups(self, random: np.random.Generator) -> list[NDArray[np.int64]]:
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


@lru_cache(maxsize=3)
def epoch_order(seed: int, epoch: int, num_images: int, locality: Locality | None = None) -> NDArray[np.int64]:
    """Return the shuffled indices of one epoch, int64 [N]; the cached array must not be modified.

    A locality whose buffer holds all images has no effect.
    """
    random = np.random.default_rng(seed_of(seed, Stream.EPOCH_ORDER, epoch))
    if locality is None or num_images <= locality.buffer:
        return random.permutation(num_images)
    return np.concatenate([random.permutation(group) for group in locality.groups(random)])


class InfiniteSampler:
    """Chooses the image at each position, and whether to mirror it.

    Args:
        num_images: Number of images in the dataset.
        seed: Seed of training.
        horizontal_flip: Whether to mirror a random half of the samples.
        locality: Files that are read one after another; None shuffles all images together.
    """

    def __init__(self, num_images: int, *, seed: int, horizontal_flip: bool, locality: Locality | None = None) -> None:
        self.num_images = num_images
        self.locality = locality
        self.seed = seed
        self.horizontal_flip = horizontal_flip

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the dataset indices at positions ``start`` to ``stop``, across epochs if needed."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.num_images)
            piece = epoch_order(self.seed, epoch, self.num_images, self.locality)[offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]

    def flips(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return whether the sample at each position is mirrored."""
        if not self.horizontal_flip:
            return np.zeros(stop - start, dtype=np.bool_)
        return uniform(self.seed, Stream.FLIP, np.arange(start, stop), 1) < 0.5
