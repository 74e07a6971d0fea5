"""Images that a trained model generates, each with the noise from which it was generated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from genimg.data.captions import decode
from genimg.data.datasets.builtin import ImageDataset, digest
from genimg.data.packed_files import Latents
from genimg.data.packed_latents import LatentSource
from genimg.inference.checks import require_finite
from genimg.methods.capabilities import Generates, StartsFromNoise
from genimg.methods.options import SamplingOptions
from genimg.methods.sampling_options import described
from genimg.types import Batch
from genimg.utils.images import to_uint8

FIRST_INDEX = 2**32
"""Number of the first image among all that a seed gives. Samples and evaluations with the same seed have other images."""

_DRAWN_AT_ONCE = 64  # images, when labels and captions are drawn


class GeneratesFromNoise(Generates, StartsFromNoise, Protocol):
    """A model that generates images from noise of their shape."""


class GeneratedPairs(ImageDataset):
    """Images that a model generates, from the number ``FIRST_INDEX`` on, with their labels or captions.

    Images and noise are not those of samples and evaluations, because these would then measure a model on the noise that it was
    trained on.

    Args:
        method: Model in evaluation mode, on the device.
        options: Sampling options without randomness.
        shape: Shape of an image, (C, H, W).
        num_images: Number of images.
        seed: Seed; image i depends only on the seed and i.
        device: Device of the model.
        class_names: Class names by label; empty without labels.
        sha256: Digest of the model's weights.
        run: Path of the model's checkpoint, for the record.
    """

    def __init__(
        self,
        method: GeneratesFromNoise,
        options: SamplingOptions,
        shape: tuple[int, int, int],
        num_images: int,
        *,
        seed: int,
        device: torch.device,
        class_names: tuple[str, ...],
        sha256: str,
        run: str,
    ) -> None:
        self.name = "generated images"
        self.shape = shape
        self.fingerprint = digest("pairs", sha256, seed, num_images, json.dumps(described(options), sort_keys=True))
        self.captioned = "caption" in method.batch_keys
        self._method, self._options, self._num_images, self._seed, self._device = method, options, num_images, seed, device
        self._latents = Latents(shape, sha256, run, is_noise=True)
        self._has_labels = "label" in method.batch_keys
        if self._has_labels:
            self.class_names = class_names

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:  # type: ignore[override]
        """The labels of all images; None without labels."""
        return np.concatenate([drawn["label"].cpu().numpy() for drawn in self._drawn()]) if self._has_labels else None

    @cached_property
    def _captions(self) -> list[str]:
        return [text for drawn in self._drawn() for text in decode(drawn["caption"])]

    def _drawn(self) -> Iterator[Batch]:
        """Draw what all images are generated from, in pieces."""
        for start in range(0, self._num_images, _DRAWN_AT_ONCE):
            yield self._draw(np.arange(start, min(start + _DRAWN_AT_ONCE, self._num_images), dtype=np.int64))

    def __len__(self) -> int:
        return self._num_images

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.read_many(np.array([index], dtype=np.int64))[0]

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        drawn = {key: value.to(self._device) for key, value in self._draw(indices).items()}
        made = require_finite(self._method.sample(drawn, self._options).float().cpu())
        return np.ascontiguousarray(to_uint8(made).numpy())

    def caption(self, index: int) -> str | None:
        return self._captions[index] if self.captioned else None

    def noise_source(self) -> LatentSource:
        """Return the source of the images' noise."""
        return LatentSource(lambda images, indices: self._method.noise_of(self._draw(indices)).half().numpy(), self._latents)

    def _draw(self, indices: NDArray[np.int64]) -> Batch:
        return self._method.draw((FIRST_INDEX + indices).tolist(), self._seed)
