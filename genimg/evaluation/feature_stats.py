"""Statistics of a set of images, collected in one pass: everything that the metrics need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.subsets import fixed_subset, lowest
from genimg.evaluation.distances import matrix_square_root, neighbor_distances
from genimg.evaluation.gaussian import FeatureSums, GaussianStatistics, InceptionScoreSums
from genimg.utils.distributed import all_gather_rows

if TYPE_CHECKING:
    from genimg.evaluation.memorisation import Closeness


@dataclass
class FeatureStats:
    """Statistics of a set of images.

    Attributes:
        moments: Mean and covariance of all features.
        features: Features of some or all images, float32 [M, D] on the CPU; None if no metric needs them.
        positions: Increasing indices of these images, int64 [M].
        logits: Logits of these images, float32 [M, K]; None if not kept.
        predictions: Classes with the highest logit, int64 [N]; None without logits.
        labels: Class labels, or classes that were requested of the generator, int64 [N]; None without labels.
        scores: Inception Score (mean, deviation) by number of splits.
        spatial: Mean and covariance of the spatial features, if a metric needs them.
        training, held_out: Statistics with all features of the training images and of the held-out images, if a metric
            needs them; only for real images.
        closeness: Closeness of the held-out images to the training images, once computed.
    """

    moments: GaussianStatistics
    features: Tensor | None = None
    positions: Tensor | None = None
    logits: Tensor | None = None
    predictions: Tensor | None = None
    labels: Tensor | None = None
    scores: dict[int, tuple[float, float]] = field(default_factory=dict)
    spatial: GaussianStatistics | None = None
    training: FeatureStats | None = None
    held_out: FeatureStats | None = None
    closeness: Closeness | None = None
    _root: Tensor | None = None
    _radii: dict[tuple[int, tuple[int, ...]], list[Tensor]] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return self.moments.num_images

    @property
    def num_features(self) -> int:
        return len(self.moments.mean)

    @property
    def root(self) -> Tensor:
        """Square root of the covariance [D, D]; computed once."""
        if self._root is None:
            self._root = matrix_square_root(self.moments.covariance)
        return self._root

    def features_of(self, count: int) -> Tensor:
        """Return features [count, D] of randomly chosen images; the choice does not depend on how many features are kept."""
        assert self.features is not None
        if count == len(self.features):
            return self.features
        positions = np.arange(len(self.features)) if self.positions is None else self.positions.numpy()
        return self.features[torch.from_numpy(lowest(count, positions))]

    def neighbor_distances(self, ks: tuple[int, ...], device: torch.device, count: int | None = None) -> list[Tensor]:
        """Return the distance of each image to its k-th nearest other image, for each k.

        The images are those of ``features_of(count)``, or all images with features if ``count`` is None. Results are cached.
        """
        assert self.features is not None
        count = len(self.features) if count is None else count
        if (count, ks) not in self._radii:
            self._radii[count, ks] = neighbor_distances(self.features_of(count).to(device), ks)
        return [radii.to(device) for radii in self._radii[count, ks]]

    def with_features_of(self, positions: NDArray[np.int64] | None) -> FeatureStats | None:
        """Return these statistics with only the features at ``positions`` (None: no features), or None if some are missing."""
        if positions is None:
            return replace(self, features=None, positions=None, _root=self.root)
        if self.features is None or self.positions is None:
            return None
        rows = np.searchsorted(self.positions.numpy(), positions)
        rows = rows[rows < len(self.positions)]
        if len(rows) < len(positions) or not np.array_equal(self.positions.numpy()[rows], positions):
            return None
        features = self.features[torch.from_numpy(rows)]
        return replace(self, features=features, positions=torch.from_numpy(positions), _root=self.root, _radii={})

    def with_moments_of(self, other: FeatureStats) -> FeatureStats:
        """Return these statistics with the moments of ``other``."""
        return replace(self, moments=other.moments, spatial=other.spatial or self.spatial, _root=None)

    def resampled(self, rows: Tensor) -> FeatureStats:
        """Return the statistics of a resample: images ``rows``, which may repeat. The features of all images must be kept."""
        assert self.features is not None
        assert len(self.features) == self.num_images
        scores = {}
        logits = None if self.logits is None else self.logits[rows]
        if logits is not None:
            for splits in self.scores:
                sums = InceptionScoreSums(len(rows), splits)
                sums.add(logits)
                scores[splits] = sums.result(of_all_ranks=False)  # every rank has all rows
        features = self.features[rows]
        return FeatureStats(
            moments=GaussianStatistics.of(features),
            features=features,
            positions=rows,
            logits=logits,
            predictions=None if self.predictions is None else self.predictions[rows],
            labels=None if self.labels is None else self.labels[rows],
            scores=scores,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives, including the square root of the covariance."""
        return {
            "num_images": self.num_images,
            "mean": self.moments.mean,
            "covariance": self.moments.covariance,
            "root": self.root,
            "features": self.features,
            "positions": self.positions,
            "predictions": self.predictions,
            "spatial": None if self.spatial is None else vars(self.spatial),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> FeatureStats:
        """Restore what ``state_dict`` returned; scores, logits and labels exist only for generated images and are not saved."""
        moments = GaussianStatistics(int(state["num_images"]), state["mean"], state["covariance"])
        kept = {key: state[key] for key in ("features", "positions", "predictions")}
        spatial = None if state["spatial"] is None else GaussianStatistics(**state["spatial"])
        return cls(moments, **kept, spatial=spatial, _root=state["root"])


class Collector:
    """Accumulator that builds a FeatureStats batch by batch, without synchronising with the device before ``result``.

    Args:
        num_images: Number of images that all ranks together will add.
        first: Index of this rank's first image.
        splits: Number of splits of each requested Inception Score.
        kept: Increasing indices of the images whose features are kept; None keeps none.
        keep_logits: Whether logits are kept like features.
        spatial: Whether moments of spatial features are computed.
    """

    def __init__(
        self,
        num_images: int,
        *,
        first: int = 0,
        splits: Iterable[int] = (),
        kept: NDArray[np.int64] | None = None,
        keep_logits: bool = False,
        spatial: bool = False,
    ) -> None:
        self._next = first
        self._spatial = FeatureSums() if spatial else None
        self._sums = FeatureSums()
        self._scores = {count: InceptionScoreSums(num_images, count, first) for count in splits}
        self._kept = kept
        self._keep_logits = keep_logits
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, features: Tensor, logits: Tensor | None, labels: Tensor | None, spatial: Tensor | None = None) -> None:
        """Add the next batch: features [N, D], logits [N, K], labels [N] and spatial features [N, S]."""
        self._sums.add(features)
        if self._spatial is not None:
            assert spatial is not None
            self._spatial.add(spatial)
        if self._kept is not None:
            first, last = np.searchsorted(self._kept, [self._next, self._next + len(features)])
            rows = torch.from_numpy(self._kept[first:last] - self._next).to(features.device)
            self._features.append(features[rows].float())
            if self._keep_logits and logits is not None:
                self._logits.append(logits[rows].float())
        if logits is not None:
            for sums in self._scores.values():
                sums.add(logits)
            self._predictions.append(logits.argmax(dim=1))
        if labels is not None:
            self._labels.append(labels)
        self._next += len(features)

    def result(self) -> FeatureStats:
        """Return the statistics over all ranks, the same on each rank.

        Raises:
            DataError: If there are fewer than two images, or features are not finite.
        """
        return FeatureStats(
            moments=self._sums.result(),
            spatial=None if self._spatial is None else self._spatial.result(),
            features=_joined(self._features),
            positions=None if self._kept is None else torch.from_numpy(self._kept),
            logits=_joined(self._logits),
            predictions=_joined(self._predictions),
            labels=_joined(self._labels),
            scores={splits: sums.result() for splits, sums in self._scores.items()} if self._predictions else {},
        )


def _joined(parts: list[Tensor]) -> Tensor | None:
    return all_gather_rows(torch.cat([part.cpu() for part in parts])) if parts else None


def kept_positions(count: int, most: int) -> NDArray[np.int64]:
    """Choose at most ``most`` numbers from ``range(count)``, sorted; a smaller choice is a subset of every larger one."""
    return fixed_subset(min(count, most), count)
