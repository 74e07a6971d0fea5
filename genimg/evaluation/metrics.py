"""The metrics that a config can name. Each is computed from the summaries of real and generated images.

To add one, write a class here (or in a package of your own) and name it in an evaluator's ``metrics``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.distances import frechet_distance, kernel_distance, neighbor_rates
from genimg.evaluation.feature_stats import FeatureStats


class Name(Protocol):
    """A metric's short name (``fd``) -> its full name, with the count of images and the extractor (``fd5k_mnist_v2``)."""

    def __call__(self, metric: str, count: int | None = None) -> str:
        """``count``: images of each side, where they are fewer than the generated ones."""
        ...


class Metric(ABC):
    """One or several numbers about a set of generated images.

    Its first number can choose the best checkpoint.
    """

    short_name: ClassVar[str]
    """Of the first number."""
    higher_is_better: ClassVar[bool]
    needs_features: ClassVar[bool] = False
    """Whether features are kept: of all generated images, and of as many real ones or 10,000, whichever is more."""
    needs_spatial: ClassVar[bool] = False
    """Whether moments of the extractor's spatial features are taken."""
    needs_held_out: ClassVar[bool] = False
    """Whether ``real.training`` and ``real.held_out`` are given: features of all training images and of all held-out ones."""
    needs_logits: ClassVar[bool] = False
    can_be_resampled: ClassVar[bool] = False
    """Whether a bootstrap makes sense: not where the same image, drawn twice, would be its own neighbour, nor for counts of
    what is met at least once."""
    least_value: ClassVar[float] = -math.inf
    """Below which no value can be."""
    splits: int | None = None
    """Parts over which class probabilities are summed; None if they are not needed."""

    @property
    def least_images(self) -> int:
        """How many generated images it takes at least."""
        return 2

    @abstractmethod
    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        """Full name -> value. ``device``: where work on kept features is fast."""


class FrechetDistance(Metric):
    """The Fréchet distance between Gaussians fitted to the features (Heusel et al. 2017); FID with Inception's features.

    Lower is better and 0 is equal. It falls as the number of images grows, so that only equal counts compare.
    """

    short_name = "fd"
    higher_is_better = False
    can_be_resampled = True
    least_value = 0.0

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        features = fake.features
        if features is not None and len(features) == fake.num_images < fake.num_features:
            return {name("fd"): frechet_distance(real.moments, fake.moments, fake_features=features)}
        return {name("fd"): frechet_distance(real.moments, fake.moments, real.root)}


class SpatialFrechetDistance(Metric):
    """The Fréchet distance between Gaussians fitted to spatial features (Nash et al. 2021); sFID with Inception's.

    For extractors that have them. Lower is better and 0 is equal; as FID it falls as the number of images grows.
    """

    short_name = "sfd"
    higher_is_better = False
    needs_spatial = True
    least_value = 0.0

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        assert real.spatial is not None
        assert fake.spatial is not None
        return {name("sfd"): frechet_distance(real.spatial, fake.spatial)}


class InceptionScore(Metric):
    """How sure the classifier is of each image, and how varied its answers are (Salimans et al. 2016).

    Higher is better, from 1 to the number of classes. It does not look at the real images at all.

    Args:
        splits: parts of the images, over which mean and deviation are taken; the paper takes 10.
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

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        assert self.splits is not None
        mean, deviation = fake.scores[self.splits]
        return {name("is"): mean, f"{name('is')}_std": deviation}


class KernelDistance(Metric):
    """The kernel distance (Bińkowski et al. 2018); KID with Inception's features. Unbiased, so that it suits small sets.

    Lower is better; equal distributions give 0 on average, and so at times a little less.

    Args:
        subsets: random pairs of subsets, over which mean and deviation are taken.
        subset_size: images in each; where there are fewer images, all of them, without a deviation.
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

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        x, y = _kept(real, device), _kept(fake, device)
        size = min(self.subset_size, len(x), len(y))
        if size == len(x) == len(y):  # there is but one subset
            return {name("kd"): kernel_distance(x, y, subsets=1, subset_size=size)[0]}
        mean, deviation = kernel_distance(x, y, subsets=self.subsets, subset_size=size)
        # Where a side is drawn whole each time, the deviation is that of the other side alone.
        return {name("kd"): mean} | ({f"{name('kd')}_std": deviation} if size < min(len(x), len(y)) else {})


class PrecisionRecall(Metric):
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Precision and density: how much of what is generated lies among the real images. Recall and coverage: how much of the
    real images is met by generated ones. Higher is better, and 1 is full, except that density can exceed 1.

    All four depend on the numbers of images. As in both papers there are equally many of each side: a random subset of the
    larger side, whose size is part of the name. Of images of the same distribution, density is then 1 in expectation, and
    coverage is ``expected_coverage``: 0.969 for 5 neighbours and many images.

    Args:
        neighbors: of precision and recall; the paper takes 3.
        density_neighbors: of density and coverage; the paper takes 5.
    """

    short_name = "precision"
    higher_is_better = True
    needs_features = True

    def __init__(self, *, neighbors: int, density_neighbors: int) -> None:
        if neighbors < 1 or density_neighbors < 1:
            raise ValueError(f"neighbors={neighbors} and density_neighbors={density_neighbors} must be 1 or more")
        self.neighbors = neighbors
        self.density_neighbors = density_neighbors
        self.counts = "as many real as generated images"  # in the provenance: until 2026-11 the real ones were up to 10,000

    @property
    def least_images(self) -> int:
        return max(self.neighbors, self.density_neighbors) + 1

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
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
        counted = None if count == num_fake else count
        return {name(key, counted): value for key, value in vars(rates).items()}


class ClassCoverage(Metric):
    """Which of the classes that the classifier sees in the real images it sees in the generated ones too.

    ``class_coverage`` is the share of classes that are met: whose share of the generated images is at least ``least_share``
    of their share of the real ones. ``class_kl`` is the Kullback-Leibler divergence (nats) of the generated classes'
    distribution from the real one's, as in the mode counts of Metz et al. 2017 (section 3.3.1). For extractors whose
    classes are the data's.

    Args:
        least_share: between 0 and 1; above 0, because a classifier errs.
    """

    short_name = "class_coverage"
    higher_is_better = True
    needs_logits = True

    def __init__(self, *, least_share: float) -> None:
        if not 0.0 <= least_share <= 1.0:
            raise ValueError(f"least_share={least_share} must lie between 0 and 1")
        self.least_share = least_share

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        if real.predictions is None or fake.predictions is None:
            return {}  # statistics of another program have no classes
        num_classes = int(max(real.predictions.max(), fake.predictions.max())) + 1
        p, q = (
            torch.bincount(side.predictions, minlength=num_classes).double() / len(side.predictions)  # type: ignore[arg-type]
            for side in (real, fake)
        )
        present = p > 0
        met = (q > 0) & (q >= self.least_share * p)
        divergence = torch.special.xlogy(q, q) - q * p.clamp(min=0.5 / len(real.predictions)).log()
        return {
            name("class_coverage"): (met & present).sum().item() / present.sum().item(),
            name("class_kl"): divergence.sum().item(),
        }


class ConditionalAccuracy(Metric):
    """How often a classifier trained on real images sees the class that an image was made as (GAN-test of Shmelkov et al.
    2018). Absent where images have no labels.
    """

    short_name = "accuracy"
    higher_is_better = True
    needs_logits = True
    can_be_resampled = True

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        if fake.labels is None or fake.predictions is None:
            return {}
        return {name("accuracy"): (fake.predictions == fake.labels).double().mean().item()}


def _kept(side: FeatureStats, device: torch.device) -> Tensor:
    if side.features is None:
        raise ValueError("a metric of single images' features was given none: statistics of another program hold none")
    return side.features.to(device)
