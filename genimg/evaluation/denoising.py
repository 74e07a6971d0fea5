"""Measure how well a diffusion model denoises real images, by noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.feature_extraction import full_float32, mean_over_ranks, ranges
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.names import short_count
from genimg.evaluation.result import Evaluation
from genimg.methods.capabilities import Denoises
from genimg.types import Batch
from genimg.utils.distributed import shard, world_size
from genimg.utils.images import to_float
from genimg.utils.rng import Stream, keys_of

_NUM_LEVELS = 8


class DenoisingEvaluator:
    """Measures the training loss of images at fixed noise levels, with noise that is the same in every evaluation.

    The loss of held-out images shows whether a model still improves; if it rises while that of training images falls, the model
    overfits. The levels are the quantiles 1/16, 3/16, ..., 15/16 of the noise levels in training.

    Args:
        num_images: Maximum number of images.
        batch_size: Batch size.
        seed: Seed of the noise.
    """

    def __init__(self, *, num_images: int, batch_size: int, seed: int) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed

    def added_to(
        self, result: Evaluation, method: Denoises, images: DatasetImages, side: str, should_stop: Callable[[], bool]
    ) -> Evaluation:
        """Return a result with the losses added: their mean, and that of each level, from the least noise to the most.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If there are fewer images than processes.
        """
        chosen = images.subset(min(self._num_images, len(images)))
        if len(chosen) < world_size():
            raise DataError(f"{len(chosen)} {side} images are fewer than the {world_size()} processes that denoise them")
        rows: list[list[Tensor]] = [[] for _ in range(_NUM_LEVELS)]
        with full_float32(), torch.no_grad():
            for start, stop in ranges(shard(len(chosen)), self._batch_size, "denoising", lambda: None, should_stop):
                indices = chosen[start:stop]
                batch: Batch = {"image": to_float(images.images(indices)[0])}
                batch |= images.data.conditions(indices, method.batch_keys)
                for level in range(_NUM_LEVELS):
                    keys = keys_of(self._seed, Stream.DENOISING_ERROR, indices, level)
                    rows[level].append(method.denoising_loss(batch, (level + 0.5) / _NUM_LEVELS, keys))
        means = [mean_over_ranks(parts) for parts in rows]
        name = f"denoising_{side}{{}}{short_count(len(chosen))}"
        values = {name.format("_"): sum(means) / _NUM_LEVELS}
        values |= {name.format(f"_level{level}_"): mean for level, mean in enumerate(means, start=1)}
        described = {
            "denoising": {
                "side": side, **images.describe(), "num_images": len(chosen), "seed": self._seed,
                "of": method.denoising_description,
            }
        }  # fmt: skip
        return replace(result, values=result.values | values, provenance=result.provenance | described)
