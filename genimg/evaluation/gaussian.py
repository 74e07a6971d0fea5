"""Running sums over features in float64, in one pass, independent of the batch size and the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.utils.distributed import sum_over_ranks
from genimg.utils.exact import double


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean [D] and covariance [D, D] (with divisor N - 1) of N feature vectors, float64 on the CPU."""

    num_images: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> GaussianStatistics:
        """Compute the statistics of feature vectors [N, D] in this process, without communication.

        Raises:
            DataError: If there are fewer than two vectors.
        """
        if len(features) < 2:
            raise DataError(f"{len(features)} images are too few for a covariance: evaluate at least 2")
        values = double(features)
        mean = values.mean(dim=0)
        centred = values - mean
        return cls(len(values), mean.cpu(), (centred.T @ centred / (len(values) - 1)).cpu())


class FeatureSums:
    """Accumulator of the sum and the second moment of features, for the Fréchet distance.

    The mean of the first batch is subtracted before squaring, to avoid cancellation with a large common offset.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._shift: Tensor | None = None
        self._sum: Tensor | None = None
        self._outer: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add a batch [N, D]."""
        features = double(features)
        if self._shift is None or self._sum is None or self._outer is None:
            self._shift = features.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._outer = features.new_zeros(2 * self._shift.shape)
        centred = features - self._shift
        self._sum += centred.sum(dim=0)
        self._outer += centred.T @ centred
        self.num_images += len(features)

    def result(self) -> GaussianStatistics:
        """Return the statistics of the features of all ranks, each of which must have added some.

        Raises:
            DataError: If there are fewer than two images, so the covariance is undefined, or features are not finite.
        """
        total = int(sum_over_ranks(torch.tensor(self.num_images)))
        if total < 2:
            raise DataError(f"{total} images are too few for a covariance: evaluate at least 2")
        assert self._shift is not None
        assert self._sum is not None
        assert self._outer is not None
        n, offset = self.num_images, self._sum / self.num_images
        own_mean = self._shift + offset
        # The scatter of each rank about its own mean, then about the global mean: Chan, Golub & LeVeque 1979.
        scatter = self._outer - n * torch.outer(offset, offset)
        mean = sum_over_ranks(own_mean * n) / total if total != n else own_mean
        if not bool(torch.isfinite(mean).all()):
            raise DataError("features hold NaN or infinite values: the extractor is broken, or does not suit these images")
        away = own_mean - mean
        scatter = sum_over_ranks(scatter + n * torch.outer(away, away))
        return GaussianStatistics(total, mean.cpu(), (scatter / (total - 1)).cpu())


class InceptionScoreSums:
    """Accumulator of class probabilities and entropies for the Inception Score, over random splits of the images.

    Args:
        num_images: Number of images that all ranks together will add.
        splits: Number of splits over which the score is averaged (Salimans et al. 2016 use 10).
        first: Index of this rank's first image.
    """

    def __init__(self, num_images: int, splits: int, first: int = 0) -> None:
        if num_images < splits:
            raise ValueError(f"{num_images} images are too few for an Inception Score over {splits} splits")
        # The same permutation and split bounds as torch-fidelity, for equal results.
        order = np.random.RandomState(2020).permutation(num_images)
        split_of = np.empty(num_images, dtype=np.int64)
        for i in range(splits):
            split_of[order[i * num_images // splits : (i + 1) * num_images // splits]] = i
        self._split_of = torch.from_numpy(split_of)
        self._splits = splits
        self._next = first
        self._probability: Tensor | None = None
        self._negative_entropy: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """Add the next batch of class logits [N, K]."""
        log_p = double(logits).log_softmax(dim=1)
        p = log_p.exp()
        if self._probability is None or self._negative_entropy is None:
            self._probability = p.new_zeros(self._splits, p.shape[1])
            self._negative_entropy = p.new_zeros(self._splits)
        split = self._split_of[self._next : self._next + len(p)].to(p.device)
        self._probability.index_add_(0, split, p)
        self._negative_entropy.index_add_(0, split, (p * log_p).sum(dim=1))
        self._next += len(p)

    def result(self, *, of_all_ranks: bool = True) -> tuple[float, float]:
        """Return mean and standard deviation over the splits of exp(E[KL(p(y|x) || p(y))]) (Salimans et al. 2016)."""
        assert self._probability is not None
        assert self._negative_entropy is not None
        probability, negative_entropy = self._probability, self._negative_entropy
        if of_all_ranks:
            probability, negative_entropy = sum_over_ranks(probability), sum_over_ranks(negative_entropy)
        counts = torch.bincount(self._split_of, minlength=self._splits).to(probability)
        marginal = probability / counts[:, None]
        entropy = -torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = (negative_entropy / counts + entropy).exp()
        return scores.mean().item(), scores.std(correction=0).item()
