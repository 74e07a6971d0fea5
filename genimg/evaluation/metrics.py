"""Distances between feature distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg.evaluation.statistics import GaussianStatistics


def matrix_square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix [D, D], by its eigenvalues; float64."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def frechet_distance(real: GaussianStatistics, fake: GaussianStatistics, real_root: Tensor | None = None) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). Heusel et al. 2017, equation 6.

    The trace of the root is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    and positive semidefinite: no general matrix root, no imaginary parts, and right for singular covariances too.

    Args:
        real, fake: statistics of the same features.
        real_root: the real covariance's square root, where it is at hand.
    """
    root = matrix_square_root(real.covariance) if real_root is None else real_root
    product = root @ fake.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    trace_of_root = eigenvalues.clamp(min=0.0).sqrt().sum()
    difference = (real.mean - fake.mean).square().sum()
    distance = difference + real.covariance.trace() + fake.covariance.trace() - 2.0 * trace_of_root
    return float(distance.clamp(min=0.0))  # rounding can leave -1e-12 for equal inputs
