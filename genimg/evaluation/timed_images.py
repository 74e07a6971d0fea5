"""Images whose generation is timed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.evaluation.image_sets import GeneratedImages, ImageSet


class TimedImages(ImageSet):
    """A model's images, with the time that their generation takes.

    Args:
        images: The images; timing does not change them.
    """

    def __init__(self, images: GeneratedImages) -> None:
        self._images = images
        self.name, self.class_names = images.name, images.class_names
        self._batches: list[tuple[int, float]] = []  # number of images and seconds

    def __len__(self) -> int:
        return len(self._images)

    def images(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        self._wait()
        before = time.perf_counter()
        found = self._images.images(indices)
        self._wait()
        self._batches.append((len(indices), time.perf_counter() - before))
        return found

    def describe(self) -> dict[str, Any]:
        return self._images.describe()

    def check(self) -> None:
        self._images.check()

    @property
    def seconds_per_image(self) -> float:
        """Mean time per image on one device. If possible, the first batch is omitted, because it may also choose algorithms."""
        batches = self._batches[1:] or self._batches
        return sum(seconds for _, seconds in batches) / max(sum(count for count, _ in batches), 1)

    def _wait(self) -> None:
        """Wait until the device has finished."""
        if self._images.device.type != "cpu":
            torch.accelerator.synchronize(self._images.device)
