"""An infinite sampler, whose order and flips in every epoch are functions of (seed, position) alone.

A run can therefore resume exactly in the middle of an epoch, with any number of workers and ranks and no saved state.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genimg.data.locality import Locality
from genimg.utils.rng import Stream, seed_of, uniform


@lru_cache(maxsize=3)
def epoch_order(seed: int, epoch: int, num_images: int, locality: Locality | None = None) -> NDArray[np.int64]:
    """Return the shuffled indices of one epoch, int64 [N]; the cached array must not be modified."""
    random = np.random.default_rng(seed_of(seed, Stream.EPOCH_ORDER, epoch))
    return random.permutation(num_images) if locality is None else locality.order(random)


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
