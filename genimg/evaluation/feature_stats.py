"""What one pass over a set of images leaves behind: everything that any metric needs of it."""

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
    """A set of images as the metrics see it.

    Attributes:
        moments: of all its features.
        features: float32 [M, D] of some or all images, on the CPU; None where no metric asked for them.
        positions: int64 [M], increasing: which images those are.
        logits: float32 [M, K] of the same images, likewise.
        predictions: int64 [N], the class with the highest logit; None without logits.
        labels: int64 [N], the classes that the images were made or labelled as; None where there are none.
        scores: Inception Score (mean, deviation) by the number of splits.
        spatial: moments of the spatial features, where a metric asked for them.
        training, held_out: of real images, where a metric needs them: all those of the training, with all their features, and
            such as training does not see.
        closeness: of held-out images to those of the training, once it is known.
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
        """The square root of the covariance [D, D]; computed once."""
        if self._root is None:
            self._root = matrix_square_root(self.moments.covariance)
        return self._root

    def features_of(self, count: int) -> Tensor:
        """Features [count, D] of random images: always the same ones, however many features are kept."""
        assert self.features is not None
        if count == len(self.features):
            return self.features
        positions = np.arange(len(self.features)) if self.positions is None else self.positions.numpy()
        return self.features[torch.from_numpy(lowest(count, positions))]

    def neighbor_distances(self, ks: tuple[int, ...], device: torch.device, count: int | None = None) -> list[Tensor]:
        """Of each image of ``features_of(count)``, or of all with features, to its k-th nearest other one, for each k.

        Computed once, because the real images stay.
        """
        assert self.features is not None
        count = len(self.features) if count is None else count
        if (count, ks) not in self._radii:
            self._radii[count, ks] = neighbor_distances(self.features_of(count).to(device), ks)
        return [radii.to(device) for radii in self._radii[count, ks]]

    def with_features_of(self, positions: NDArray[np.int64] | None) -> FeatureStats | None:
        """The summary with features of these images alone (None: of none); None where it does not have them all."""
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

    def resampled(self, rows: Tensor) -> FeatureStats:
        """The summary of the images with these numbers, where one may occur several times; needs features of all images."""
        assert self.features is not None
        assert len(self.features) == self.num_images
        scores = {}
        logits = None if self.logits is None else self.logits[rows]
        if logits is not None:
            for splits in self.scores:
                sums = InceptionScoreSums(len(rows), splits)
                sums.add(logits)
                scores[splits] = sums.result(of_all_ranks=False)  # every rank has all the rows
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
        """Tensors and primitives, the covariance's square root included."""
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
        """As ``state_dict`` gave it; scores, logits and labels are of generated images only and not kept."""
        moments = GaussianStatistics(int(state["num_images"]), state["mean"], state["covariance"])
        kept = {key: state[key] for key in ("features", "positions", "predictions")}
        spatial = None if state["spatial"] is None else GaussianStatistics(**state["spatial"])
        return cls(moments, **kept, spatial=spatial, _root=state["root"])


class Collector:
    """Builds a FeatureStats batch by batch, on the features' device: nothing waits for it until the result is asked for.

    Args:
        num_images: how many all ranks will add.
        first: the number of this rank's first image.
        splits: of each Inception Score that is asked for.
        kept: increasing numbers of the images whose features are kept; None keeps none.
        keep_logits: whether logits are kept like the features.
        spatial: whether moments of spatial features are asked for.
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
        """Over all ranks; the same on each.

        Raises:
            ValueError: with fewer than two images.
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
    """At most ``most`` numbers of ``range(count)``, increasing; a smaller choice is part of every larger one."""
    return fixed_subset(min(count, most), count)
