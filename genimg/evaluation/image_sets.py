"""Sets of images to evaluate: a model's samples or reconstructions, or a dataset's images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.loader import ImageLoader
from genimg.data.subsets import fixed_subset, selection
from genimg.errors import ConfigError, DataError
from genimg.methods.capabilities import Generates, Reconstructs, TakesConditions
from genimg.methods.sampling_options import described
from genimg.types import Batch
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import steady


class ImageSet(ABC):
    """An indexed set of uint8 images.

    Attributes:
        name: Name for messages and provenance.
        fingerprint: Hexadecimal digest that identifies the images; None disables caching.
        class_names: Class names by label; empty without labels.
        labels: Labels of all images, int64 [N], if they are known in advance.
    """

    name: str
    fingerprint: str | None = None
    class_names: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Return the images at these indices, uint8 [N, C, H, W], and their labels, int64 [N], if there are any."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return everything that determines the images, as primitives; complete only after a call of ``images``."""

    def subset(self, count: int) -> NDArray[np.int64]:
        """Choose the indices of ``count`` images at random, stratified by class; the choice is the same in every run.

        Raises:
            ValueError: If there are fewer images.
        """
        return fixed_subset(count, len(self), self.labels)

    def check(self) -> None:  # noqa: B027 - most sets have nothing to check
        """Check the images that ``images`` returned since the last call; may wait for the device.

        Raises:
            NonFiniteImagesError: If they hold NaN or infinite values.
        """


class DatasetImages(ImageSet):
    """The images of a dataset, without augmentation.

    Args:
        data: Loader of the dataset.
    """

    def __init__(self, data: ImageLoader) -> None:
        self.data = data
        self.name = data.source.name
        self.class_names = data.source.class_names
        self.labels = data.source.labels
        self._labels = None if self.labels is None else torch.from_numpy(self.labels)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self.data.source.fingerprint

    def __len__(self) -> int:
        return len(self.data.source)

    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        return self.data.images(indices), None if self._labels is None else self._labels[torch.from_numpy(indices)]

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "fingerprint": self.fingerprint,
            "image_shape": "x".join(map(str, self.data.source.shape)),
            "augmentation": "none",
        }


class Subset(ImageSet):
    """A random subset of a set of images, stratified by class.

    Args:
        images: Set to choose from.
        count: Number of images to choose.

    Raises:
        ConfigError: If there are fewer images.
    """

    def __init__(self, images: ImageSet, count: int) -> None:
        if not 1 <= count <= len(images):
            raise ConfigError(f"num_images={count} is not between 1 and {len(images)}, the number of images of {images.name}")
        self._all = images
        self._indices = images.subset(count)
        self.name = images.name
        self.class_names = images.class_names
        self.labels = None if images.labels is None else images.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        return self._all.images(self._indices[indices])

    def describe(self) -> dict[str, Any]:
        return self._all.describe() | selection(len(self), len(self._all))


class ClassImages(ImageSet):
    """The images of one class in a set of images.

    Args:
        images: Set with known labels.
        label: Label of the class.
        within: Indices of the images to choose from; None for all.
    """

    def __init__(self, images: ImageSet, label: int, within: NDArray[np.int64] | None = None) -> None:
        assert images.labels is not None
        indices = np.arange(len(images), dtype=np.int64) if within is None else within
        self._all = images
        self._indices = indices[images.labels[indices] == label]
        self.name = f"{images.name}, class {label}"
        self.class_names = images.class_names
        self._label = label

    @property
    def fingerprint(self) -> str | None:  # type: ignore[override]
        of = self._all.fingerprint
        if of is None:
            return None
        return hashlib.sha256(f"{of} class {self._label} ".encode() + self._indices.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        return self._all.images(self._indices[indices])

    def describe(self) -> dict[str, Any]:
        return self._all.describe() | {"label": self._label, "num_images": len(self)}

    def check(self) -> None:
        self._all.check()


class GeneratedImages(ImageSet):
    """A model's images, rounded to uint8 as when they are saved. Image i is a function of (seed, i) and its label.

    The labels have exactly the class shares of the training data, up to rounding to ``count``.

    Args:
        method: Model with the weights to evaluate.
        count: Number of images.
        seed: Seed of the images and their labels.
        device: Device of the model.
        class_names: Class names of the training data.
        weights: Name of the model's weights, for the provenance.
        options: Options of sampling; None for the model's default.
    """

    def __init__(
        self,
        method: Generates,
        *,
        count: int,
        seed: int,
        device: torch.device,
        class_names: tuple[str, ...] = (),
        weights: str = "raw",
        options: Any = None,
    ) -> None:
        self.method = method
        self.count = count
        self.seed = seed
        self.device = device
        self.name = "the model"
        self.class_names = class_names
        self._shape: tuple[int, ...] | None = None
        self._finite = FiniteCheck(self.name)
        self._weights = weights
        self.options = method.sampling_options if options is None else options
        self._labels = method.random_labels(count, seed) if isinstance(method, TakesConditions) else None
        self.labels = None if self._labels is None else self._labels.cpu().numpy()
        method.before_sampling()

    def __len__(self) -> int:
        return self.count

    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        drawn = self.method.draw(indices.tolist(), self.seed)
        if self._labels is not None:
            drawn["label"] = self._labels[torch.from_numpy(indices)]
        drawn = {key: value.to(self.device) for key, value in drawn.items()}
        images = self.method.sample(drawn, self.options)
        self._finite.add(images, indices)
        self._shape = tuple(images.shape[1:])
        return to_uint8(images), drawn.get("label")

    def check(self) -> None:
        self._finite.check()

    def describe(self) -> dict[str, Any]:
        return described(self.options) | {
            "source": "model",
            "image_shape": None if self._shape is None else "x".join(map(str, self._shape)),
            "weights": self._weights,
            "mode": "eval",
            "seed": self.seed,
            "augmentation": "none",
        }


class Reconstructions:
    """A dataset's images with their reconstructions by an autoencoder, given their conditions.

    Args:
        method: Autoencoder.
        originals: Images to reconstruct.
    """

    def __init__(self, method: Reconstructs, originals: DatasetImages) -> None:
        self._method = method
        self._originals = originals
        self._finite = FiniteCheck("the model's reconstructions")

    def pairs(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return originals and their reconstructions, each uint8 [N, C, H, W]."""
        original = self._originals.images(indices)[0]
        conditions = self._originals.data.conditions(indices, self._method.batch_keys)
        images = self._method.reconstruct({"image": to_float(original)} | conditions)
        self._finite.add(images, indices)
        return original, to_uint8(images)

    def check(self) -> None:
        """See ``ImageSet.check``."""
        self._finite.check()


class ComputedImages(ImageSet):
    """Images that a function computes from a dataset's batches.

    Args:
        data: Loader of the dataset.
        chosen: Indices of the images to use.
        seed: Seed of the random numbers of the dataset's task.
        make: Function from a batch and the indices of its images to float images [N, C, H, W] in [-1, 1].

    Attributes:
        of: Fingerprint of the dataset.
    """

    def __init__(
        self, data: ImageLoader, chosen: NDArray[np.int64], seed: int, make: Callable[[Batch, NDArray[np.int64]], Tensor]
    ) -> None:
        self.name, self.of = data.source.name, data.source.fingerprint
        self._data, self._chosen, self._seed, self._make = data, chosen, seed, make

    def __len__(self) -> int:
        return len(self._chosen)

    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        with steady(self._seed, int(indices[0])):
            chosen = self._chosen[indices]
            return to_uint8(self._make(self._data.examples(chosen, self._seed), chosen)), None

    def describe(self) -> dict[str, Any]:
        return {"source": self.name}


class NonFiniteImagesError(DataError):
    """Images hold NaN or infinite values."""


class FiniteCheck:
    """Detector of images with NaN or infinite values, which rounding to uint8 would hide.

    Results stay on the device until ``check``, so no synchronisation is needed after every batch.

    Args:
        name: Name of the images, for the message.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._broken: list[Tensor] = []
        self._indices: list[NDArray[np.int64]] = []

    def add(self, images: Tensor, indices: NDArray[np.int64]) -> None:
        """Record float images [N, C, H, W] with these indices."""
        self._broken.append(~torch.isfinite(images).flatten(1).all(dim=1))
        self._indices.append(indices)

    def check(self) -> None:
        """Check the images recorded since the last call.

        Raises:
            NonFiniteImagesError: If an image holds NaN or infinite values; the message names the first one.
        """
        if not self._broken:
            return
        broken, indices = torch.cat(self._broken).cpu().numpy(), np.concatenate(self._indices)
        self._broken, self._indices = [], []
        if broken.any():
            raise NonFiniteImagesError(
                f"{int(broken.sum())} of {len(broken)} images of {self._name} hold NaN or infinite values (the first "
                f"is image {int(indices[broken][0])}): the model has diverged; evaluate an earlier checkpoint"
            )
