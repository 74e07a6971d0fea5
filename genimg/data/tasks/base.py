"""Image-to-image tasks, which derive source and target images from any dataset.

All randomness is a function of (seed, position) alone, as for every training sample. Tasks run on the device, after data
augmentation, so source and target stay aligned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.errors import ConfigError
from genimg.types import Batch


class Task(ABC):
    """Derives a source and a target from every image, and an image from a translator's output."""

    keys: ClassVar[tuple[str, ...]] = ("source", "target")
    """Keys of the batches."""

    @abstractmethod
    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return the number of channels of source and target, for images of shape (C, H, W).

        Raises:
            ConfigError: If the task does not support such images.
        """

    @abstractmethod
    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        """Return a batch with ``source`` [N, S, H, W] and ``target`` [N, T, H, W] in [-1, 1].

        Args:
            images: Images, float32 [N, C, H, W] in [-1, 1].
            positions: Positions of the samples, int64 [N].
            seed: Seed of training or evaluation.
        """

    @abstractmethod
    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the source [N, S, H, W] of a user's images to translate.

        Args:
            images: Images that are already noisy, small, grey or with holes, [N, C', h, w] in [-1, 1].
            mask: Mask [N, 1, h, w], 1 for missing pixels; None for tasks without masks.

        Raises:
            ConfigError: If the mask is missing or has no effect.
        """

    def fingerprint(self) -> str | None:
        """Return the digest of the files read besides the images; None if there are none."""
        return None

    @property
    def border(self) -> int:
        """Pixels that papers on this task crop from each side before metrics of the luma; 0 for no crop."""
        return 0

    def describe(self) -> str:
        """Return a description for records of evaluations; by default the class name."""
        return type(self).__name__

    def missing(self, source: Tensor) -> Tensor | None:
        """Return the mask of the pixels to fill, bool [N, 1, H, W]; None if the translator generates the whole image."""
        return None

    def shown(self, source: Tensor) -> Tensor:
        """Return a source as a viewable image [N, 1 or 3, H, W] in [-1, 1]."""
        return source

    def result(self, output: Tensor, source: Tensor) -> Tensor:
        """Return a translator's output, or a target, as an image in [-1, 1]."""
        return output


class Pair(Task):
    """Splits images into source and target along the channels.

    Args:
        source_channels: Number of channels S of the source, which come first.
    """

    def __init__(self, *, source_channels: int) -> None:
        self.source_channels = source_channels

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        return self.source_channels, shape[0] - self.source_channels

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        first, second = images[:, : self.source_channels], images[:, self.source_channels :]
        return dict(zip(self.keys, (channels_last(first), channels_last(second)), strict=True))

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "pairs")
        return images


class Unpaired(Pair):
    """Splits items of unpaired data into images of domain a and of domain b."""

    keys = ("a", "b")


def channels_last(images: Tensor) -> Tensor:
    """Return images in channels-last memory format, the fastest for convolutions."""
    return images.contiguous(memory_format=torch.channels_last)


def refuse_mask(mask: Tensor | None, name: str) -> None:
    """Reject a mask, for tasks without masks.

    Raises:
        ConfigError: If there is a mask.
    """
    if mask is not None:
        raise ConfigError(f"a mask has no effect on {name}", "remove it", key="mask")
