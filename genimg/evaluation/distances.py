"""Comparisons of two sets of features: Fréchet distance, kernel distance and nearest neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.evaluation.gaussian import GaussianStatistics
from genimg.utils.exact import double

_BLOCK = 4096  # rows of a distance matrix held in memory at once


def matrix_square_root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite float64 matrix [D, D], by its eigendecomposition."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def frechet_distance(
    real: GaussianStatistics, fake: GaussianStatistics, real_root: Tensor | None = None, fake_features: Tensor | None = None
) -> float:
    """Return the Fréchet distance between two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    See Heusel et al. 2017, equation 6. The trace of the root is the sum of the square roots of the eigenvalues of
    S1^(1/2) S2 S1^(1/2). This matrix is symmetric and positive semidefinite, which avoids general matrix roots and imaginary
    parts. A covariance of N images has a rank of at most N - 1. The remaining eigenvalues are rounding errors, whose roots
    would add up, and are omitted.

    Args:
        real, fake: Statistics of the same features.
        real_root: Square root of the real covariance, if known.
        fake_features: Features [M, D] of all M generated images, if known. With M < D, the nonzero eigenvalues are those of
            the M x M matrix X S1 X^T / (M - 1) with X centred, which needs no root and far less work.
    """
    if fake_features is not None and len(fake_features) < len(fake.mean):
        centred = double(fake_features) - fake.mean
        product = centred @ real.covariance @ centred.T / (len(centred) - 1)
    else:
        root = matrix_square_root(real.covariance) if real_root is None else real_root
        product = root @ fake.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    rank = min(real.num_images - 1, fake.num_images - 1, len(eigenvalues))
    trace_of_root = eigenvalues[len(eigenvalues) - rank :].clamp(min=0.0).sqrt().sum()
    difference = (real.mean - fake.mean).square().sum()
    distance = difference + real.covariance.trace() + fake.covariance.trace() - 2.0 * trace_of_root
    return float(distance.clamp(min=0.0))  # rounding can leave -1e-12 for equal inputs


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int, subset_size: int) -> tuple[float, float]:
    """Return the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018).

    Args:
        real, fake: Features [N, D] and [M, D], on one device.
        subsets: Number of random pairs of subsets, drawn as in torch-fidelity with the generated images as first input.
        subset_size: Number of images in each subset, at most N and M.

    Returns:
        Mean and standard deviation over the subsets; the mean can be slightly negative.
    """
    rng = np.random.RandomState(2020)
    x, y = real.float(), fake.float()
    drawn = [(rng.choice(len(y), subset_size, replace=False), rng.choice(len(x), subset_size, replace=False))
             for _ in range(subsets)]  # fmt: skip
    if len(x) ** 2 + len(y) ** 2 + len(x) * len(y) <= 3 * subsets * subset_size**2:
        # With few images and many subsets the same pairs recur, so the kernel of each pair is computed only once.
        in_y, in_x = (_membership([each[side] for each in drawn], count, x) for side, count in ((0, len(y)), (1, len(x))))
        within = _off_diagonal_sums(x, in_x) + _off_diagonal_sums(y, in_y)
        across = _pair_sums(x, y, in_x, in_y)
    else:
        within, across = torch.empty(subsets, dtype=torch.float64), torch.empty(subsets, dtype=torch.float64)
        for number, (i, j) in enumerate(drawn):
            u, v = x[torch.from_numpy(j).to(x.device)], y[torch.from_numpy(i).to(y.device)]
            whole = torch.ones(1, subset_size, device=x.device)
            within[number] = (_off_diagonal_sums(u, whole) + _off_diagonal_sums(v, whole))[0]
            across[number] = _pair_sums(u, v, whole, whole)[0]
    values = within / (subset_size * (subset_size - 1)) - 2.0 * across / subset_size**2
    return values.mean().item(), values.std(correction=0).item()


@dataclass(frozen=True)
class NeighborRates:
    """Precision, recall, density and coverage; see ``neighbor_rates``."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbor_rates(
    real: Tensor, fake: Tensor, *, neighbors: int, density_neighbors: int, real_radii: list[Tensor] | None = None
) -> NeighborRates:
    """Return precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The manifold of a set is the union of balls around its images, with the distance to the k-th nearest neighbour as radius.
    Distances are computed by float32 matrix products, as in the public implementations, so distances below a thousandth of
    the features' spread are rounding errors.

    Args:
        real, fake: Features [N, D] and [M, D], on one device.
        neighbors: k for precision and recall; the paper uses 3.
        density_neighbors: k for density and coverage; the paper uses 5.
        real_radii: ``neighbor_distances`` of the real images for both k, if known.
    """
    centre = real.float().mean(dim=0)  # matrix products give more exact distances near the origin
    x, y = real.float() - centre, fake.float() - centre
    real_radius, density_radius = real_radii or neighbor_distances(real, (neighbors, density_neighbors))
    (fake_radius,) = neighbor_distances(fake, (neighbors,))
    precise, inside, covered = [], torch.zeros((), dtype=torch.int64, device=x.device), torch.zeros_like(x[:, 0]).bool()
    recalled = torch.zeros_like(covered)
    for start in range(0, len(y), _BLOCK):
        distances = torch.cdist(y[start : start + _BLOCK], x)  # [block, N]
        precise.append((distances <= real_radius).any(dim=1))
        recalled |= (distances <= fake_radius[start : start + _BLOCK, None]).any(dim=0)
        within = distances < density_radius  # strict, as in the authors' code: a set's density in itself is about 1
        inside += within.sum()
        covered |= within.any(dim=0)
    return NeighborRates(
        precision=double(torch.cat(precise)).mean().item(),
        recall=double(recalled).mean().item(),
        density=inside.item() / (density_neighbors * len(y)),
        coverage=double(covered).mean().item(),
    )


def expected_coverage(num_real: int, num_fake: int, neighbors: int) -> float:
    """Return the expected coverage if both distributions are equal: 1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)).

    This is the probability that at least one of M generated images is among the k nearest neighbours of a real image, given N
    real images (Naeem et al. 2020, equation 8). It holds for every continuous distribution.
    """
    factors = ((num_real - i) / (num_fake + num_real - i) for i in range(1, neighbors + 1))
    return 1.0 - math.prod(factors)


def neighbor_distances(features: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """Return the distance [N] from each row of features [N, D] to its k-th nearest other row, for each k."""
    x = features.float() - features.float().mean(dim=0)
    found: list[list[Tensor]] = [[] for _ in ks]
    for start in range(0, len(x), _BLOCK):
        nearest = torch.cdist(x[start : start + _BLOCK], x).topk(max(ks) + 1, dim=1, largest=False).values
        for k, parts in zip(ks, found, strict=True):
            parts.append(nearest[:, k])  # the first is the row itself
    return [torch.cat(parts) for parts in found]


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = torch.addmm(torch.ones((), device=x.device), x, y.T, alpha=1.0 / x.shape[1])
    return base.mul_(base.square())


def _membership(subsets: list[NDArray[np.int64]], count: int, like: Tensor) -> Tensor:
    """Return a matrix [S, N] with 1 where image n is in subset s."""
    rows = torch.zeros(len(subsets), count, device=like.device)
    for row, members in zip(rows, subsets, strict=True):
        row[torch.from_numpy(members).to(like.device)] = 1.0
    return rows


def _pair_sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Return the kernel summed over all pairs of a subset of x and a subset of y: float64 [S], on the CPU."""
    total = torch.zeros(len(in_x), dtype=torch.float64)
    for start in range(0, len(x), _BLOCK):
        sums = in_x[:, start : start + _BLOCK] @ _kernel(x[start : start + _BLOCK], y)  # [S, M], sums of few terms
        total += double((sums * in_y).cpu()).sum(dim=1)
    return total


def _off_diagonal_sums(x: Tensor, in_x: Tensor) -> Tensor:
    diagonal = (x.square().sum(dim=1) / x.shape[1] + 1.0) ** 3
    return _pair_sums(x, x, in_x, in_x) - double((in_x * diagonal).cpu()).sum(dim=1)
