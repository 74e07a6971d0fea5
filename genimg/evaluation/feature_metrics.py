"""An extractor and the metrics that are computed from its features."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from genimg.evaluation.checks import checked_metrics
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import Collection
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric
from genimg.evaluation.names import full_name

log = logging.getLogger(__name__)


class FeatureMetrics:
    """An extractor and the metrics that are computed from its features.

    Args:
        extractor: Feature extractor.
        metrics: Metrics by name; entries that are null are removed.

    Raises:
        ConfigError: If the extractor does not support a metric, or no metric is left.
    """

    def __init__(self, *, extractor: Extractor, metrics: Mapping[str, Metric | None]) -> None:
        self.extractor = extractor
        self.metrics = checked_metrics(metrics, extractor)

    def name(self, short_name: str, count: int) -> str:
        """Return a metric's full name; see ``names.full_name``."""
        return full_name(self.extractor, short_name, count)

    @property
    def first(self) -> Metric:
        return next(iter(self.metrics.values()))

    @property
    def needs_held_out(self) -> bool:
        """Whether a metric compares with images that are not used for training."""
        return any(metric.needs_held_out for metric in self.metrics.values())

    @property
    def needs_spatial(self) -> bool:
        return any(metric.needs_spatial for metric in self.metrics.values())

    @property
    def needs_features(self) -> bool:
        """Whether a metric needs the features of individual images."""
        return any(metric.needs_features for metric in self.metrics.values())

    def collection(self, num_images: int, *, for_bootstrap: bool) -> Collection:
        """Return what to collect from this many generated images.

        Args:
            num_images: Number of generated images.
            for_bootstrap: Whether the images will be resampled, which requires the features and logits of all of them.
        """
        everything = np.arange(num_images, dtype=np.int64)
        return Collection(
            self.extractor,
            kept=everything if for_bootstrap or self.needs_features else None,
            splits=frozenset(metric.splits for metric in self.metrics.values() if metric.splits is not None),
            keep_logits=for_bootstrap,
            spatial=self.needs_spatial,
        )

    def computable_with(self, real: FeatureStats) -> list[Metric]:
        """Return the metrics that can be computed with these real statistics, and warn about the others."""
        skipped = {}
        for name, metric in self.metrics.items():
            if metric.needs_features and real.features is None:
                skipped[name] = "features of individual images"
            elif metric.needs_spatial and real.spatial is None:
                skipped[name] = "spatial features"
        for what in dict.fromkeys(skipped.values()):
            names = " and ".join(name for name, lacking in skipped.items() if lacking == what)
            log.warning("the real statistics hold no %s: skipping %s", what, names)
        return [metric for name, metric in self.metrics.items() if name not in skipped]
