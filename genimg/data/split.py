"""Split a dataset into training images and held-out images for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ArrayDataset, ImageDataset, digest
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.subsets import subset_of
from genimg.errors import ConfigError


class Subset(ImageDataset):
    """A subset of a dataset's images, in its order.

    Args:
        source: The whole dataset, kept as ``whole``.
        indices: Increasing indices of the images, int64 [N], kept as ``indices``.
    """

    def __init__(self, source: ImageDataset, indices: NDArray[np.int64]) -> None:
        self.whole, self.indices = source, indices
        self.name, self.shape, self.class_names = source.name, source.shape, source.class_names
        self.labels = None if source.labels is None else source.labels[indices]
        self.captioned, self.task, self.latent_key = source.captioned, source.task, source.latent_key
        self.locality = None if source.locality is None else source.locality.of(indices)
        self.fingerprint = digest("part", source.fingerprint, indices.tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.whole.read(int(self.indices[index]))

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.whole.read_many(self.indices[indices])

    def expect(self, indices: NDArray[np.int64]) -> None:
        self.whole.expect(self.indices[indices])

    def title(self, index: int) -> str:
        return self.whole.title(int(self.indices[index]))

    def file_names(self) -> Sequence[str] | None:
        names = self.whole.file_names()
        return None if names is None else [names[index] for index in self.indices.tolist()]

    def caption(self, index: int) -> str | None:
        return self.whole.caption(int(self.indices[index]))

    def captions(self, indices: NDArray[np.int64]) -> list[str | None]:
        return self.whole.captions(self.indices[indices])

    def latents(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        return self.whole.latents(self.indices[indices])


def without_validation(source: ImageDataset, validation: float) -> ImageDataset:
    """Return the training images; their ``validation`` has the held-out ones, chosen at random and stratified by class.

    The choice depends only on the number of images and their labels. Runs with different seeds therefore use the same
    images for validation.

    Args:
        source: All images.
        validation: Share of held-out images, at least 0 and below 1; 0 returns ``source`` unchanged.

    Raises:
        ConfigError: If the share is out of range or leaves fewer than two images on a side, or the dataset already has
            validation images.
    """
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise ConfigError(f"validation={validation} must be a share of the images, from 0 to less than 1")
    if validation == 0:
        return source
    if source.validation is not None:
        raise ConfigError(
            f"validation={validation} has no effect, because {source.name} has {len(source.validation)} validation images "
            "in a separate folder: set validation=0"
        )
    if isinstance(source, UnpairedDataset):
        return _without_validation_of_domains(source, validation)
    count = round(validation * len(source))
    if count < 2 or len(source) - count < 2:
        raise ConfigError(f"validation={validation} of {len(source)} images leaves {count} for validation and "
                          f"{len(source) - count} to train on: each side needs at least two")  # fmt: skip
    chosen = subset_of(source, count)
    kept_out = np.zeros(len(source), dtype=np.bool_)
    kept_out[chosen] = True
    training, training.validation = (_part(source, np.flatnonzero(which)) for which in (~kept_out, kept_out))
    return training


def at_most(source: ImageDataset, max_images: int | None) -> ImageDataset:
    """Return ``max_images`` random training images, with the same images for validation.

    Like the choice of images for validation, it does not depend on the run, and a smaller part belongs to every larger one,
    except for a few images if shares of classes are rounded.

    Args:
        source: Training images.
        max_images: Number of images (of unpaired data, from each domain); None returns ``source`` unchanged.

    Raises:
        ConfigError: If there are fewer images.
    """
    if max_images is None or max_images == len(source):
        return source
    if max_images > len(source):
        raise ConfigError(f"max_images={max_images} has no effect, because {source.name} has {len(source)} images: remove it")
    part = random_part(source, max_images)
    part.validation, part.part_of = source.validation, len(source)
    return part


def of_classes(source: ImageDataset, labels: Sequence[int]) -> ImageDataset:
    """Return the images of some classes, in the order of the dataset; new labels number these classes in their old order.

    Held-out images of other classes are removed from ``validation``, too.

    Args:
        source: Images with labels.
        labels: Distinct labels of the classes to keep.
    """
    assert source.labels is not None
    kept = np.unique(np.array(labels, dtype=np.int64))
    part = _part(source, np.flatnonzero(np.isin(source.labels, kept)))
    assert part.labels is not None
    part.labels = np.searchsorted(kept, part.labels).astype(np.int64)
    part.class_names = tuple(source.class_names[label] for label in kept.tolist())
    part.validation = None if source.validation is None else of_classes(source.validation, labels)
    return part


def random_part(source: ImageDataset, count: int) -> ImageDataset:
    """Return ``count`` random images (of unpaired data, from each domain), or all if there are fewer, without validation."""
    if isinstance(source, UnpairedDataset):
        return UnpairedDataset(random_part(source.a, count), random_part(source.b, count))
    return _part(source, subset_of(source, count))


def _without_validation_of_domains(source: UnpairedDataset, share: float) -> UnpairedDataset:
    """Split each domain separately, because an image of the smaller one is part of several items."""
    a, b = (without_validation(domain, share) for domain in (source.a, source.b))
    assert a.validation is not None
    assert b.validation is not None
    training = UnpairedDataset(a, b)
    training.validation = UnpairedDataset(a.validation, b.validation)
    return training


def _part(source: ImageDataset, indices: NDArray[np.int64]) -> ImageDataset:
    if isinstance(source, Subset):  # a part of a part is read from the whole
        nested = Subset(source.whole, source.indices[indices])
        nested.labels, nested.class_names = None if source.labels is None else source.labels[indices], source.class_names
        return nested
    if not isinstance(source, ArrayDataset):
        return Subset(source, indices)
    labels = None if source.labels is None else source.labels[indices]
    captions = source.captions(indices) if source.captioned else None
    part = ArrayDataset(source.name, source.images[indices], labels, source.class_names, captions)
    part.task = source.task
    return part
