"""The provenance of feature metrics: everything that their values depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genimg.evaluation.feature_metrics import FeatureMetrics
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.image_sets import ImageSet
from genimg.utils.environment import versions


def provenance(
    main: FeatureMetrics,
    additional: Mapping[str, FeatureMetrics],
    real: Sequence[FeatureStats],
    fake: Sequence[FeatureStats],
    *,
    real_images: Mapping[str, Any],
    generated: ImageSet,
    held_out: ImageSet | None,
    bootstrap: int,
) -> dict[str, Any]:
    """Return everything that the values depend on, as primitives.

    Args:
        main: First extractor with its metrics.
        additional: Further extractors with their metrics, by name.
        real: Statistics of the real images, by extractor, the first one first.
        fake: Statistics of the generated images, likewise.
        real_images: Description of the real images.
        generated: The generated images.
        held_out: Images that are not used for training, if there are any.
        bootstrap: Number of resamples for the intervals.
    """
    first, *others = (
        {
            "extractor": {**each.extractor.describe(), "num_features": theirs.num_features},
            "metrics": _describe_metrics(each, held_out),
            "num_kept": 0 if ours.features is None else len(ours.features),
        }
        for each, ours, theirs in zip((main, *additional.values()), real, fake, strict=True)
    )
    return {
        "extractor": first["extractor"],
        "generated": {**generated.describe(), "num_images": len(generated)},
        "real": {**real_images, "num_kept": first["num_kept"]},
        "metrics": first["metrics"],
        **({"additional": dict(zip(additional, others, strict=True))} if additional else {}),
        "bootstrap": bootstrap,
        "precision": "features float32 without TF32, statistics float64",
        "device": main.extractor.device.type,
        "versions": versions(),
    }


def _describe_metrics(measured: FeatureMetrics, held_out: ImageSet | None) -> dict[str, dict[str, Any]]:
    """Return the settings of the metrics, as primitives."""
    found = {name: {k: v for k, v in vars(metric).items() if v is not None} for name, metric in measured.metrics.items()}
    for name, metric in measured.metrics.items():
        if metric.needs_held_out and held_out is not None:
            found[name]["held_out"] = {**held_out.describe(), "num_images": len(held_out)}
    return found
