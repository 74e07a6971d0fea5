"""Metrics for configs, computed from the statistics of real and generated images.

To add a metric, write a class here or in your own package, and add it to an evaluator's ``metrics`` in the config.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.distances import frechet_distance, kernel_distance, neighbor_rates
from genimg.evaluation.feature_stats import FeatureStats
from genimg.utils.exact import double


class Metric(ABC):
    """One or several values that describe a set of generated images; the first one can choose the best checkpoint."""

    short_name: ClassVar[str]
    """Short name of the first value."""
    higher_is_better: ClassVar[bool]
    needs_features: ClassVar[bool] = False
    """Whether to keep the features of all generated images, and of the same number of real images (at least 10,000)."""
    needs_spatial: ClassVar[bool] = False
    """Whether moments of the extractor's spatial features are computed."""
    needs_held_out: ClassVar[bool] = False
    """Whether to compute ``real.training`` and ``real.held_out``, with features of all training and held-out images."""
    needs_logits: ClassVar[bool] = False
    can_be_resampled: ClassVar[bool] = False
    """Whether a bootstrap is valid. It is invalid for neighbour metrics, because an image drawn twice would be its own
    neighbour, and for metrics that count what occurs at least once."""
    least_value: ClassVar[float] = -math.inf
    """Lower bound of the values."""
    splits: int | None = None
    """Number of splits over which class probabilities are summed; None if they are not needed."""

    @property
    def least_images(self) -> int:
        """Minimum number of images."""
        return 2

    def count(self, real: FeatureStats, fake: FeatureStats) -> int:
        """Return the number of images in the names of the values, by default that of the generated images."""
        return fake.num_images

    @abstractmethod
    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        """Return values by short name, such as ``fd``, or ``kd_std`` for the deviation of ``kd``.

        Args:
            real: Statistics of the real images.
            fake: Statistics of the generated images.
            device: Device for computations on the kept features.
        """


class FrechetDistance(Metric):
    """The Fréchet distance between Gaussians fitted to the features (Heusel et al. 2017); FID with Inception's features.

    Lower is better and 0 means equal. The distance falls as the number of images grows, so only equal counts are comparable.
    """

    short_name = "fd"
    higher_is_better = False
    can_be_resampled = True
    least_value = 0.0

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        features = fake.features
        if features is not None and len(features) == fake.num_images < fake.num_features:
            return {"fd": frechet_distance(real.moments, fake.moments, fake_features=features)}
        return {"fd": frechet_distance(real.moments, fake.moments, real.root)}


class SpatialFrechetDistance(Metric):
    """The Fréchet distance between Gaussians fitted to spatial features (Nash et al. 2021); sFID with Inception's.

    Lower is better and 0 means equal. Like FID, it falls as the number of images grows.
    """

    short_name = "sfd"
    higher_is_better = False
    needs_spatial = True
    least_value = 0.0

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        assert real.spatial is not None
        assert fake.spatial is not None
        return {"sfd": frechet_distance(real.spatial, fake.spatial)}


class InceptionScore(Metric):
    """The Inception Score (Salimans et al. 2016): classifier confidence on each image and variety of the predicted classes.

    Higher is better, from 1 to the number of classes. The real images are not used.

    Args:
        splits: Number of splits of the images, over which mean and deviation are computed; the paper uses 10.
    """

    short_name = "is"
    higher_is_better = True
    needs_logits = True
    can_be_resampled = True
    least_value = 1.0

    def __init__(self, *, splits: int) -> None:
        if splits < 1:
            raise ValueError(f"splits={splits} must be 1 or more")
        self.splits = splits

    @property
    def least_images(self) -> int:
        assert self.splits is not None
        return max(2, self.splits)

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        assert self.splits is not None
        mean, deviation = fake.scores[self.splits]
        return {"is": mean, "is_std": deviation}


class KernelDistance(Metric):
    """The kernel distance (Bińkowski et al. 2018); KID with Inception's features. It is unbiased, so it suits small sets.

    Lower is better; equal distributions give 0 on average, so values can be slightly negative.

    Args:
        subsets: Number of random pairs of subsets, over which mean and deviation are computed.
        subset_size: Number of images in each subset. If there are fewer, all of them are used, and there is no deviation.
    """

    short_name = "kd"
    higher_is_better = False
    needs_features = True

    def __init__(self, *, subsets: int, subset_size: int) -> None:
        if subsets < 1:
            raise ValueError(f"subsets={subsets} must be 1 or more")
        if subset_size < 2:
            raise ValueError(f"subset_size={subset_size} must be 2 or more images")
        self.subsets = subsets
        self.subset_size = subset_size

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        x, y = _kept(real, device), _kept(fake, device)
        size = min(self.subset_size, len(x), len(y))
        if size == len(x) == len(y):  # there is only one subset
            return {"kd": kernel_distance(x, y, subsets=1, subset_size=size)[0]}
        mean, deviation = kernel_distance(x, y, subsets=self.subsets, subset_size=size)
        # If all images of one side are drawn each time, the deviation would be that of the other side alone.
        return {"kd": mean} | ({"kd_std": deviation} if size < min(len(x), len(y)) else {})


class PrecisionRecall(Metric):
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Precision and density measure how many generated images lie among the real ones; recall and coverage measure how many real
    images lie among the generated ones. Higher is better, up to 1; density can exceed 1.

    All four depend on the numbers of images. As in both papers, both sides have the same number: a random subset of the larger
    side is used, and the count is part of the name. For equal distributions, density is then 1 in expectation, and coverage is
    ``expected_coverage``: 0.969 for 5 neighbours and many images.

    Args:
        neighbors: Number of neighbours for precision and recall; the paper uses 3.
        density_neighbors: Number of neighbours for density and coverage; the paper uses 5.
    """

    short_name = "precision"
    higher_is_better = True
    needs_features = True

    def __init__(self, *, neighbors: int, density_neighbors: int) -> None:
        if neighbors < 1 or density_neighbors < 1:
            raise ValueError(f"neighbors={neighbors} and density_neighbors={density_neighbors} must be 1 or more")
        self.neighbors = neighbors
        self.density_neighbors = density_neighbors
        self.counts = "as many real as generated images"  # for the provenance: up to 10,000 real images until 2026-11

    @property
    def least_images(self) -> int:
        return max(self.neighbors, self.density_neighbors) + 1

    def count(self, real: FeatureStats, fake: FeatureStats) -> int:
        """Return the number of images on each side."""
        return min(len(_kept(side, torch.device("cpu"))) for side in (real, fake))

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        num_real, num_fake = len(_kept(real, device)), len(_kept(fake, device))
        count, most = min(num_real, num_fake), max(self.neighbors, self.density_neighbors)
        if count <= most:
            raise DataError(
                f"precision and recall over {most} neighbours need more than {most} images on each side, but there are "
                f"{num_real} real and {num_fake} generated ones"
            )
        rates = neighbor_rates(
            real.features_of(count).to(device),
            fake.features_of(count).to(device),
            neighbors=self.neighbors,
            density_neighbors=self.density_neighbors,
            real_radii=real.neighbor_distances((self.neighbors, self.density_neighbors), device, count),
        )
        return dict(vars(rates))


class ClassCoverage(Metric):
    """Class coverage and class divergence of the generated images, from the extractor's predictions.

    ``class_coverage`` is the share of classes in the real images that are covered. A class is covered if its share of the
    generated images is at least ``least_share`` times its share of the real images. ``class_kl`` is the KL divergence (nats)
    of the generated from the real class distribution, as in the mode counts of Metz et al. 2017 (section 3.3.1). The
    extractor's classes should be those of the data.

    Args:
        least_share: Factor between 0 and 1; above 0 to tolerate misclassifications.
    """

    short_name = "class_coverage"
    higher_is_better = True
    needs_logits = True

    def __init__(self, *, least_share: float) -> None:
        if not 0.0 <= least_share <= 1.0:
            raise ValueError(f"least_share={least_share} must lie between 0 and 1")
        self.least_share = least_share

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        if real.predictions is None or fake.predictions is None:
            return {}  # statistics from other programs have no classes
        num_classes = int(max(real.predictions.max(), fake.predictions.max())) + 1
        p, q = (
            double(torch.bincount(side.predictions, minlength=num_classes)) / len(side.predictions)  # type: ignore[arg-type]
            for side in (real, fake)
        )
        present = p > 0
        met = (q > 0) & (q >= self.least_share * p)
        divergence = torch.special.xlogy(q, q) - q * p.clamp(min=0.5 / len(real.predictions)).log()
        return {
            "class_coverage": (met & present).sum().item() / present.sum().item(),
            "class_kl": divergence.sum().item(),
        }


class ConditionalAccuracy(Metric):
    """Share of generated images whose class a classifier of real images predicts (GAN-test, Shmelkov et al. 2018).

    The metric is absent if the images have no labels.
    """

    short_name = "accuracy"
    higher_is_better = True
    needs_logits = True
    can_be_resampled = True

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        if fake.labels is None or fake.predictions is None:
            return {}
        return {"accuracy": double(fake.predictions == fake.labels).mean().item()}


def _kept(side: FeatureStats, device: torch.device) -> Tensor:
    if side.features is None:
        raise ValueError("these statistics hold no features of individual images, which the metric needs")
    return side.features.to(device)
