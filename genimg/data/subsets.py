"""Random subsets of a dataset, a function of (seed, index) and stratified by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genimg.utils.rng import Stream, keys_of

if TYPE_CHECKING:
    from genimg.data.datasets.builtin import ImageDataset

_SEED = 0  # seed of subsets that are the same in every run
SELECTION = "random, stratified by class"
"""The selection method of ``subset_of`` and ``fixed_subset``, for records and cache keys; change it with the method."""


def random_subset(count: int, total: int, *, seed: int, labels: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Choose ``count`` of the numbers 0 to ``total`` - 1 at random, stratified by class.

    The images with the lowest ``keys_of(seed, Stream.SUBSET, index)``, 64 bits of SplitMix64, are chosen, so the choice does
    not depend on the platform, the batch size or the number of processes. Evenly spaced numbers are unsuitable: MNIST's
    training file alternates two populations of writers, and an even step selects only one of them.

    With labels, each class gets its share of ``count`` (see ``shares``); its images with the lowest hashes are chosen.

    A smaller subset is part of every larger one. With labels, a few images may differ, because shares are rounded.

    Args:
        count: Number of images to choose, from 0 to ``total``.
        total: Number of images.
        seed: Seed of the choice.
        labels: Labels of the images, int64 [total]; None for no stratification.

    Returns:
        Distinct indices, int64 [count], increasing.

    Raises:
        ValueError: If ``count`` is out of range.
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} images cannot be chosen from {total}")
    if count == total:
        return np.arange(total, dtype=np.int64)
    order = random_order(total, seed=seed)
    if labels is None:
        return np.sort(order[:count])
    assert labels.shape == (total,)
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    sizes = np.bincount(labels)
    ranks = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[ranks < np.repeat(shares(count, sizes, seed=seed), sizes)])


def random_order(total: int, *, seed: int) -> NDArray[np.int64]:
    """Return the numbers 0 to ``total`` - 1, ordered by their hashes, int64 [total]."""
    return np.argsort(keys_of(seed, Stream.SUBSET, np.arange(total, dtype=np.int64)), kind="stable")


def lowest(count: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose ``count`` of the distinct ``numbers`` as ``fixed_subset`` does, and return their indices in ascending order."""
    return np.sort(np.argsort(keys_of(_SEED, Stream.SUBSET, numbers), kind="stable")[:count])


def shares(count: int, sizes: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Divide ``count`` among classes in proportion to their sizes, by largest remainders (Hamilton's method).

    Args:
        count: Number to divide, at least 0.
        sizes: Sizes of the classes, int64 [K], not all 0.
        seed: Seed that breaks ties of equal remainders.

    Returns:
        Integers, int64 [K], that sum to ``count``, each less than 1 from the exact share.
    """
    total = int(sizes.sum())
    quotas = [divmod(count * size, total) for size in sizes.tolist()]  # Python's integers do not overflow
    whole, remainders = np.array(quotas, dtype=np.int64).T
    ties = keys_of(seed, Stream.SUBSET_TIE, np.arange(len(sizes), dtype=np.int64))
    order = np.lexsort((ties, -remainders))
    found = whole.copy()
    found[order[: count - whole.sum()]] += 1
    return found


def random_labels(count: int, sizes: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return labels in random order, int64 [count], in which each class has its share; for the arguments, see ``shares``."""
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), shares(count, sizes, seed=seed))
    return labels[random_order(count, seed=seed)]


def fixed_subset(count: int, total: int, labels: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Choose a subset like ``random_subset``, the same in every run."""
    return random_subset(count, total, seed=_SEED, labels=labels)


def subset_of(source: ImageDataset, count: int) -> NDArray[np.int64]:
    """Choose ``count`` images of a dataset, or all if it has fewer; the same in every run."""
    return fixed_subset(min(count, len(source)), len(source), source.labels)


def selection(count: int, total: int) -> dict[str, str]:
    """Return the record of choosing ``count`` of ``total`` images; empty if all are chosen."""
    return {"selection": SELECTION} if count < total else {}
