"""Confidence intervals by resampling the generated images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from tqdm import tqdm

from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric, Name
from genimg.utils.rng import Stream, seed_of


def intervals(
    metrics: Iterable[Metric],
    real: FeatureStats,
    fake: FeatureStats,
    name: Name,
    values: dict[str, float],
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics that can be resampled, for the same number of images from the same model.

    The generated images are drawn anew with replacement; the real ones stay. A Fréchet distance of resampled images is
    larger than that of the images (a resample holds fewer distinct ones), so that the percentiles are moved down by the
    bootstrap's own estimate of that bias, the resamples' mean less the value (Efron & Tibshirani 1993, section 10.2).

    Args:
        metrics: of the evaluation.
        real, fake: with features (and logits) of all generated images.
        name: of metrics.
        values: measured on all images.
        resamples: how many to draw.
        seed: of the drawing.
    """
    chosen = [metric for metric in metrics if metric.can_be_resampled]
    generator = torch.Generator().manual_seed(seed_of(seed, Stream.BOOTSTRAP))
    found: dict[str, list[float]] = {}
    least: dict[str, float] = {}
    for _ in tqdm(range(resamples if chosen else 0), desc="bootstrap", unit="resample", leave=False, disable=None):
        rows = torch.randint(fake.num_images, (fake.num_images,), generator=generator)
        resampled = fake.resampled(rows)
        for metric in chosen:
            for key, value in metric.compute(real, resampled, name, torch.device("cpu")).items():
                found.setdefault(key, []).append(value)
                least[key] = metric.least_value
    bounds = {}
    for key, sample in found.items():
        if key.endswith("_std"):
            continue  # already a measure of spread
        low, high = np.percentile(sample, [2.5, 97.5]) - (np.mean(sample) - values[key])
        bounds[key] = (max(float(low), least[key]), float(high))
    return bounds
