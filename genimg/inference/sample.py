"""Sample a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from genimg.inference.checks import require_finite
from genimg.methods.base import Method
from genimg.types import Batch


@dataclass(frozen=True)
class Sampler:
    """A model and the settings to sample it.

    Attributes:
        method: Model in evaluation mode, on the device.
        device: Device of the model.
        seed: Seed; image i depends only on the seed, i and its condition.
        batch_size: Number of images in a batch.
        truncation: Truncation, for less varied samples; see ``Method.truncated``. None for none.
        noise: Noise of StyleGAN2; see ``Method.with_noise``. None for the noise as drawn.
        near: Image [1, C, H, W] in [-1, 1] around which to sample; None to sample the prior.
        spread: Spread around ``near``, in standard deviations of the prior.
    """

    method: Method
    device: torch.device
    seed: int
    batch_size: int
    truncation: float | None = None
    noise: str | None = None
    near: Tensor | None = None
    spread: float = 0.0

    def draw(self, indices: range) -> Batch:
        """Draw the random inputs of samples."""
        return self.method.draw(indices, self.seed)

    def check(self) -> None:
        """Reject a truncation or noise that the model does not support.

        Raises:
            ConfigError: If the model does not support an option; names it.
        """
        if self.truncation is not None:
            self.method.truncated(self.draw(range(1)), self.truncation)
        if self.noise is not None:
            self.method.with_noise(self.draw(range(1)), self.noise)

    def make(self, drawn: Batch) -> Tensor:
        """Return the images [N, C, H, W] in [-1, 1] of a drawn batch, on the CPU.

        Raises:
            CheckpointError: If the model returns NaN or infinite values.
        """
        if self.truncation is not None:
            drawn = self.method.truncated(drawn, self.truncation)
        if self.noise is not None:
            drawn = self.method.with_noise(drawn, self.noise)
        moved = {key: value.to(self.device) for key, value in drawn.items()}
        if self.near is not None:
            moved = self.method.perturb(self.near.to(self.device), moved, self.spread)
        return require_finite(self.method.sample(moved).float().cpu())

    def make_all(self, count: int, draw: Callable[[range], Batch], what: str) -> Iterator[tuple[range, Batch, Tensor]]:
        """Yield the positions, drawn inputs and images of each batch."""
        for start in tqdm(range(0, count, self.batch_size), desc=what, unit="batch", disable=None):
            positions = range(start, min(start + self.batch_size, count))
            drawn = draw(positions)
            yield positions, drawn, self.make(drawn)
