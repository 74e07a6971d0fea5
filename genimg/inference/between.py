"""Images between those of two seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genimg.errors import ConfigError
from genimg.methods.capabilities import Generates
from genimg.methods.latent import interpolate
from genimg.types import Batch

PATHS = ("linear", "spherical")
"""Paths between latents."""


@dataclass(frozen=True, kw_only=True)
class Between:
    """A position on the path from the latents of one seed to those of another.

    Attributes:
        interpolate: ``linear``, or ``spherical`` along great circles.
        seed_to: Seed at the end of the path.
        position: Position on the path, from 0 (the first seed) to 1 (``seed_to``).

    Raises:
        ConfigError: If the position is out of range.
    """

    interpolate: str
    seed_to: int
    position: float

    def __post_init__(self) -> None:
        if not 0 <= self.position <= 1:
            raise ConfigError(f"position={self.position} must be from 0 to 1")

    def mixed(self, start: Batch, end: Batch) -> Batch:
        """Return the drawn inputs at the position.

        Args:
            start: Drawn inputs [N] of the first seed.
            end: Drawn inputs [N] of ``seed_to``.

        Returns:
            The inputs of the first seed, with latents between both. Everything else, such as random labels, is that of the
            first seed.
        """
        weight, spherical = torch.tensor([self.position], dtype=torch.float64), self.interpolate == "spherical"
        pairs = zip(start["latent"], end["latent"], strict=True)
        return start | {"latent": torch.cat([interpolate(one, other, weight, spherical=spherical) for one, other in pairs])}


def has_latents(method: Generates) -> bool:
    """Return whether a model draws latents, between which one can interpolate."""
    return "latent" in method.draw(range(1), 0)


def require_latents(method: Generates, interpolate: str) -> None:
    """Reject a model without latents.

    Args:
        method: The model.
        interpolate: The requested path, for the message.

    Raises:
        ConfigError: If the model draws no latents.
    """
    if not has_latents(method):
        raise ConfigError(f"interpolate={interpolate}: a {type(method).__name__} has no latents: remove it")
