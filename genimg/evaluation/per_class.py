"""Fréchet distances of the generated images of each class to the real images of the same class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from genimg.errors import ConfigError, DataError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.feature_extraction import Collection, collect, full_float32
from genimg.evaluation.feature_metrics import FeatureMetrics
from genimg.evaluation.image_sets import ClassImages, ImageSet
from genimg.evaluation.metrics import FrechetDistance
from genimg.evaluation.real_stats import RealStatistics
from genimg.evaluation.stats_cache import SavedStatistics
from genimg.utils.distributed import world_size


@dataclass(frozen=True)
class ClassDistance:
    """The distance of one class.

    Attributes:
        label: Label of the class.
        class_name: Name of the class.
        name: Full name of the metric, with the number of generated images, such as ``fd500_mnist_v2_class3``.
        value: Fréchet distance.
        num_real, num_generated: Numbers of images.
    """

    label: int
    class_name: str
    name: str
    value: float
    num_real: int
    num_generated: int


def check_classes(real: ImageSet | SavedStatistics, fake: ImageSet) -> None:
    """Check that both sets have labels of the same classes.

    Raises:
        ConfigError: If one has none, or the classes differ.
    """
    if isinstance(real, SavedStatistics):
        raise ConfigError("per_class=true needs the real images themselves, not statistics: give images", key="per_class")
    for images, what in ((real, "real"), (fake, "generated")):
        if images.labels is None:
            raise ConfigError(f"per_class=true needs labels, but the {what} images ({images.name}) have none: remove it",
                              key="per_class")  # fmt: skip
    if tuple(real.class_names) != tuple(fake.class_names):
        ours, theirs = (", ".join(images.class_names) or "none" for images in (real, fake))
        raise ConfigError(f"per_class=true needs the same classes, but the real images have {ours}, and the generated ones "
                          f"{theirs}: give images of the same classes", key="per_class")  # fmt: skip


def class_distances(evaluator: Evaluator, real: ImageSet, fake: ImageSet, device: torch.device) -> list[ClassDistance]:
    """Return the Fréchet distance of each class that both sets have, by the features of the evaluator's first extractor.

    The value of a class is that of an evaluation of its images alone. The images are generated again, one class at a time.

    Args:
        evaluator: Evaluator with the extractor, batch size, and number of real images.
        real: Real images with labels.
        fake: Generated images with labels of the same classes.
        device: Device of the extractor.

    Raises:
        DataError: If a class has fewer than two images in one of the sets.
    """
    check_classes(real, fake)
    assert real.labels is not None
    assert fake.labels is not None
    measured = FeatureMetrics(extractor=evaluator.extractor, metrics={"frechet_distance": FrechetDistance()})
    metric = measured.first
    known = RealStatistics(num_images=None, batch_size=evaluator.batch_size, cache_dir=evaluator.cache_dir)
    within = None if evaluator.num_real is None else real.subset(min(evaluator.num_real, len(real)))
    found = []
    with full_float32():
        evaluator.extractor.to(device)
        for label in sorted(set(fake.labels.tolist()) | set(real.labels.tolist())):
            sides = ClassImages(real, label, within), ClassImages(fake, label)
            class_name = real.class_names[label] if real.class_names else str(label)
            for side, what in zip(sides, ("real", "generated"), strict=True):
                if len(side) < max(2, world_size()):
                    raise DataError(f"class {class_name} has {len(side)} {what} images, but per_class=true needs 2 or more of "
                                    "each class: use more images", key="per_class")  # fmt: skip
            ours, theirs = sides
            statistics = known.of(ours, measured, len(theirs), device).summary
            (made,) = collect(
                theirs, np.arange(len(theirs), dtype=np.int64), f"class {class_name}",
                [Collection(evaluator.extractor, kept=None)], batch_size=evaluator.batch_size,
            )  # fmt: skip
            value = metric.compute(statistics, made, device)["fd"]
            name = f"{measured.name('fd', len(theirs))}_class{label}"
            found.append(ClassDistance(label, class_name, name, value, len(ours), len(theirs)))
    return found
