"""What an evaluation refuses before any work, and what it says about values that mean little."""

from __future__ import annotations

from collections.abc import Mapping

from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.metrics import Metric


def checked_metrics(metrics: Mapping[str, Metric | None], extractor: Extractor) -> dict[str, Metric]:
    """The metrics that are not null; each must be one that the extractor can serve.

    Raises:
        ValueError: naming the one that is not, and the way out.
    """
    if not isinstance(metrics, Mapping):
        raise ValueError(f"evaluation.metrics={metrics} must be a mapping of names to metrics")
    found = {}
    for name, metric in metrics.items():
        if metric is None:
            continue
        if not isinstance(metric, Metric):
            raise ValueError(f"evaluation.metrics.{name}={metric} is not a metric: give it a _target_, or null to leave it out")
        if metric.needs_logits and not extractor.has_logits:
            raise ValueError(
                f"evaluation.metrics.{name} needs class logits, which the extractor {extractor.name} does not have: remove it "
                f"with '~evaluation.metrics.{name}'"
            )
        found[name] = metric
    if not found:
        raise ValueError("evaluation.metrics is empty: name a metric, or turn evaluation off with evaluation=none")
    return found


def check_count(metrics: Mapping[str, Metric], num_images: int) -> None:
    """Refuse fewer generated images than a metric takes.

    Raises:
        ValueError: naming the metric, its least count and the way out.
    """
    for name, metric in metrics.items():
        if num_images < metric.least_images:
            raise ValueError(
                f"{num_images} generated images are too few for evaluation.metrics.{name}, which takes {metric.least_images} "
                f"or more: evaluate more, change its settings, or remove it with '~evaluation.metrics.{name}'"
            )


def small_counts(counts: Mapping[str, int | None], num_features: int) -> tuple[str, ...]:
    """Sentences about counts, by side, that make a Fréchet distance mean little; None is a count that nobody recorded."""
    found = []
    for side, count in counts.items():
        if count is not None and count <= num_features:
            found.append(
                f"{count} {side} images are no more than the {num_features} features: the covariance is singular and the "
                "Fréchet distance much too large; use it for nothing but equal counts, or trust the kernel distance"
            )
        elif count is not None and count < 2000:
            found.append(
                f"{count} {side} images are few: the Fréchet distance is biased upwards and varies by several per cent; 5,000 "
                "and more are usual while training, 50,000 in papers"
            )
    return tuple(found)
