"""Images that training never sees, kept to measure on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ArrayDataset, ImageDataset, digest
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.subsets import subset_of
from genimg.errors import ConfigError


class Subset(ImageDataset):
    """Some images of a source, in its order.

    Args:
        source: all of them; kept as ``whole``.
        indices: int64 [N], increasing.
    """

    def __init__(self, source: ImageDataset, indices: NDArray[np.int64]) -> None:
        self.whole, self._indices = source, indices
        self.name, self.shape, self.class_names = source.name, source.shape, source.class_names
        self.labels = None if source.labels is None else source.labels[indices]
        self.captioned, self.task = source.captioned, source.task
        self.fingerprint = digest("part", source.fingerprint, indices.tolist())

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.whole.read(int(self._indices[index]))

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.whole.read_many(self._indices[indices])

    def title(self, index: int) -> str:
        return self.whole.title(int(self._indices[index]))

    def file_names(self) -> Sequence[str] | None:
        names = self.whole.file_names()
        return None if names is None else [names[index] for index in self._indices.tolist()]

    def caption(self, index: int) -> str | None:
        return self.whole.caption(int(self._indices[index]))

    def captions(self, indices: NDArray[np.int64]) -> list[str | None]:
        return self.whole.captions(self._indices[indices])


def without_validation(source: ImageDataset, validation: float) -> ImageDataset:
    """The images to train on; ``validation`` holds the others, chosen at random, stratified by class.

    The choice depends on the number of images and their labels alone, not on the seed of a training: runs of several seeds
    are measured on the same images.

    Args:
        source: All images.
        validation: Share of the images that are kept out, at least 0 and below 1; 0 leaves the source as it is.

    Raises:
        ConfigError: For another share, one that leaves fewer than two images on a side, or a source that has a validation.
    """
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise ConfigError(f"validation={validation} must be a share of the images, from 0 to less than 1")
    if validation == 0:
        return source
    if source.validation is not None:
        raise ConfigError(f"validation={validation} has no effect, because {source.name} has {len(source.validation)} images "
                          "for validation in a folder of their own: set validation=0")  # fmt: skip
    if isinstance(source, UnpairedDataset):
        return _without_validation_of_domains(source, validation)
    count = round(validation * len(source))
    if count < 2 or len(source) - count < 2:
        raise ConfigError(f"validation={validation} of {len(source)} images leaves {count} for validation and "
                          f"{len(source) - count} to train on: two are needed on each side")  # fmt: skip
    chosen = subset_of(source, count)
    kept_out = np.zeros(len(source), dtype=np.bool_)
    kept_out[chosen] = True
    training, training.validation = (_part(source, np.flatnonzero(which)) for which in (~kept_out, kept_out))
    return training


def random_part(source: ImageDataset, count: int) -> ImageDataset:
    """``count`` random images, or all; without a validation. Of unpaired data, as many of either domain."""
    if isinstance(source, UnpairedDataset):
        return UnpairedDataset(random_part(source.a, count), random_part(source.b, count))
    return _part(source, subset_of(source, count))


def _without_validation_of_domains(source: UnpairedDataset, share: float) -> UnpairedDataset:
    """Of each domain by itself: an image of the smaller one is part of several items."""
    a, b = (without_validation(domain, share) for domain in (source.a, source.b))
    assert a.validation is not None
    assert b.validation is not None
    training = UnpairedDataset(a, b)
    training.validation = UnpairedDataset(a.validation, b.validation)
    return training


def _part(source: ImageDataset, indices: NDArray[np.int64]) -> ImageDataset:
    if not isinstance(source, ArrayDataset):
        return Subset(source, indices)
    labels = None if source.labels is None else source.labels[indices]
    captions = source.captions(indices) if source.captioned else None
    part = ArrayDataset(source.name, source.images[indices], labels, source.class_names, captions)
    part.task = source.task
    return part
