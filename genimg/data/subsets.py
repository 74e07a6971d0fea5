"""Some of a dataset's images, chosen at random as a function of (seed, index) and stratified by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genimg.utils.rng import Stream, keys_of

if TYPE_CHECKING:
    from genimg.data.datasets.builtin import ImageDataset

_SEED = 0  # of subsets that must be the same in every run, whatever the seed of its training
SELECTION = "random, stratified by class"
"""How ``subset_of`` and ``fixed_subset`` choose, for provenance and cache keys: another choice gets another name."""


def random_subset(count: int, total: int, *, seed: int, labels: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Choose ``count`` of the numbers 0 to ``total`` - 1 at random, stratified by class.

    The images with the lowest ``keys_of(seed, Stream.SUBSET, index)``, 64 bits of SplitMix64, are chosen, so the choice depends
    on nothing else: not on the platform, the batch size or the number of processes. Evenly spaced numbers would not do: MNIST's
    training file alternates two populations of writers, and a lattice of even step sees one of them alone.

    With labels, each class gives its share of ``count`` (see ``shares``), again the images with the lowest hashes.

    A smaller choice is part of every larger one; with labels all but a few images are, because shares are rounded.

    Args:
        count: How many, from 0 to ``total``.
        total: Number of images.
        seed: Of the choice.
        labels: Classes of the images, int64 [total]; None where there are none.

    Returns:
        Distinct numbers, int64 [count], increasing.

    Raises:
        ValueError: if ``count`` is out of range.
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
    """The numbers 0 to ``total`` - 1 by their hashes: a permutation, int64 [total]."""
    return np.argsort(keys_of(seed, Stream.SUBSET, np.arange(total, dtype=np.int64)), kind="stable")


def lowest(count: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose ``count`` of these distinct numbers as ``fixed_subset`` does; their places in ``numbers``, increasing."""
    return np.sort(np.argsort(keys_of(_SEED, Stream.SUBSET, numbers), kind="stable")[:count])


def shares(count: int, sizes: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Divide ``count`` among classes in proportion to their sizes, by largest remainders (Hamilton's method).

    Args:
        count: To divide; at least 0.
        sizes: Of the classes, int64 [K], not all 0.
        seed: Of which of equal remainders come first.

    Returns:
        Whole numbers, int64 [K], that sum to ``count``, each less than 1 from the exact share.
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
    """Labels, int64 [count], in random order, of which each class has its share; arguments as for ``shares``."""
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), shares(count, sizes, seed=seed))
    return labels[random_order(count, seed=seed)]


def fixed_subset(count: int, total: int, labels: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Choose as ``random_subset`` does, the same numbers in every run."""
    return random_subset(count, total, seed=_SEED, labels=labels)


def subset_of(source: ImageDataset, count: int) -> NDArray[np.int64]:
    """Choose ``count`` of the source's images, or all if it has fewer; the same ones in every run."""
    return fixed_subset(min(count, len(source)), len(source), source.labels)


def selection(count: int, total: int) -> dict[str, str]:
    """What provenance says about a choice of ``count`` of ``total`` images; nothing where all of them are taken."""
    return {"selection": SELECTION} if count < total else {}
