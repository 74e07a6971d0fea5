"""The names of metrics, as logs, tables and files show them."""

from __future__ import annotations

from genimg.evaluation.extractors.base import Extractor

DEVIATION = "_std"
"""Suffix of a metric's standard deviation."""


def full_name(extractor: Extractor, short_name: str, count: int | None) -> str:
    """Return a metric's full name, for example ``kd5k_mnist_v2_std`` for ``kd_std`` of 5,000 images.

    Args:
        extractor: Extractor of the features.
        short_name: Short name, as a metric returns it.
        count: Number of images; None for names without a count.
    """
    metric = short_name.removesuffix(DEVIATION)
    counted = extractor.metric_name(metric, "" if count is None else short_count(count))
    return counted + short_name.removeprefix(metric)


def short_count(count: int) -> str:
    """Return the count as it appears in metric names: 5000 becomes 5k, and 500 stays 500."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
