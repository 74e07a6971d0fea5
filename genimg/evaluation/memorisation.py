"""Share of generated images that are copies of training images: a nearest-neighbour test, calibrated on held-out images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric
from genimg.utils.exact import double

_BLOCK = 1024  # rows of a distance matrix held in memory at once
_ROUNDING = 2e-3  # relative to the features' spread


class Memorisation(Metric):
    """The share of generated images that are copies of training images, from -1 / (1 / quantile - 1) to 1.

    The value is 0 on average for fresh images of the training distribution and 1 if all images are copies. The distance of an
    image to its nearest training image is divided by that image's distance to its own nearest neighbour, as in the
    authenticity of Alaa et al. 2022 (section 4). The bound for copies is a quantile of this ratio over held-out images, as
    in the test of Meehan et al. 2020; see ``memorised_share``. A model whose images are far from all real images has a value
    slightly below 0.

    All training and held-out images are used, so their features must fit into memory.

    Args:
        quantile: Share of the held-out images that lies below the bound, between 0 and 1. A larger value finds more distant
            copies; a smaller value depends less on the quality of the other images.
    """

    short_name = "memorised"
    higher_is_better = False
    needs_features = True
    needs_held_out = True

    def __init__(self, *, quantile: float) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile={quantile} must lie between 0 and 1")
        self.quantile = quantile

    def compute(self, real: FeatureStats, fake: FeatureStats, device: torch.device) -> dict[str, float]:
        assert real.training is not None
        assert real.held_out is not None
        assert real.training.features is not None
        assert real.held_out.features is not None
        assert fake.features is not None
        training = real.training.features.to(device)
        if real.held_out.closeness is None:  # computed once: these images do not change
            real.held_out.closeness = closeness(real.held_out.features.to(device), training)
        found = closeness(fake.features.to(device), training)
        return {"memorised": memorised_share(found, real.held_out.closeness, self.quantile)}


@dataclass(frozen=True)
class Closeness:
    """Distances of images to the training images.

    Attributes:
        distance: Distance from each image to its nearest training image, float32 [N].
        scale: Distance from that training image to its own nearest neighbour that is not a duplicate, float32 [N].
        index: Index of the nearest training image, int64 [N].
    """

    distance: Tensor
    scale: Tensor
    index: Tensor

    @property
    def ratio(self) -> Tensor:
        """Ratio distance / scale; 0 at distance 0 for any scale."""
        return torch.where(self.distance > 0.0, self.distance / self.scale, 0.0)


def closeness(features: Tensor, training: Tensor) -> Closeness:
    """Return the distances of features [N, D] to their nearest training features [T, D], with the scales of the latter.

    The nearest training image is found by matrix products. Its distance is then computed from the difference, so copies have
    distance 0.

    Raises:
        DataError: If there are fewer than two training images.
    """
    if len(training) < 2:
        raise DataError(f"{len(training)} training image is too few to measure memorisation: two or more are needed")
    training = training.float()
    centre = training.mean(dim=0)
    x, reference = features.float() - centre, training - centre
    nearest = torch.cat([torch.cdist(rows, reference).argmin(dim=1) for rows in x.split(_BLOCK)])
    rows, where = nearest.unique(return_inverse=True)
    # Neighbours within the rounding error of matrix products are duplicates, or the image itself.
    rounding = _ROUNDING * reference.square().sum(dim=1).mean().sqrt()
    others = torch.cat([_nearest_beyond(rounding, reference[own], reference) for own in rows.split(_BLOCK)])
    scales = (reference[rows] - reference[others]).norm(dim=1)
    return Closeness((x - reference[nearest]).norm(dim=1), scales[where], nearest)


def memorised_share(generated: Closeness, held_out: Closeness, quantile: float) -> float:
    """Estimate the share c of copies, assuming that all other images are as near to the training images as held-out ones.

    An image is suspicious if its ratio is at most the given quantile of the ratios of the held-out images. All copies are
    suspicious, and so is a share h of fresh images, measured on the held-out images. With the share g of suspicious generated
    images, c + (1 - c) h = g, so c = (g - h) / (1 - h).

    Returns:
        1 if all images are copies. For fresh images the mean is 0 and the standard deviation ``fresh_deviation``.
    """
    known = double(held_out.ratio)
    bound = known.sort().values[max(0, round(quantile * len(known)) - 1)]
    h, g = (double(ratio <= bound).mean().item() for ratio in (known, double(generated.ratio)))
    return (g - h) / (1.0 - h) if h < 1.0 else 0.0


def fresh_deviation(quantile: float, num_generated: int, num_held_out: int) -> float:
    """Return the standard deviation of ``memorised_share`` for fresh images."""
    return math.sqrt(quantile / (1.0 - quantile) * (1.0 / num_generated + 1.0 / num_held_out))


def _nearest_beyond(least: Tensor, queries: Tensor, reference: Tensor) -> Tensor:
    """Return the index of the reference row [T, D] nearest to each query [N, D] among those farther away than ``least``."""
    distances = torch.cdist(queries, reference)
    return distances.masked_fill_(distances <= least, torch.inf).argmin(dim=1)
