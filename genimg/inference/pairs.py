"""Images that a trained model generates, each with the noise from which it was generated."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from genimg.data.captions import decode
from genimg.data.datasets.builtin import ImageDataset, digest
from genimg.data.packed_files import Latents
from genimg.data.packed_latents import LatentEncoder
from genimg.inference.checks import require_finite
from genimg.methods.capabilities import Generates, StartsFromNoise
from genimg.methods.options import SamplingOptions
from genimg.types import Batch
from genimg.utils.images import to_uint8

_DRAWN_AT_ONCE = 1024  # images, when labels and captions are drawn


class GeneratesFromNoise(Generates, StartsFromNoise, Protocol):
    """A model that generates images from noise of their shape."""


class GeneratedPairs(ImageDataset):
    """The images of ``genimg-sample`` with the same seed and options, with their labels or captions.

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
        self.fingerprint = digest("pairs", sha256, seed, num_images, repr(options))
        self._method, self._options, self._num_images, self._seed, self._device = method, options, num_images, seed, device
        self._latents = Latents(shape, sha256, run, is_noise=True)
        conditions = self._conditions()
        if "label" in conditions:
            self.labels, self.class_names = np.concatenate(conditions["label"]), class_names
        self.captioned = "caption" in conditions
        self._captions: list[Any] = [text for texts in conditions.get("caption", []) for text in texts]

    def _conditions(self) -> dict[str, list[Any]]:
        """Return the labels or the captions of all images, if the model has any, in pieces."""
        found: dict[str, list[Any]] = {}
        for start in range(0, self._num_images, _DRAWN_AT_ONCE):
            drawn = self._method.draw(range(start, min(start + _DRAWN_AT_ONCE, self._num_images)), self._seed)
            if "label" in drawn:
                found.setdefault("label", []).append(drawn["label"].cpu().numpy())
            if "caption" in drawn:
                found.setdefault("caption", []).append(decode(drawn["caption"]))
        return found

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

    def encoder(self) -> LatentEncoder:
        """Return the source of the images' noise."""
        return LatentEncoder(lambda images, indices: self._method.noise_of(self._draw(indices)).half().numpy(), self._latents)

    def _draw(self, indices: NDArray[np.int64]) -> Batch:
        return self._method.draw(indices.tolist(), self._seed)
