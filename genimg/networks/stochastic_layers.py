"""Hierarchical latents: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, sections 2 and 5.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genimg.networks.fully_connected import stack
from genimg.utils.numbers import require_least

LOG_VARIANCES = (-30.0, 20.0)
"""Minimum and maximum log-variance of a Gaussian over latents, as in the code of Rombach et al. 2022."""


def bounded(log_variance: Tensor) -> Tensor:
    """Clamp log-variances to ``LOG_VARIANCES``, so their exponentials stay finite.

    The gradient ignores the clamping, so values outside the range can return. Values inside are unchanged.
    """
    return log_variance.clamp(*LOG_VARIANCES).detach() + (log_variance - log_variance.detach())


class StochasticLayer(nn.Module):
    """A layer of latents z' above latents z: q(z' | z) on the way up, p(z | z') on the way down, both Gaussian.

    Args:
        below: Number of latent dimensions below, Z.
        latent_dim: Number of the layer's own latent dimensions, Z'.
        widths: Numbers of outputs of the hidden layers, in both directions.
        activation: See ``fully_connected``.

    Raises:
        ValueError: If the activation is unknown, or a number of dimensions is not positive.
    """

    def __init__(self, *, below: int, latent_dim: int, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        require_least(1, below=below, latent_dim=latent_dim)
        self.below = below
        self.latent_dim = latent_dim
        self.up = stack(below, widths, 2 * latent_dim, activation)
        self.down = stack(latent_dim, widths, 2 * below, activation)

    def infer(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z' | z), each [N, Z'], for latents z [N, Z]."""
        mean, log_variance = self.up(below).float().chunk(2, dim=1)
        return mean, bounded(log_variance)

    def generate(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of p(z | z'), each [N, Z], for latents z' [N, Z']."""
        mean, log_variance = self.down(latent).float().chunk(2, dim=1)
        return mean, bounded(log_variance)
