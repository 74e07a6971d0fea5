"""Losses of autoencoders without noise. Values are sums over pixels, latents or weights, and means over images."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genimg.losses.likelihoods import Likelihood
from genimg.schedules import Number, Schedule, Scheduled, is_positive, is_within, shown

REGULARISERS = ("none", "l2", "gradient_penalty", "spectral_norm")


class AutoencoderLoss(nn.Module, ABC):
    """-log p(x | z) of a reconstruction plus a penalty on its latents.

    Args:
        likelihood: Likelihood p(x | z); with Gaussian pixels of variance 1/2, it is the sum of squares up to a constant.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    @property
    def normalises_decoder(self) -> bool:
        """Whether the decoder needs spectral norm."""
        return False

    def forward(self, image: Tensor, latent: Tensor, decoder: nn.Module, condition: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise, a mean over images, and its parts.

        Args:
            image: Images [N, C, H, W] as the likelihood observes them.
            latent: Latents of the images, float32 [N, Z].
            decoder: Network, (latent, condition) -> parameters of the likelihood [N, O, H, W].
            condition: Condition of the decoder.
        """
        output = self.decode(decoder, latent, condition)
        reconstruction = self.likelihood.negative_log_likelihood(output, image).mean()
        penalty, parts = self.penalty(latent, output, decoder)
        with torch.no_grad():
            squared = (self.likelihood.mean(output) - image).square().flatten(1).sum(dim=1).mean()
        return reconstruction + penalty, {"reconstruction_nats": reconstruction, "squared_error": squared} | parts

    def decode(self, decoder: nn.Module, latent: Tensor, condition: Tensor) -> Tensor:
        """Return the decoder's output in float32."""
        return decoder(latent, condition).float()

    @abstractmethod
    def penalty(self, latent: Tensor, output: Tensor, decoder: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted penalty and the values to log; ``output`` is the decoder's output for ``latent``."""


class RegularisedLoss(AutoencoderLoss):
    """Reconstruction + beta / 2 ||z||^2 + lambda R(decoder): Ghosh et al. 2020, equations 8 to 11.

    The authors' code takes means where the paper and this class take sums. For D pixels and channels, their weight of the
    latents is therefore multiplied by 2 D / Z here, and their weight of the decoder by D. Both are also multiplied by 4 for
    images in [-1, 1] instead of [0, 1].

    Args:
        likelihood: Likelihood p(x | z).
        latent_weight: Weight beta; only this term keeps the latents from growing without bound.
        regulariser: Regulariser R. ``l2``: the sum of squares of the decoder's weights, without biases and normalisation.
            ``gradient_penalty``: the squared Frobenius norm of dD(z)/dz, the Jacobian of the reconstruction, estimated without
            bias from one random projection (Hutchinson 1990), in float32; the authors' code uses the gradient of the sum of
            squares of the reconstruction. ``spectral_norm``: layers whose weights are divided by their largest singular values
            (Miyato et al. 2018). ``none``.
        regulariser_weight: Weight lambda of ``l2`` and ``gradient_penalty``; None for the others.

    Raises:
        ValueError: If the regulariser is unknown, or a weight is out of range or does not apply to it.
    """

    latent_weight = Scheduled()
    regulariser_weight = Scheduled()

    def __init__(
        self,
        *,
        likelihood: Likelihood,
        latent_weight: Number,
        regulariser: str,
        regulariser_weight: float | Schedule | None,
    ) -> None:
        super().__init__(likelihood)
        if not is_within(latent_weight, 0):
            raise ValueError(f"latent_weight={shown(latent_weight)} must be 0 or more")
        if regulariser not in REGULARISERS:
            raise ValueError(f"regulariser={regulariser} is unknown: choose one of {', '.join(REGULARISERS)}")
        if (regulariser in ("l2", "gradient_penalty")) != (regulariser_weight is not None):
            raise ValueError(
                f"regulariser_weight={'null' if regulariser_weight is None else shown(regulariser_weight)} does not match "
                f"regulariser={regulariser}: l2 and gradient_penalty need a number, the others null"
            )
        if regulariser_weight is not None and not is_positive(regulariser_weight):
            raise ValueError(
                f"regulariser_weight={shown(regulariser_weight)} must be above 0: for no regulariser, set regulariser=none"
            )
        self.latent_weight = latent_weight
        self.regulariser = regulariser
        self.regulariser_weight = regulariser_weight

    @property
    def normalises_decoder(self) -> bool:
        return self.regulariser == "spectral_norm"

    def decode(self, decoder: nn.Module, latent: Tensor, condition: Tensor) -> Tensor:
        if self.regulariser != "gradient_penalty":
            return super().decode(decoder, latent, condition)
        # Not compiled, because torch.compile has no second derivatives, and in float32 for any training precision.
        with torch.autocast(latent.device.type, enabled=False):
            return decoder.forward(latent, condition)

    def penalty(self, latent: Tensor, output: Tensor, decoder: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        squares = latent.square().sum(dim=1).mean()
        penalty, parts = 0.5 * self.latent_weight * squares, {"latent_squares": squares}
        if self.regulariser_weight is not None:
            if self.regulariser == "l2":
                value = squared_weights(decoder)
            else:
                value = squared_jacobian(self.likelihood.mean(output), latent).mean()
            penalty, parts = penalty + self.regulariser_weight * value, parts | {self.regulariser: value}
        return penalty, parts


def squared_weights(network: nn.Module) -> Tensor:
    """Return the sum of squares of all weights of linear layers, convolutions and embeddings."""
    return torch.stack([weight.square().sum() for weight in network.parameters() if weight.ndim > 1]).sum()


def squared_jacobian(output: Tensor, latent: Tensor) -> Tensor:
    r"""Return an unbiased estimate of ||d output / d latent||_F^2 for each sample, with a graph: [N, \*] and [N, Z] -> [N].

    E ||J^T y||^2 = ||J||_F^2 for y ~ N(0, I).
    """
    if not latent.requires_grad:  # nothing is trained, as in evaluation
        return latent.new_zeros(len(latent))
    with torch.autocast(latent.device.type, enabled=False):
        (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), latent, create_graph=True)
    return gradient.square().sum(dim=1)
