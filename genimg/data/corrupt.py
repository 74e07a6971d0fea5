"""What happens to images that cannot be decoded: they are counted, and the next decodable one takes the place of each."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import CorruptImageError, Source

log = logging.getLogger(__name__)


class Corruption:
    """Counts undecodable images.

    Args:
        allowed: distinct corrupt images after which to stop (``data.max_corrupt``).
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.seen: set[str] = set()

    def report(self, message: str) -> None:
        """Warn about a corrupt image.

        Raises:
            ValueError: when there are more than allowed.
        """
        if message in self.seen:
            return
        self.seen.add(message)
        if len(self.seen) > self.allowed:
            names = "\n  ".join(sorted(self.seen)[:10])
            raise ValueError(
                f"{len(self.seen)} corrupt image{'s' * (len(self.seen) > 1)} in the data, more than "
                f"data.max_corrupt={self.allowed} allows; remove or repair them (a training passes them over with a higher "
                f"data.max_corrupt):\n  {names}"
            )
        log.warning("skipped a corrupt image: %s", message)


def read_valid(source: Source, index: int, allowed: int) -> tuple[NDArray[np.uint8] | None, int, list[str]]:
    """Image ``index``, or the first decodable one after it; the index that was read; and what was corrupt.

    Gives up after more than ``allowed`` corrupt images, with no image: whoever counts them stops the run.
    """
    problems: list[str] = []
    for step in range(len(source)):
        candidate = (index + step) % len(source)
        try:
            return source.read(candidate), candidate, problems
        except CorruptImageError as error:
            problems.append(str(error))
            if len(problems) > allowed:
                return None, index, problems
    raise ValueError(f"none of the {len(source)} images of {source.name} can be decoded; the first: {problems[0]}")


def read_many_valid(
    source: Source, indices: NDArray[np.int64], allowed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """As ``read_valid`` for many: uint8 [N, C, H, W], the indices that were read, int64 [N], and what was corrupt.

    Images that were given up are black.
    """
    try:
        return source.read_many(indices), indices, []
    except CorruptImageError:  # rare: only now is it worth going through them one by one
        images, taken = np.zeros((len(indices), *source.shape), dtype=np.uint8), indices.copy()
    problems: list[str] = []
    for row, index in enumerate(indices.tolist()):
        image, taken[row], found = read_valid(source, index, allowed)
        problems += found
        if image is None:
            break
        images[row] = image
    return images, taken, problems
