"""Densities fitted to an autoencoder's latents for sampling.

Ghosh et al. 2020, "From variational to deterministic autoencoders", section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.methods.latent import truncate
from genimg.utils.distributed import all_gather_equal_rows
from genimg.utils.exact import double
from genimg.utils.rng import Stream, normal_latents, uniform

_LLOYD = 20  # iterations of k-means before expectation maximisation
_MAX_ITERATIONS = 100
_MIN_GAIN = 1e-3  # gain of the mean log-likelihood, in nats, below which iteration ends
_FLOOR = 1e-6  # added to each variance, in units of the latents' mean variance


class Mixture(NamedTuple):
    """K Gaussians: ``weights`` [K], ``means`` [K, Z] and ``factors`` [K, Z, Z], the lower Cholesky factors of covariances."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def log_densities(self, latents: Tensor) -> Tensor:
        """Return the log of weight times density, in nats, of latents [N, Z] under every component: [N, K]."""
        columns = []
        for weight, mean, factor in zip(*self, strict=True):
            volume = factor.diagonal().log().sum() + 0.5 * len(mean) * math.log(2.0 * math.pi)
            columns.append(weight.log() - volume - 0.5 * _whitened(latents, mean, factor).square().sum(dim=1))
        return torch.stack(columns, dim=1)


def _whitened(latents: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return the standard normal numbers [N, Z] that one Gaussian maps to latents [N, Z]."""
    return torch.linalg.solve_triangular(factor, (latents - mean).T, upper=False).T


def fit_mixture(latents: Tensor, num_components: int) -> tuple[Mixture, list[float]]:
    """Fit a mixture by expectation maximisation (Dempster et al. 1977) from k-means clusters, without randomness.

    Args:
        latents: Latents, float64 [N, Z].
        num_components: Number K of Gaussians; 1 gives the maximum-likelihood Gaussian.

    Returns:
        The mixture, and the mean log-likelihood of the latents in nats at each iteration.
    """
    floor = _FLOOR * latents.var(dim=0, correction=0).mean().clamp_min(1e-12)
    shares = F.one_hot(_clusters(latents, num_components), num_components).to(latents.dtype)  # [N, K]
    mixture, found = _maximise(latents, shares, floor), [-math.inf]
    for _ in range(_MAX_ITERATIONS):
        joint = mixture.log_densities(latents)
        log_likelihoods = joint.logsumexp(dim=1, keepdim=True)
        found.append(log_likelihoods.mean().item())
        if num_components == 1 or found[-1] - found[-2] < _MIN_GAIN:
            break
        mixture = _maximise(latents, (joint - log_likelihoods).exp(), floor)
    return mixture, found[1:]


def _maximise(latents: Tensor, shares: Tensor, floor: Tensor) -> Mixture:
    """Return the mixture of maximum likelihood, given the responsibilities [N, K] of the components for each latent."""
    counts = shares.sum(dim=0).clamp_min(10 * torch.finfo(shares.dtype).eps)  # a component may have no latents
    means = shares.T @ latents / counts[:, None]
    factors = []
    for share, count, mean in zip(shares.T, counts, means, strict=True):
        centred = latents - mean
        covariance = (share[:, None] * centred).T @ centred / count
        factors.append(torch.linalg.cholesky(covariance + floor * torch.eye(len(mean)).to(covariance)))
    return Mixture(counts / counts.sum(), means, torch.stack(factors))


def _clusters(latents: Tensor, num_clusters: int) -> Tensor:
    """Return the index of each latent's cluster [N], by k-means from fixed random numbers (Arthur & Vassilvitskii 2007)."""
    chances = uniform(None, Stream.KMEANS_START, np.arange(num_clusters)).tolist()
    centres = latents[int(chances[0] * len(latents))][None]
    for chance in chances[1:]:
        sums = torch.cdist(latents, centres).square().amin(dim=1).cumsum(dim=0)
        place = torch.searchsorted(sums, chance * sums[-1:]).clamp_max(len(latents) - 1)
        centres = torch.cat([centres, latents[place]])
    for _ in range(_LLOYD):
        shares = F.one_hot(torch.cdist(latents, centres).argmin(dim=1), num_clusters).to(latents.dtype)
        counts = shares.sum(dim=0)[:, None]
        centres = torch.where(counts > 0, shares.T @ latents / counts.clamp_min(1.0), centres)
    return torch.cdist(latents, centres).argmin(dim=1)


class LatentDensity(nn.Module):
    """A mixture of Gaussians with full covariances, fitted to the latents of recent training images; before that, N(0, I).

    The latents are those that the encoder gave in the training steps, so no further pass over the data is needed. All state is
    in buffers on the device, so a checkpoint holds the latents and the fit, and a step never waits. Every rank keeps the
    latents of all ranks.

    Args:
        latent_dim: Dimension Z.
        num_components: Number K of Gaussians. 1 fits one mean and covariance; 0 fits nothing and keeps N(0, I).
        num_latents: Number of most recent latents kept for fitting.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, latent_dim: int, num_components: int, num_latents: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be 1 or more")
        if num_components < 0:
            raise ValueError(f"num_components={num_components} must be 0, for the prior N(0, I), or more")
        if num_components and num_latents < 2 * num_components:
            raise ValueError(
                f"num_latents={num_latents} are too few to fit num_components={num_components}: keep {2 * num_components} or "
                "more, preferably thousands"
            )
        self.latent_dim = latent_dim
        self.num_components = num_components
        self.latents: Tensor
        self.seen: Tensor
        self.fitted: Tensor
        self.weights: Tensor
        self.means: Tensor
        self.factors: Tensor
        count = max(num_components, 1)
        self.register_buffer("latents", torch.zeros(num_latents if num_components else 0, latent_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # latents added so far
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))  # ``seen`` at the last fit
        # A mixture of equal components N(0, I) is N(0, I).
        self.register_buffer("weights", torch.full((count,), 1.0 / count))
        self.register_buffer("means", torch.zeros(count, latent_dim))
        self.register_buffer("factors", torch.eye(latent_dim).repeat(count, 1, 1))

    @torch.no_grad()
    def add(self, latents: Tensor) -> None:
        """Replace the oldest latents by a step's latents [N, Z], with the same N on every rank."""
        size = len(self.latents)
        if size == 0:
            return
        rows = all_gather_equal_rows(latents.detach()).to(self.latents.dtype)
        kept = rows[-size:]
        places = (self.seen + torch.arange(len(rows) - len(kept), len(rows), device=rows.device)) % size
        self.latents.index_copy_(0, places, kept)
        self.seen.add_(len(rows))

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the mixture to the stored latents, deterministically, if they have changed since the last fit."""
        seen = int(self.seen)
        if seen == int(self.fitted):
            return
        latents = self.latents[: min(seen, len(self.latents))]
        latents = latents[latents.isfinite().all(dim=1)]  # divergence is reported elsewhere
        if len(latents) == 0:
            return
        mixture, _ = fit_mixture(double(latents), self.num_components)
        for buffer, value in zip((self.weights, self.means, self.factors), mixture, strict=True):
            buffer.copy_(value)
        self.fitted.copy_(self.seen)

    def at_indices(self, indices: Sequence[int], seed: int) -> Tensor:
        """Return latents [N, Z] on the CPU; row i is a function of (seed, indices[i]) and the last fit."""
        numbers = normal_latents(seed, indices, self.latent_dim)
        chances = torch.from_numpy(uniform(seed, Stream.COMPONENT, np.asarray(indices)))
        return self.from_normal(numbers, chances)

    def from_normal(self, normal: Tensor, chances: Tensor) -> Tensor:
        """Map standard normal numbers [N, Z] and uniform numbers in [0, 1) [N] to latents [N, Z], all on the CPU."""
        mixture = self._mixture()
        sums = mixture.weights.cumsum(dim=0)
        chosen = torch.searchsorted(sums, double(chances) * sums[-1], right=True).clamp_max(len(sums) - 1)
        return _placed(double(normal), chosen, mixture).to(normal.dtype)

    def truncated(self, latents: Tensor, limit: float) -> Tensor:
        """Move latents [N, Z] on the CPU towards the mean of the Gaussian that each most likely comes from.

        Args:
            latents: Result of ``at_indices``, or interpolations between its rows.
            limit: Limit of the underlying standard normal numbers; see ``latent.truncate``.
        """
        mixture, wide = self._mixture(), double(latents)
        chosen = mixture.log_densities(wide).argmax(dim=1)
        normal = torch.empty_like(wide)
        for number in chosen.unique().tolist():
            rows = chosen == number
            normal[rows] = _whitened(wide[rows], mixture.means[number], mixture.factors[number])
        return _placed(truncate(normal, limit), chosen, mixture).to(latents.dtype)

    def mean(self) -> Tensor:
        """Return the mean of the mixture: [Z]."""
        return self.weights @ self.means

    def _mixture(self) -> Mixture:
        # The computation is in float64 and rounded at the end, so a row does not depend on the other rows.
        return Mixture(*(double(buffer.cpu()) for buffer in (self.weights, self.means, self.factors)))


class ExportedMixture(nn.Module):
    """Maps standard normal numbers [N, Z] and uniform numbers in [0, 1) [N] to latents of a density, in float32."""

    bounds: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, density: LatentDensity) -> None:
        super().__init__()
        sums = double(density.weights.cpu()).cumsum(dim=0)
        self.register_buffer("bounds", (sums / sums[-1])[:-1].float())
        self.register_buffer("means", density.means)
        self.register_buffer("factors", density.factors)

    def forward(self, normal: Tensor, chances: Tensor | None) -> Tensor:
        """Return latents [N, Z]; ``chances`` is None for a single Gaussian."""
        if chances is None:
            return self.means[0] + normal @ self.factors[0].t()
        chosen = (chances[:, None] >= self.bounds).long().sum(dim=1)  # [N]
        # Compute all products and then select one per row, which avoids gathering a batch of matrices.
        placed = torch.stack([mean + normal @ factor.t() for mean, factor in zip(self.means, self.factors, strict=True)], dim=1)
        index = chosen[:, None, None].expand(-1, 1, placed.shape[2])
        return placed.gather(1, index)[:, 0]


def _placed(normal: Tensor, chosen: Tensor, mixture: Mixture) -> Tensor:
    """Map standard normal numbers [N, Z] to latents of the chosen components [N]: [N, Z]."""
    latents = torch.empty_like(normal)
    for number in chosen.unique().tolist():
        rows = chosen == number
        latents[rows] = mixture.means[number] + normal[rows] @ mixture.factors[number].T
    return latents
