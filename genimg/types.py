"""Types shared by all modules: Batch, Metrics, LossFunction, Progress, PixelLikelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Batch = dict[str, Tensor]
"""Tensors by key. ``image``, or ``source`` and ``target`` of a task, or ``a`` and ``b`` of two domains: float32 [N, C, H, W] in
[-1, 1]; ``mask``: float32 [N, 1, H, W], 1 where pixels are missing; ``label``: int64 [N]; ``caption``: uint8 [N, L], UTF-8
padded with 0; ``latent``: float32 [N, Z]; ``noise_key``: int64 [N]; ``noise``: float16 [N, C, H, W], from which the images were
generated. A method may add keys."""

Microbatches = list[Batch]
"""The batch of one step: a single Batch, or several of equal size when gradients are accumulated."""

Metrics = dict[str, Tensor]
"""Detached 0-d tensors by name. They stay on the device, so a step never waits for it."""

LossFunction = Callable[[Batch], tuple[Tensor, Metrics]]
"""A function from a Batch to its scalar loss, averaged over the N samples, and the metrics to log."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Training progress at the start of a step, measured in images seen; the step number is derived from it.

    A method whose steps differ should decide by ``due`` and ``reached``. A step can then be captured as a CUDA graph for each
    combination of answers (training/step_graphs.py); a number read from ``images`` or ``step`` would be frozen in the graph.
    """

    images: int
    batch_size: int

    @property
    def step(self) -> int:
        return self.images // self.batch_size

    def due(self, interval: int) -> bool:
        """Return whether an action that runs every ``interval`` steps runs in this step."""
        return self.step % interval == 0

    def reached(self, images: int) -> bool:
        """Return whether at least ``images`` images have been seen."""
        return self.images >= images


class PixelLikelihood(Protocol):
    """A likelihood whose parameters are a decoder's output; see ``losses.likelihoods``."""

    @property
    def description(self) -> str:
        """Description shown beside a reported number."""
        ...

    def num_outputs(self, channels: int) -> int:
        """Return the number of output channels for images with ``channels`` channels."""
        ...

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        """Convert negative log-likelihoods of images from nats to bits per pixel and channel."""
        ...

    @property
    def bits_name(self) -> str:
        """Metric name of these bits: ``bits_per_dim`` only if they come from a probability."""
        ...


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return an image size such as ``32`` or ``[64, 48]`` as (height, width).

    Raises:
        ValueError: If it is neither one positive integer nor two of them.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ValueError(f"image_size={image_size!r} is not a size: give one number, or [height, width], in pixels")
    return pair[0], pair[1]
