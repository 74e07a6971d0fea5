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
    """A method and how it is to be sampled.

    Attributes:
        method: In evaluation mode, on the device.
        device: Of the method.
        seed: Image i depends on the seed and i alone, and on its condition.
        batch_size: Of the network.
        truncation: Less varied samples; see ``Method.truncated``. None for none.
        noise: Of StyleGAN2; see ``Method.with_noise``. None as drawn.
        near: Image [1, C, H, W] in [-1, 1] around which to sample; None for samples of the prior.
        spread: Of ``near``, in standard deviations of the prior.
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
        """Draw everything random that these samples need."""
        return self.method.draw(indices, self.seed)

    def check(self) -> None:
        """Refuse a truncation or noise that the model does not take.

        Raises:
            ConfigError: Naming the option.
        """
        if self.truncation is not None:
            self.method.truncated(self.draw(range(1)), self.truncation)
        if self.noise is not None:
            self.method.with_noise(self.draw(range(1)), self.noise)

    def make(self, drawn: Batch) -> Tensor:
        """Return the images [N, C, H, W] in [-1, 1] of a drawn batch, on the CPU.

        Raises:
            CheckpointError: If the model answers NaN.
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
        """Yield, batch by batch, positions, what was drawn for them, and images."""
        for start in tqdm(range(0, count, self.batch_size), desc=what, unit="batch", disable=None):
            positions = range(start, min(start + self.batch_size, count))
            drawn = draw(positions)
            yield positions, drawn, self.make(drawn)
