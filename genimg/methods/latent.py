"""Distributions of latents, drawn from the step's random stream in training and by index in evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from genimg.errors import ConfigError
from genimg.methods.export_spec import NORMAL
from genimg.utils.exact import double
from genimg.utils.rng import normal_latents


class Latent(ABC):
    """Independent components of one distribution, computed as a function of standard normal numbers.

    ``at_indices`` applies this function to normal latents of the same seed and indices.

    Attributes:
        dim: Dimension Z.
    """

    def __init__(self, *, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim} must be 1 or more")
        self.dim = dim

    @abstractmethod
    def from_normal(self, normal: Tensor) -> Tensor:
        """Map standard normal numbers of any shape to latents of the same shape."""

    @abstractmethod
    def truncated(self, latent: Tensor, limit: float) -> Tensor:
        """Map latents of any shape to the same quantiles of the distribution truncated to [-limit, limit].

        Raises:
            ConfigError: If the limit is not above 0, or the latents already lie within a narrower interval.
        """

    def describe(self) -> str:
        """Describe the latents for a user of an exported network."""
        return f"numbers of {type(self).__name__}"

    def random(self, count: int, device: torch.device) -> Tensor:
        """Draw latents [count, Z] from the device's random stream."""
        return self.from_normal(torch.randn(count, self.dim, device=device))

    def at_indices(self, indices: Sequence[int], seed: int) -> Tensor:
        """Return latents [N, Z] on the CPU; row i is a function of (seed, indices[i]) alone."""
        return self.from_normal(normal_latents(seed, indices, self.dim))


class Normal(Latent):
    """N(0, 1)."""

    def describe(self) -> str:
        return NORMAL

    def from_normal(self, normal: Tensor) -> Tensor:
        return normal

    def truncated(self, latent: Tensor, limit: float) -> Tensor:
        return truncate(latent, limit)


class Uniform(Latent):
    """Uniform in [-1, 1]: Radford et al. 2016, section 4."""

    def describe(self) -> str:
        return "uniform numbers in [-1, 1]"

    def from_normal(self, normal: Tensor) -> Tensor:
        return torch.erf(normal / math.sqrt(2.0))

    def truncated(self, latent: Tensor, limit: float) -> Tensor:
        _require_positive(limit)
        _require_narrower(limit, 1.0)
        return latent * limit


class Truncated(Latent):
    """N(0, 1) within [-limit, limit]: the truncation trick of Brock et al. 2019, section 3.1.

    Args:
        dim: Dimension Z.
        limit: Limit in standard deviations, above 0.
    """

    def __init__(self, *, dim: int, limit: float) -> None:
        super().__init__(dim=dim)
        if not limit > 0:
            raise ValueError(f"limit={limit} must be above 0 standard deviations")
        self.limit = limit

    def describe(self) -> str:
        return f"{NORMAL} within [-{self.limit:g}, {self.limit:g}]"

    def from_normal(self, normal: Tensor) -> Tensor:
        return truncate(normal, self.limit)

    def truncated(self, latent: Tensor, limit: float) -> Tensor:
        _require_positive(limit)
        _require_narrower(limit, self.limit)
        return _squeeze(latent, _mass(limit) / _mass(self.limit), limit)


def truncate(normal: Tensor, limit: float) -> Tensor:
    """Map standard normal numbers to the normal distribution truncated to [-limit, limit], keeping their order.

    The map uses the quantile function, so no number is discarded; the original method resamples numbers outside the limits.

    Raises:
        ConfigError: If the limit is not above 0.
    """
    _require_positive(limit)
    return _squeeze(normal, _mass(limit), limit)


def _mass(limit: float) -> float:
    """Return the mass of N(0, 1) within [-limit, limit]."""
    return math.erf(limit / math.sqrt(2.0))


def _squeeze(normal: Tensor, share: float, limit: float) -> Tensor:
    """Move each number towards 0, so the mass of N(0, 1) between 0 and the number becomes ``share`` times as large."""
    # In float32, erf is 1 above 5, and erfinv(1) is infinite. On the CPU, because some devices have no float64.
    wide = torch.erf(double(normal.cpu()) / math.sqrt(2.0)) * share
    return (torch.erfinv(wide) * math.sqrt(2.0)).clamp(-limit, limit).to(normal)


def _require_positive(limit: float) -> None:
    if not limit > 0:
        raise ConfigError(
            f"truncation={limit:g} leaves no latents to draw",
            "choose a number above 0; 0 is for generators with their own truncation, such as StyleGAN2's",
        )


def _require_narrower(limit: float, own: float) -> None:
    if limit > own:
        raise ConfigError(f"truncation={limit:g} has no effect on latents within [-{own:g}, {own:g}]", "lower it, or use null")


def interpolate(start: Tensor, end: Tensor, weights: Tensor, *, spherical: bool) -> Tensor:
    """Interpolate between two latents.

    Args:
        start, end: Latents [Z].
        weights: Positions [S], 0 for the start and 1 for the end.
        spherical: Whether to follow the great circle (White 2016, "Sampling generative networks", section 2.1), which keeps the
            norms of normal latents, instead of the straight line.

    Returns:
        Latents [S, Z].
    """
    t = weights[:, None].to(start.dtype)
    if not spherical:
        return (1 - t) * start + t * end
    one, other = start / start.norm(), end / end.norm()
    angle = 2.0 * torch.atan2((one - other).norm(), (one + other).norm())  # arccos loses half its digits near 0 and pi
    if torch.sin(angle) < 1e-6:  # parallel: no unique great circle
        return (1 - t) * start + t * end
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
