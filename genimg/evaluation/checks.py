"""What an evaluation refuses before any work, and what it says about values that mean little."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.metrics import Metric
from genimg.evaluation.stats_cache import SavedStatistics


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
        if metric.needs_spatial and not extractor.has_spatial:
            raise ValueError(
                f"evaluation.metrics.{name} needs spatial features, which the extractor {extractor.name} does not have: remove "
                f"it with '~evaluation.metrics.{name}'"
            )
        found[name] = metric
    if not found:
        raise ValueError("evaluation.metrics is empty: name a metric, or turn evaluation off with evaluation=none")
    return found


def check_counts(metrics: Mapping[str, Metric], *, generated: int, real: int | None = None, least: int = 2) -> None:
    """Refuse fewer images than a covariance or a metric takes.

    Args:
        metrics: of the evaluation.
        generated, real: numbers of images; None is a number that nobody recorded, or that is not known yet.
        least: images a side, whatever the metrics.

    Raises:
        ValueError: naming the metric, its least count and the way out.
    """
    for side, count in (("generated", generated), ("real", real)):
        if count is None:
            continue
        if count < least:
            raise ValueError(f"{count} {side} images are too few: a covariance needs {least} or more")
        for name, metric in metrics.items():
            # What needs no single images looks only at the real images' moments or classes.
            if count < metric.least_images and (side == "generated" or metric.needs_features):
                raise ValueError(
                    f"{count} {side} images are too few for evaluation.metrics.{name}, which takes {metric.least_images} or "
                    f"more: give more, change its settings, or remove it with '~evaluation.metrics.{name}'"
                )


def check_held_out(
    metrics: Mapping[str, Metric], real: Sized | SavedStatistics, held_out: Sized | None, num_real: int | None
) -> None:
    """Refuse metrics that need held-out images where there are none, or where not all training images are at hand.

    Raises:
        ValueError: naming the metric and the way out.
    """
    for name, metric in metrics.items():
        if not metric.needs_held_out:
            continue
        key, out = f"evaluation.metrics.{name}", f"or remove it with '~evaluation.metrics.{name}'"
        if held_out is None:
            raise ValueError(
                f"{key} compares with images that training does not see, and there are none: set data.validation=0.1, or "
                f"held_out=WHAT of genimg-eval, {out}"
            )
        if isinstance(real, SavedStatistics):
            raise ValueError(f"{key} needs the training images themselves, but real= names statistics: give images, {out}")
        if num_real is not None and num_real < len(real):
            raise ValueError(f"{key} looks at all {len(real)} training images, but evaluation.num_real={num_real}: set it to "
                             f"null, {out}")  # fmt: skip


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
