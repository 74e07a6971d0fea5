"""Confidence intervals by resampling the generated images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from genimg.evaluation.compare import Naming, compare
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric
from genimg.utils.progress import Progress
from genimg.utils.rng import Stream, seed_of


def intervals(
    metrics: Iterable[Metric],
    real: FeatureStats,
    fake: FeatureStats,
    name: Naming,
    values: dict[str, float],
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Return 95 % bootstrap intervals by full metric name, for the metrics that can be resampled.

    The generated images are resampled with replacement; the real images stay fixed. A resample has fewer distinct images,
    which increases the Fréchet distance. The percentiles are therefore lowered by the bootstrap estimate of this bias, the
    mean over the resamples minus the value (Efron & Tibshirani 1993, section 10.2).

    Args:
        metrics: Metrics of the evaluation.
        real, fake: Statistics; ``fake`` has features (and logits) of all images.
        name: Function that returns the full names of values; see ``compare``.
        values: Values measured on all images.
        resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    chosen = [metric for metric in metrics if metric.can_be_resampled]
    generator = torch.Generator().manual_seed(seed_of(seed, Stream.BOOTSTRAP))
    found: dict[str, list[float]] = {}
    least: dict[str, float] = {}
    for _ in Progress(range(resamples if chosen else 0), desc="bootstrap", unit="resample", leave=False):
        rows = torch.randint(fake.num_images, (fake.num_images,), generator=generator)
        resampled = fake.resampled(rows)
        for metric in chosen:
            for key, value in compare(real, resampled, [metric], name).items():
                found.setdefault(key, []).append(value)
                least[key] = metric.least_value
    bounds = {}
    for key, sample in found.items():
        if key.endswith("_std"):
            continue  # a deviation needs no interval
        low, high = np.percentile(sample, [2.5, 97.5]) - (np.mean(sample) - values[key])
        bounds[key] = (max(float(low), least[key]), float(high))
    return bounds
