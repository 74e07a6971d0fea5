"""What an evaluation refuses before any work, and what it says about values that mean little."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from genimg.errors import ConfigError, DataError
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.metrics import Metric
from genimg.evaluation.stats_cache import SavedStatistics


def checked_metrics(metrics: Mapping[str, Metric | None], extractor: Extractor) -> dict[str, Metric]:
    """The metrics that are not null; each must be one that the extractor can serve.

    Raises:
        ConfigError: For the first that is not.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics={metrics} must be a mapping of names to metrics")
    found = {}
    for name, metric in metrics.items():
        if metric is None:
            continue
        if not isinstance(metric, Metric):
            raise ConfigError(f"metrics.{name}={metric} is not a metric: give it a _target_, or null to remove it")
        if metric.needs_logits and not extractor.has_logits:
            raise _unfit(name, f"needs class logits, which the extractor {extractor.name} does not have")
        if metric.needs_spatial and not extractor.has_spatial:
            raise _unfit(name, f"needs spatial features, which the extractor {extractor.name} does not have")
        found[name] = metric
    if not found:
        raise ConfigError("metrics={} is empty: name a metric, or turn evaluation off")
    return found


def _unfit(name: str, problem: str, fix: str = "") -> ConfigError:
    """Return the error about a metric of this name, which can always be removed."""
    return ConfigError(
        f"metrics.{name} {problem}", f"{fix}, or remove the metric" if fix else "remove it", key=f"metrics.{name}"
    )


def check_counts(metrics: Mapping[str, Metric], *, generated: int, real: int | None = None, least: int = 2) -> None:
    """Refuse fewer images than a covariance or a metric takes.

    Args:
        metrics: of the evaluation.
        generated, real: numbers of images; None is a number that nobody recorded, or that is not known yet.
        least: images a side, whatever the metrics.

    Raises:
        ConfigError: For a metric that needs more images.
        DataError: For fewer than ``least`` images.
    """
    for side, count in (("generated", generated), ("real", real)):
        if count is None:
            continue
        if count < least:
            raise DataError(f"{count} {side} images are too few: a covariance needs {least} or more")
        for name, metric in metrics.items():
            # What needs no single images looks only at the real images' moments or classes.
            if count < metric.least_images and (side == "generated" or metric.needs_features):
                problem = f"needs {metric.least_images} or more {side} images, not {count}"
                raise _unfit(name, problem, "give more, change the metric's settings")


def check_held_out(
    metrics: Mapping[str, Metric], real: Sized | SavedStatistics, held_out: Sized | None, num_real: int | None
) -> None:
    """Refuse metrics that need held-out images where there are none, or where not all training images are at hand.

    Raises:
        ConfigError: For such a metric.
    """
    for name, metric in metrics.items():
        if not metric.needs_held_out:
            continue
        if held_out is None:
            raise _unfit(name, "compares with images that training does not see, and there are none",
                         "hold out a share of the data for validation, name held-out images")  # fmt: skip
        if isinstance(real, SavedStatistics):
            raise _unfit(name, "needs the training images themselves, not statistics of them", "give images")
        if num_real is not None and num_real < len(real):
            raise _unfit(name, f"looks at all {len(real)} training images, but num_real={num_real}", "set num_real=null")


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
