"""The words that every other module speaks: Batch, Metrics, Progress, Update, Method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Batch = dict[str, Tensor]
"""``image``, or ``source`` and ``target`` of a task, or ``a`` and ``b`` of two domains: float32 [N, C, H, W] in [-1, 1];
``mask``: float32 [N, 1, H, W], 1 where pixels are missing; ``label``: int64 [N]; ``caption``: uint8 [N, L], UTF-8 padded with
0; ``latent``: float32 [N, Z]; ``noise_key``: int64 [N]; a method may add keys."""

Microbatches = list[Batch]
"""One step's batch: a single Batch, or several equal ones when gradients are accumulated."""

Metrics = dict[str, Tensor]
"""0-d, detached, left on the device, so that a step never waits for the device."""

LossFunction = Callable[[Batch], tuple[Tensor, Metrics]]
"""The scalar loss of a Batch, a mean over its N samples, and what to log."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands at the start of a step. Images seen is the one clock; the step is derived from it."""

    images: int
    batch_size: int

    @property
    def step(self) -> int:
        return self.images // self.batch_size

    def due(self, interval: int) -> bool:
        """Whether something done every ``interval`` steps is done in this one."""
        return self.step % interval == 0


class PixelLikelihood(Protocol):
    """What a decoder's output is made for; see ``losses.likelihoods``."""

    @property
    def description(self) -> str:
        """What stands beside a reported number."""
        ...

    def num_outputs(self, channels: int) -> int:
        """Channels of the output for images of so many."""
        ...

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        """Negative log-likelihoods of images in nats as bits per pixel and channel."""
        ...

    @property
    def bits_name(self) -> str:
        """What these bits are called: ``bits_per_dim`` only where they are of a probability."""
        ...


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """``32`` or ``[64, 48]`` as (height, width).

    Raises:
        ValueError: if it is neither one positive integer nor two.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ValueError(f"image_size={image_size!r} is not a size: give one number, or [height, width], in pixels")
    return pair[0], pair[1]
