"""Checks before an evaluation, and warnings about unreliable values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sized

from genimg.errors import ConfigError, DataError
from genimg.evaluation.compare import Naming
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric
from genimg.evaluation.stats_cache import SavedStatistics


def checked_metrics(metrics: Mapping[str, Metric | None], extractor: Extractor) -> dict[str, Metric]:
    """Return the metrics that are not null, after checking that the extractor supports each of them.

    Raises:
        ConfigError: If an entry is not a metric or the extractor does not support it, or if no metric is left.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics={metrics} must be a mapping of names to metrics")
    found = {}
    for name, metric in metrics.items():
        if metric is None:
            continue
        if not isinstance(metric, Metric):
            raise ConfigError(f"metrics.{name}={metric} is not a metric: give it a _target_, or null to remove it")
        if len(inspect.signature(metric.compute).parameters) != 3:
            raise _unfit(name, "must have a method compute(real, fake, device) that returns values by short name")
        if metric.needs_logits and not extractor.has_logits:
            raise _unfit(name, f"needs class logits, which the extractor {extractor.name} does not have")
        if metric.needs_spatial and not extractor.has_spatial:
            raise _unfit(name, f"needs spatial features, which the extractor {extractor.name} does not have")
        found[name] = metric
    if not found:
        raise ConfigError("metrics={} is empty: add a metric, or turn evaluation off")
    return found


def _unfit(name: str, problem: str, fix: str = "", *, prefix: str = "") -> ConfigError:
    """Return an error about this metric; its fix also suggests removing the metric."""
    key = f"{prefix}metrics.{name}"
    return ConfigError(f"{key} {problem}", f"{fix}, or remove the metric" if fix else "remove it", key=key)


def check_counts(
    metrics: Mapping[str, Metric], *, generated: int, real: int | None = None, least: int = 2, prefix: str = ""
) -> None:
    """Check that there are enough images for a covariance and for each metric.

    Args:
        metrics: Metrics of the evaluation.
        generated, real: Numbers of generated and real images; None if a number is not recorded or not known yet.
        least: Minimum number of images on each side, regardless of the metrics.
        prefix: Prefix of the metrics' keys in the config.

    Raises:
        ConfigError: If a metric needs more images.
        DataError: If there are fewer than ``least`` images.
    """
    for side, count in (("generated", generated), ("real", real)):
        if count is None:
            continue
        if count < least:
            raise DataError(f"{count} {side} images are too few: a covariance needs {least} or more")
        for name, metric in metrics.items():
            # A metric that needs no features of individual images uses only the moments or classes of the real images.
            if count < metric.least_images and (side == "generated" or metric.needs_features):
                problem = f"needs {metric.least_images} or more {side} images, not {count}"
                raise _unfit(name, problem, "use more images, change the metric's settings", prefix=prefix)


def check_held_out(
    metrics: Mapping[str, Metric],
    real: Sized | SavedStatistics,
    held_out: Sized | None,
    num_real: int | None,
    *,
    prefix: str = "",
) -> None:
    """Check that metrics that need held-out images have them, together with all training images.

    Args:
        metrics: Metrics of the evaluation.
        real: The real images, or their statistics.
        held_out: Images that are not used for training, if there are any.
        num_real: Number of real images that are used; None uses all.
        prefix: Prefix of the metrics' keys in the config.

    Raises:
        ConfigError: If such a metric lacks the held-out images or some of the training images.
    """
    for name, metric in metrics.items():
        if not metric.needs_held_out:
            continue
        if held_out is None:
            raise _unfit(name, "compares with images that are not used for training, but there are none",
                         "hold out a share of the data for validation, give held-out images", prefix=prefix)  # fmt: skip
        if isinstance(real, SavedStatistics):
            raise _unfit(name, "needs the training images themselves, not their statistics", "give images", prefix=prefix)
        if num_real is not None and num_real < len(real):
            raise _unfit(name, f"needs all {len(real)} training images, but num_real={num_real}", "set num_real=null",
                         prefix=prefix)  # fmt: skip


def small_counts(counts: Mapping[str, int | None], num_features: int) -> tuple[str, ...]:
    """Return warnings about counts that are too small for a reliable Fréchet distance; unrecorded counts are None."""
    found = []
    for side, count in counts.items():
        if count is not None and count <= num_features:
            found.append(
                f"{count} {side} images are too few for {num_features} features: the covariance is singular and the "
                "Fréchet distance much too large; compare it at equal counts only, or use the kernel distance"
            )
        elif count is not None and count < 2000:
            found.append(
                f"{count} {side} images are few: the Fréchet distance is biased upwards and varies by several per cent; 5,000 "
                "or more are usual during training, and 50,000 in papers"
            )
    return tuple(found)


def check_extractor_names(first: Extractor, additional: Mapping[str, Extractor]) -> None:
    """Check that no two extractors have the same name, so their metrics have different names.

    Args:
        first: First extractor.
        additional: Further extractors, by name in the config.

    Raises:
        ConfigError: If two extractors have the same name.
    """
    names = {first.name}
    for name, extractor in additional.items():
        if extractor.name in names:
            raise ConfigError(
                f"additional.{name}.extractor has the same name as another extractor, {extractor.name}, so their metrics would "
                "have the same names: remove one of them",
                key=f"additional.{name}.extractor",
            )
        names.add(extractor.name)


def check_num_features(extractor: Extractor, real: FeatureStats, fake: FeatureStats) -> None:
    """Check that the statistics of both sides have the same number of features.

    Args:
        extractor: Extractor of the generated images' features.
        real, fake: Statistics of the real and of the generated images.

    Raises:
        DataError: If the numbers differ.
    """
    if real.num_features != fake.num_features:
        raise DataError(
            f"the real statistics have {real.num_features} features, but the extractor {extractor.name} has "
            f"{fake.num_features}: they were computed with another extractor"
        )


def check_first_metric(
    values: Mapping[str, float], name: Naming, metrics: Mapping[str, Metric], real: FeatureStats, num_fake: int
) -> None:
    """Check that the first metric, which chooses the best checkpoint, has a value.

    Args:
        values: Values by full name.
        name: Function that returns the full names of values.
        metrics: Metrics by name in the config.
        real: Statistics of the real images.
        num_fake: Number of generated images.

    Raises:
        ConfigError: If it has no value.
    """
    key, metric = next(iter(metrics.items()))
    if (first := name(metric.short_name, num_fake)) in values:
        return
    few = 0 if real.features is None else len(real.features)
    fix = f", or set num_images={few}, the number of real images" if 0 < few < num_fake else ""
    raise ConfigError(
        f"metrics.{key} comes first, so {first} chooses the best checkpoint, but it has no value for these images: put another "
        f"metric first{fix}",
        key=f"metrics.{key}",
    )
