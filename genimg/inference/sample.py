"""Sample a trained model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genimg.inference.checks import require_finite
from genimg.methods.capabilities import Generates, SamplesNearby
from genimg.methods.sampling_options import described
from genimg.types import Batch
from genimg.utils.progress import showing_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampler:
    """A model and the settings for sampling it.

    Attributes:
        method: Model in evaluation mode, on the device.
        device: Device of the model.
        seed: Seed; image i depends only on the seed, i and its condition.
        batch_size: Number of images in a batch.
        options: Sampling options, of the same class as the model's ``sampling_options``; None uses the latter.
        near: Image [1, C, H, W] in [-1, 1] around which to sample; None to sample the prior.
        spread: Spread around ``near``, in standard deviations of the prior.
    """

    method: Generates
    device: torch.device
    seed: int
    batch_size: int
    options: Any = None
    near: Tensor | None = None
    spread: float = 0.0

    def draw(self, indices: range) -> Batch:
        """Draw the random inputs of samples."""
        return self.method.draw(indices, self.seed)

    def check(self) -> None:
        """Check the options, before any work.

        Raises:
            ConfigError: If the model does not support an option; the message names it.
        """
        if self.options is not None:
            self.method.check_options(self.options)

    def make(self, drawn: Batch) -> Tensor:
        """Return the images [N, C, H, W] in [-1, 1] of a drawn batch, on the CPU.

        Raises:
            CheckpointError: If the model returns NaN or infinite values.
        """
        moved = {key: value.to(self.device) for key, value in drawn.items()}
        with showing_steps():
            if self.near is not None:
                assert isinstance(self.method, SamplesNearby)
                moved = self.method.perturb(self.near.to(self.device), moved, self.spread)
            return require_finite(self.method.sample(moved, self.options).float().cpu())

    def make_all(self, count: int, draw: Callable[[range], Batch], what: str) -> Iterator[tuple[range, Batch, Tensor]]:
        """Yield the positions, drawn inputs and images of each batch."""
        bar = tqdm(total=count, desc=what, unit="image", disable=None)
        seconds = 0.0
        for start in range(0, count, self.batch_size):
            positions = range(start, min(start + self.batch_size, count))
            drawn = draw(positions)
            before = time.perf_counter()
            images = self.make(drawn)
            seconds += time.perf_counter() - before
            bar.update(len(positions))
            yield positions, drawn, images
        bar.close()
        if (evaluations := described(self.options or self.method.sampling_options).get("num_evaluations")) is not None:
            log.info("%d network evaluations and %.3g s per image", evaluations, seconds / max(count, 1))
