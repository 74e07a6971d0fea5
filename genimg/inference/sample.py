"""Sample a trained model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genimg.inference.between import Between
from genimg.inference.checks import require_finite
from genimg.methods.capabilities import Generates, SamplesNearby
from genimg.methods.options import SamplingOptions
from genimg.types import Batch
from genimg.utils.progress import Progress, showing_steps

log = logging.getLogger(__name__)


@dataclass
class Cost:
    """The number of images that a sampler has made so far, and the time that they took.

    Attributes:
        num_images: Number of images.
        seconds: Time that the model took, in seconds.
    """

    num_images: int = 0
    seconds: float = 0.0


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
        between: Another seed, and the position between its latents and those of ``seed``; None to use only ``seed``.
        cost: Number of images made so far, and their time.
    """

    method: Generates
    device: torch.device
    seed: int
    batch_size: int
    options: SamplingOptions | None = None
    near: Tensor | None = None
    spread: float = 0.0
    between: Between | None = None
    cost: Cost = field(default_factory=Cost)

    def draw(self, indices: range) -> Batch:
        """Draw the random inputs of samples."""
        drawn = self.method.draw(indices, self.seed)
        if self.between is None:
            return drawn
        return self.between.mixed(drawn, self.method.draw(indices, self.between.seed_to))

    def make_all(self, count: int, draw: Callable[[range], Batch], what: str) -> Iterator[tuple[range, Batch, Tensor]]:
        """Yield the positions, drawn inputs and images of each batch.

        Images are [N, C, H, W] in [-1, 1], on the CPU. If ``near`` is set, all images must have the same condition.

        Raises:
            CheckpointError: If the model returns NaN or infinite values.
        """
        bar = Progress(total=count, desc=what, unit="image")
        located: Batch | None = None
        for start in range(0, count, self.batch_size):
            positions = range(start, min(start + self.batch_size, count))
            drawn = draw(positions)
            before = time.perf_counter()
            with showing_steps():
                moved = {key: value.to(self.device) for key, value in drawn.items()}
                if self.near is not None:
                    assert isinstance(self.method, SamplesNearby)
                    if located is None:
                        located = self.method.locate(self.near.to(self.device), moved)
                    moved = self.method.perturb(located, moved, self.spread)
                images = require_finite(self.method.sample(moved, self.options).float().cpu())
            self.cost.seconds += time.perf_counter() - before
            self.cost.num_images += len(positions)
            bar.update(len(positions))
            yield positions, drawn, images
        bar.close()

    def log_cost(self) -> None:
        """Log the number of network evaluations and the time per image, if the options determine the number of evaluations."""
        evaluations = (self.options or self.method.sampling_options).num_evaluations
        if evaluations is not None and self.cost.num_images:
            log.info(
                "%d network evaluation%s and %.3g s per image%s",
                evaluations, "s" * (evaluations != 1), self.cost.seconds / self.cost.num_images,
                "" if self.near is None else ", not counting the evaluations that find the noise of near=",
            )  # fmt: skip
