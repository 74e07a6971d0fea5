"""Handling of images that cannot be decoded: each is counted and replaced by the next decodable one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import CorruptImageError, ImageDataset
from genimg.errors import DataError
from genimg.utils.mounting import place

log = logging.getLogger(__name__)


class Corruption:
    """Counts undecodable images.

    Args:
        allowed: Number of distinct corrupt images to skip before an error; None if none may be skipped.
    """

    def __init__(self, allowed: int | None) -> None:
        self.allowed = allowed or 0
        self._is_fixed = allowed is None
        self._place = place()
        self.seen: set[str] = set()

    def report(self, message: str) -> None:
        """Warn about a corrupt image.

        Raises:
            DataError: If there are more than ``allowed``.
        """
        if message in self.seen:
            return
        self.seen.add(message)
        if len(self.seen) > self.allowed:
            raise self._place.mounted(too_many(sorted(self.seen), None if self._is_fixed else self.allowed))
        log.warning("skipped a corrupt image: %s", message)


def too_many(problems: Sequence[str], allowed: int | None) -> DataError:
    """Return the error for more corrupt images than ``max_corrupt`` allows; it lists the first ten."""
    names = "\n  ".join(problems[:10])
    if allowed is None:
        return DataError("images that cannot be read cannot be measured", f"repair or remove them:\n  {names}")
    return DataError(
        f"max_corrupt={allowed} is exceeded, with {len(problems)} corrupt image{'s' * (len(problems) > 1)} so far",
        f"remove or repair them, or skip up to N of them with max_corrupt=N:\n  {names}",
    )


def none_decodable(source: ImageDataset, problem: str) -> DataError:
    """Return the error for a dataset without any decodable image."""
    return DataError(
        f"none of the {len(source)} images of {source.name} can be decoded", f"repair them; the first is {problem}"
    )


def read_valid(source: ImageDataset, index: int, allowed: int) -> tuple[NDArray[np.uint8] | None, int, list[str]]:
    """Return image ``index`` or the first decodable one after it, its index, and the errors of corrupt images.

    After more than ``allowed`` corrupt images, the image is None, and the caller must stop the run.
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
    raise none_decodable(source, problems[0])


def read_many_valid(
    source: ImageDataset, indices: NDArray[np.int64], allowed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Read many images like ``read_valid``: uint8 [N, C, H, W], the indices read, int64 [N], and the errors.

    If there are too many corrupt images, the remaining images are black.
    """
    try:
        return source.read_many(indices), indices, []
    except CorruptImageError:  # rare, so images are read one by one only now
        images, taken = np.zeros((len(indices), *source.shape), dtype=np.uint8), indices.copy()
    problems: list[str] = []
    for row, index in enumerate(indices.tolist()):
        image, taken[row], found = read_valid(source, index, allowed)
        problems += found
        if image is None:
            break
        images[row] = image
    return images, taken, problems
