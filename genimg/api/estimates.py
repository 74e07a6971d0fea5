"""Estimate what a training run costs: decode a sample of the data, train a few steps, generate and compare a few images."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import subset_of
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import full_float32
from genimg.methods.capabilities import Generates
from genimg.training.components import TrainingComponents
from genimg.training.trainer import Trainer
from genimg.utils.distributed import broadcast_object

log = logging.getLogger(__name__)

_SAMPLE = 256  # number of images that are decoded to check the data, and used to train
_SECONDS = 5.0  # duration of the measured steps
_WARM_UP, _FEWEST_STEPS, _MOST_STEPS = 2, 3, 48
_FEWEST = 4  # images in the first measured batch of an evaluation
_ENOUGH = 1.0  # seconds after which a batch is large enough to measure
_SLOW = 10.0  # seconds; a first batch that takes longer is not measured again


class _Sample(ArrayDataset):
    """Images held in memory with their latents or noise, ``packed``, if there is a ``latent_key``."""

    packed: NDArray[np.float16]

    def latents(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        return self.packed[indices]


def decode_sample(parts: TrainingComponents) -> tuple[ImageLoader, float]:
    """Return a loader of randomly chosen images, and the number of images that one process decodes per second."""
    source, data = parts.source, parts.data
    count = min(len(source), max(_SAMPLE, parts.settings.batch_size))
    chosen = subset_of(source, count)
    start = time.perf_counter()
    images = data.images(chosen).cpu().numpy()
    rate = count / (time.perf_counter() - start) / max(1, data.num_workers)
    log.info("data check: %d images read, %.0f images/s for each of %d workers", count, rate, max(1, data.num_workers))
    labels = None if source.labels is None else source.labels[chosen]
    captions = source.captions(chosen) if "caption" in data.keys else None
    sample = _Sample(source.name, images, labels, source.class_names, captions)
    if source.latent_key in data.keys:
        sample.latent_key, sample.packed = source.latent_key, source.latents(chosen)
    sample.validation = source.validation
    return ImageLoader(sample, storage="device", num_workers=0, horizontal_flip=data.horizontal_flip, max_corrupt=0,
                device=parts.device, keys=data.keys, augment=data.augment, task=data.task), rate  # fmt: skip


def seconds_per_step(trainer: Trainer, limit: float = _SECONDS) -> float:
    """Return the mean time of a step in seconds, after two warm-up steps; a mean, because some steps do more work.

    All ranks must call it. They train the same number of steps, by the first rank's clock.

    Args:
        trainer: Trainer of components that no run will use.
        limit: Duration of the measurement in seconds.
    """
    steps = trainer.steps()

    def seconds() -> float:
        before = time.perf_counter()
        next(steps)
        if trainer.device.type != "cpu":
            torch.accelerator.synchronize(trainer.device)
        return time.perf_counter() - before

    for _ in range(_WARM_UP):
        seconds()
    times = [seconds() for _ in range(_FEWEST_STEPS)]
    rest = broadcast_object(int(limit / max(statistics.mean(times), 1e-6)))
    times += [seconds() for _ in range(min(rest, _MOST_STEPS) - _FEWEST_STEPS)]
    trainer.updater.raise_if_not_finite()
    return float(broadcast_object(statistics.mean(times)))


def evaluation_seconds(evaluator: Evaluator, method: Generates, device: torch.device) -> tuple[float, float]:
    """Return the seconds to generate an image with the evaluation's options, and to extract its features."""
    with full_float32():
        extractors = [extractor.to(device) for extractor in evaluator.extractors]
        made = evaluator.generated(method, device, ())
        most = min(evaluator.batch_size, evaluator.num_images)
        generating = _seconds_per_image(lambda count: made.images(np.arange(count))[0], most)
        images = made.images(np.arange(min(_FEWEST, evaluator.num_images)))[0]

        def features(count: int, extractor: Extractor) -> torch.Tensor:
            return extractor(images[torch.arange(count, device=images.device) % len(images)])[0]

        extracting = sum(_seconds_per_image(partial(features, extractor=each), most) for each in extractors)
    return generating, extracting


def _seconds_per_image(compute: Callable[[int], torch.Tensor], most: int) -> float:
    """Return the time per image, measured on a batch that is large enough for a useful measurement.

    Args:
        compute: Function that processes a given number of images.
        most: Largest number of images in a batch.
    """
    count = min(_FEWEST, most)
    seconds = _seconds(compute, count)
    if seconds >= _SLOW:
        return seconds / count
    seconds = _seconds(compute, count)  # the first call may allocate memory and choose algorithms
    while seconds < _ENOUGH and count < most:
        count = min(4 * count, most)
        seconds = _seconds(compute, count)
    return seconds / count


def _seconds(compute: Callable[[int], torch.Tensor], count: int) -> float:
    before = time.perf_counter()
    compute(count).cpu()  # waits for the device
    return time.perf_counter() - before


def seconds_per_evaluation(parts: TrainingComponents, trainer: Trainer, sample: ImageLoader) -> float:
    """Return the estimated time of one of the run's evaluations in seconds; 0 without evaluation."""
    if parts.evaluator is None:
        return 0.0
    evaluator, method = parts.evaluator.evaluator, trainer.sampler().eval()
    if isinstance(evaluator, Evaluator):
        assert isinstance(method, Generates)
        return sum(evaluation_seconds(evaluator, method, parts.device)) * evaluator.num_images
    count, available = min(8, len(sample.source)), parts.source.validation or parts.source
    before = time.perf_counter()
    evaluator.evaluate(method, sample, parts.device, num_images=count)
    return (time.perf_counter() - before) / count * min(evaluator.num_images, len(available))
