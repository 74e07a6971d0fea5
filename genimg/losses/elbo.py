"""The evidence lower bound. All values are in nats per image: summed over pixels and latents, never averaged over them.

The reduction is spelled out because it decides the weight of the KL term: averaging the reconstruction over D pixels
while summing the KL over latents is a beta of D, the most common mistake in public VAE code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Likelihood(ABC):
    """p(x | z), from the decoder's output, for images x in [-1, 1]."""

    @abstractmethod
    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        """-log p(image | z) in nats per image: [N, C, H, W] twice -> [N]."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[x | z] in [-1, 1], what is shown as the reconstruction: [N, C, H, W] -> [N, C, H, W]."""

    @abstractmethod
    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        """Nats per image as bits per pixel and channel."""


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Likelihood):
    """Independent Bernoulli pixels; grey values are read as probabilities (Kingma & Welling 2014, appendix C.1).

    With grey targets it is a cross-entropy and not the likelihood of 8-bit data: its bits per dimension compare with
    other Bernoulli models of the same targets only.
    """

    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        target = (image + 1.0) / 2.0
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid() * 2.0 - 1.0

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        return nats / (num_dimensions * math.log(2.0))


@dataclass(frozen=True, kw_only=True)
class Gaussian(Likelihood):
    """Independent Gaussian pixels of fixed standard deviation around tanh(output) (Kingma & Welling 2014, appendix C.2).

    Attributes:
        scale: standard deviation, in units of the [-1, 1] image range.
    """

    scale: float

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"loss.likelihood.scale={self.scale} is not a standard deviation: it must be above 0")

    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        standardised = (image - output.tanh()) / self.scale
        constant = math.log(self.scale) + 0.5 * math.log(2.0 * math.pi)
        return (0.5 * standardised.square() + constant).flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        return output.tanh()

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        # A density on [-1, 1] is 127.5 times that on the 256 levels, whose spacing is 1 (Theis et al. 2016, section 3.1).
        return (nats / num_dimensions + math.log(127.5)) / math.log(2.0)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, summed over latents: [N, Z] twice -> [N].

    Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """Reconstruction plus weighted KL, the negative of the bound when the weight is 1.

    Attributes:
        likelihood: p(x | z).
        kl_weight: the beta of the beta-VAE (Higgins et al. 2017); 1 is the bound itself.
    """

    likelihood: Likelihood
    kl_weight: float

    def __post_init__(self) -> None:
        if not self.kl_weight >= 0:
            raise ValueError(f"loss.kl_weight={self.kl_weight} must be 0 or more")

    def __call__(self, output: Tensor, image: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise (mean over the N images, in nats) and its parts, each a mean over images.

        The logged ``elbo`` and ``bits_per_dim`` always use a KL weight of 1, so that runs with another weight compare.
        """
        reconstruction = self.likelihood.negative_log_likelihood(output, image).mean()
        kl = gaussian_kl(mean, log_variance).mean()
        negative_elbo = reconstruction + kl
        with torch.no_grad():
            parts = {
                "reconstruction_nats": reconstruction,
                "kl_nats": kl,
                "elbo_nats": -negative_elbo,
                "bits_per_dim": self.likelihood.bits_per_dimension(negative_elbo, image[0].numel()),
            }
        return reconstruction + self.kl_weight * kl, parts
