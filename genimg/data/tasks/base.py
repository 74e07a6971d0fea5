"""What a translator is given and what it shall make of it, made from the images of any dataset.

Whatever is random about it is a function of (seed, position) alone, as everything about a training sample; it is made on the
device, after the augmentation of the data, so that source and target stay aligned.
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
    """Makes a source and a target of every image, and an image of what a translator answers."""

    keys: ClassVar[tuple[str, ...]] = ("source", "target")
    """Of the batches."""

    @abstractmethod
    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """How many the source and the target have, for images of this shape (C, H, W).

        Raises:
            ConfigError: If the task cannot be made of such images.
        """

    @abstractmethod
    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        """The batch of images [N, C, H, W] in [-1, 1]: ``source`` [N, S, H, W] and ``target`` [N, T, H, W] in [-1, 1].

        Args:
            images: float32.
            positions: of the samples, int64 [N].
            seed: of the training, or of an evaluation.
        """

    @abstractmethod
    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """The source [N, S, H, W] of images that come as they are to be translated, as a user has them.

        Args:
            images: [N, C', h, w] in [-1, 1]; noisy, small, grey or with holes already.
            mask: [N, 1, h, w], 1 where pixels are missing; None where the task has none.

        Raises:
            ConfigError: If the mask is missing or has no use.
        """

    def fingerprint(self) -> str | None:
        """Digest of files that it reads besides the images; None if it reads none."""
        return None

    @property
    def border(self) -> int:
        """Pixels that papers on this task crop along each side before they measure the luma; 0 where they do not."""
        return 0

    def describe(self) -> str:
        """What it does to images, for records of evaluations; by default its name alone."""
        return type(self).__name__

    def missing(self, source: Tensor) -> Tensor | None:
        """The mask of the pixels to fill in, bool [N, 1, H, W]; None where a translator makes the whole image."""
        return None

    def shown(self, source: Tensor) -> Tensor:
        """A source as a picture [N, 1 or 3, H, W] in [-1, 1]."""
        return source

    def result(self, output: Tensor, source: Tensor) -> Tensor:
        """What a translator answers (or a target), as an image in [-1, 1]."""
        return output


class Pair(Task):
    """The two halves of images whose first channels are the source's.

    Args:
        source_channels: S.
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
    """Images of domain a and of domain b, which have nothing to do with each other."""

    keys = ("a", "b")


def channels_last(images: Tensor) -> Tensor:
    """As convolutions are fastest with."""
    return images.contiguous(memory_format=torch.channels_last)


def refuse_mask(mask: Tensor | None, name: str) -> None:
    """For tasks without one.

    Raises:
        ConfigError: If there is a mask.
    """
    if mask is not None:
        raise ConfigError(f"a mask has no effect on {name}", "remove it", key="mask")
