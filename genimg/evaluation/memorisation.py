"""How many generated images are copies of training images: a nearest-neighbour test, calibrated on held-out images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.metrics import Metric, Name

_BLOCK = 1024  # rows of a distance matrix that are held at once
_ROUNDING = 2e-3  # of the features' spread


class Memorisation(Metric):
    """The share of generated images that are copies of training images, from -1 / (1 / quantile - 1) to 1.

    0 on average for fresh images of the training distribution, 1 where all are copies. Whether an image is too near to its
    nearest training image is measured in units of that one's distance to its own nearest neighbour, as the authenticity of
    Alaa et al. 2022 does (section 4); how near is too near is read off images that were held out of the training, as in the
    test of Meehan et al. 2020, so the value needs no interpretation: see ``memorised_share``. A model whose images are far
    from all real ones has a value a little below 0.

    All training images take part, so their features must fit into memory, and all held-out ones.

    Args:
        quantile: Share of the held-out images that lies below the bound, between 0 and 1. The larger, the more distant copies
            are found; the smaller, the less does the quality of the other images matter.
    """

    short_name = "memorised"
    higher_is_better = False
    needs_features = True
    needs_held_out = True

    def __init__(self, *, quantile: float) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile={quantile} must lie between 0 and 1")
        self.quantile = quantile

    def compute(self, real: FeatureStats, fake: FeatureStats, name: Name, device: torch.device) -> dict[str, float]:
        assert real.training is not None
        assert real.held_out is not None
        assert real.training.features is not None
        assert real.held_out.features is not None
        assert fake.features is not None
        training = real.training.features.to(device)
        if real.held_out.closeness is None:  # of images that stay
            real.held_out.closeness = closeness(real.held_out.features.to(device), training)
        found = closeness(fake.features.to(device), training)
        return {name("memorised"): memorised_share(found, real.held_out.closeness, self.quantile)}


@dataclass(frozen=True)
class Closeness:
    """How near images lie to the training images.

    Attributes:
        distance: float32 [N], from each image to its nearest training image.
        scale: float32 [N], from that training image to its own nearest other one that is not a duplicate.
        index: int64 [N], which one it is.
    """

    distance: Tensor
    scale: Tensor
    index: Tensor

    @property
    def ratio(self) -> Tensor:
        """distance / scale; 0 at distance 0, whatever the scale."""
        return torch.where(self.distance > 0.0, self.distance / self.scale, 0.0)


def closeness(features: Tensor, training: Tensor) -> Closeness:
    """The distance of features [N, D] to the nearest of the training images' [T, D], and that one's own to its nearest.

    The nearest is found by matrix products; its distance is then computed from the difference, so that a copy is at distance 0.

    Raises:
        ValueError: for fewer than two training images.
    """
    if len(training) < 2:
        raise DataError(f"{len(training)} training image is too few to measure memorisation: two or more are needed")
    training = training.float()
    centre = training.mean(dim=0)
    x, reference = features.float() - centre, training - centre
    nearest = torch.cat([torch.cdist(rows, reference).argmin(dim=1) for rows in x.split(_BLOCK)])
    rows, where = nearest.unique(return_inverse=True)
    # What is nearer than the rounding of matrix products is a duplicate, or the image itself.
    rounding = _ROUNDING * reference.square().sum(dim=1).mean().sqrt()
    others = torch.cat([_nearest_beyond(rounding, reference[own], reference) for own in rows.split(_BLOCK)])
    scales = (reference[rows] - reference[others]).norm(dim=1)
    return Closeness((x - reference[nearest]).norm(dim=1), scales[where], nearest)


def memorised_share(generated: Closeness, held_out: Closeness, quantile: float) -> float:
    """The share of copies c among generated images, of which the others are as near to the training images as held-out ones.

    An image is suspicious if its ratio is at most that ``quantile`` of the held-out images'. Of fresh images a share h is
    suspicious, the held-out images' own; of copies all are. From c + (1 - c) h = g, the generated images' share, follows
    c = (g - h) / (1 - h).

    Returns:
        1 where all are copies; 0 on average for fresh images, with ``fresh_deviation``, and so at times a little below 0.
    """
    known = held_out.ratio.double()
    bound = known.sort().values[max(0, round(quantile * len(known)) - 1)]
    h, g = ((ratio <= bound).double().mean().item() for ratio in (known, generated.ratio.double()))
    return (g - h) / (1.0 - h) if h < 1.0 else 0.0


def fresh_deviation(quantile: float, num_generated: int, num_held_out: int) -> float:
    """The standard deviation of ``memorised_share`` for fresh images."""
    return math.sqrt(quantile / (1.0 - quantile) * (1.0 / num_generated + 1.0 / num_held_out))


def _nearest_beyond(least: Tensor, queries: Tensor, reference: Tensor) -> Tensor:
    """Which row of the reference [T, D] is the nearest to each query [N, D] of those at a distance of more than ``least``."""
    distances = torch.cdist(queries, reference)
    return distances.masked_fill_(distances <= least, torch.inf).argmin(dim=1)
