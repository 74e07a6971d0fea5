"""Compare the statistics of generated images with those of real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from genimg.errors import ConfigError
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric

Naming = Callable[[str, int], str]
"""Function from a metric's short name and its number of images to its full name."""


def compare(
    real: FeatureStats, fake: FeatureStats, metrics: Iterable[Metric], name: Naming, device: torch.device | None = None
) -> dict[str, float]:
    """Return the values of the metrics by full name.

    Args:
        real: Statistics of the real images.
        fake: Statistics of the generated images.
        metrics: Metrics to compute.
        name: Function that returns the full names of values.
        device: Device for computations on the kept features; None uses the CPU.

    Raises:
        ConfigError: If two metrics have a value of the same name.
        DataError: If a metric needs more images.
    """
    values: dict[str, float] = {}
    for metric in metrics:
        count = metric.count(real, fake)
        found = metric.compute(real, fake, device or torch.device("cpu"))
        more = {name(short, count): value for short, value in found.items()}
        if twice := values.keys() & more.keys():
            raise ConfigError(f"metrics computes {', '.join(sorted(twice))} twice: remove one of the metrics")
        values |= more
    return values
