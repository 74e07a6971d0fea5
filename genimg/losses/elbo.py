"""Bounds on log p(x). All values are in nats per image: summed over pixels and latents, never averaged over them.

The reduction is explicit because it decides the weight of the KL term: averaging the reconstruction over D pixels while summing
the KL over latents is a beta of D, the most common mistake in public VAE code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from genimg.losses.likelihoods import Likelihood
from genimg.schedules import Linear, Number, Schedule, Scheduled, extremes, is_within, is_zero, shown
from genimg.utils.durations import NumImages


@dataclass(frozen=True)
class Inference:
    """Costs of K samples of an image's latents.

    Attributes:
        negative_log_likelihood: -log p(x | z) in nats: [N, K].
        kl: KL of each layer of latents, by dimension, in nats: [N, K, Z]. If there is no closed form, it is log q - log p.
        log_ratio: log q(z | x) - log p(z) at the samples, over all layers together, in nats: [N, K].
        num_dimensions: Number D of values of the image: pixels times channels.
    """

    negative_log_likelihood: Tensor
    kl: list[Tensor]
    log_ratio: Tensor
    num_dimensions: int

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights log p(x, z) - log q(z | x): [N, K]."""
        return -self.negative_log_likelihood - self.log_ratio


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, by dimension: [\*] twice -> [\*].

    Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def gaussian_log_density(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return log N(value; mean, exp(log_variance)), by dimension: [\*] three times -> [\*]."""
    return -0.5 * (math.log(2.0 * math.pi) + log_variance + (value - mean).square() * (-log_variance).exp())


def importance_bound(log_weights: Tensor) -> Tensor:
    """Return the log of the mean of K importance weights, a lower bound on log p(x) that grows with K: [N, K] -> [N].

    Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, equation 8.
    """
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])


class Bound(nn.Module, ABC):
    """A lower bound on log p(x) to train with.

    Args:
        likelihood: Likelihood p(x | z).
        num_samples: Number K of latents per image in a training step.

    Raises:
        ValueError: If ``num_samples`` is below 1.
    """

    without_training: ClassVar[type[Bound]]
    """Replacement for any bound if nothing is trained."""

    def __init__(self, likelihood: Likelihood, num_samples: int) -> None:
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be 1 or more")
        self.likelihood = likelihood
        self.num_samples = num_samples

    def forward(self, inference: Inference) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise, a mean over images in nats, and its parts, each a mean over images.

        The logged bound always has a KL weight of 1 and no additional terms, so all runs are comparable.
        """
        reconstruction = inference.negative_log_likelihood.mean()
        kl = torch.stack([layer.sum(dim=2).mean() for layer in inference.kl]).sum()
        loss, more = self.objective(inference, reconstruction, kl)
        with torch.no_grad():
            count = inference.num_dimensions
            bits, name = self.likelihood.bits_per_dimension, self.likelihood.bits_name
            parts = {
                "reconstruction_nats": reconstruction,
                "kl_nats": kl,
                "elbo_nats": -(reconstruction + kl),
                name: bits(reconstruction + kl, count),
                f"reconstruction_{name}": bits(reconstruction, count),
                "kl_bits_per_dim": kl / (count * math.log(2.0)),
            }
        return loss, parts | more

    @abstractmethod
    def objective(self, inference: Inference, reconstruction: Tensor, kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and additional metrics; ``reconstruction`` and ``kl`` are the two terms' means."""


class ELBO(Bound):
    """Reconstruction plus weighted KL: the evidence lower bound if the weight is 1 (Kingma & Welling 2014, equation 7).

    Args:
        likelihood: Likelihood p(x | z).
        num_samples: Number of latents per image.
        kl_weight: Weight beta of the beta-VAE (Higgins et al. 2017).
        warm_up: Images over which the weight grows linearly from 0 (Bowman et al. 2016; Sønderby et al. 2016); 0 for none. The
            same effect as a ``genimg.schedules.Linear`` as the weight.
        free_bits: Nats that each latent dimension may cost, averaged over a microbatch, before it is penalised (Kingma et al.
            2016, appendix C.8); 0 for none.
        capacity: Target of a microbatch's KL in nats, whose distance from it is penalised by ``kl_weight`` (Burgess et al.
            2018, equation 8); None for none.
        capacity_growth: Images over which the capacity grows linearly from 0; see ``warm_up``.

    Raises:
        ValueError: If a number is out of range, or settings exclude each other.
    """

    kl_weight = Scheduled()
    free_bits = Scheduled()
    capacity = Scheduled()

    def __init__(
        self,
        *,
        likelihood: Likelihood,
        num_samples: int,
        kl_weight: Number,
        warm_up: NumImages,
        free_bits: Number,
        capacity: float | Schedule | None,
        capacity_growth: NumImages,
    ) -> None:
        super().__init__(likelihood, num_samples)
        if not is_within(kl_weight, 0):
            raise ValueError(f"kl_weight={shown(kl_weight)} must be 0 or more")
        if kl_weight == 0 and (free_bits or warm_up or capacity is not None):
            useless = "free_bits" if free_bits else "warm_up" if warm_up else "capacity"
            raise ValueError(f"{useless} has no effect with kl_weight=0: set a weight above 0, or remove {useless}")
        if not is_within(free_bits, 0):
            raise ValueError(f"free_bits={shown(free_bits)} must be 0 or more nats for each latent dimension")
        if capacity is not None and not is_within(capacity, 0):
            raise ValueError(f"capacity={shown(capacity)} must be 0 or more nats, or null")
        if capacity is not None and (free_bits or warm_up):
            other = "free_bits" if free_bits else "warm_up"
            raise ValueError(f"capacity={shown(capacity)} and {other} both bound the KL: set only one of them")
        if capacity is None and capacity_growth:
            raise ValueError("capacity_growth has no effect without a capacity: set one, or capacity_growth to 0 images")
        self.kl_weight = _grown("kl_weight", kl_weight, "warm_up", warm_up)
        self.free_bits = free_bits
        self.capacity = capacity if capacity is None else _grown("capacity", capacity, "capacity_growth", capacity_growth)

    def objective(self, inference: Inference, reconstruction: Tensor, kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.capacity is not None:
            held = (kl - self.capacity).abs()
        elif not is_zero(self.free_bits):
            held = torch.stack([layer.mean(dim=(0, 1)).clamp_min(self.free_bits).sum() for layer in inference.kl]).sum()
        else:
            held = kl
        return reconstruction + self.kl_weight * held, {}


def _grown(name: str, number: Number, setting: str, duration: NumImages) -> Number:
    """Return a number that grows linearly from 0 over ``duration`` images; if either is 0, return the number itself."""
    if not duration or extremes(number) == (0, 0):
        return number
    if isinstance(number, Schedule):
        raise ValueError(f"{setting} has no effect, because {name} is a schedule: set it to 0 images")
    if not math.isfinite(number):
        raise ValueError(f"{name}={number} must be finite")
    return Linear(start=0.0, end=number, duration=duration)


class ImportanceWeighted(Bound):
    """The bound of importance-weighted autoencoders, tighter with more samples: Burda et al. 2016, equation 8.

    Args:
        likelihood: Likelihood p(x | z).
        num_samples: Number K of latents per image; 1 gives the ELBO, with its KL estimated from the sample.

    Raises:
        ValueError: If ``num_samples`` is below 1.
    """

    def __init__(self, *, likelihood: Likelihood, num_samples: int) -> None:
        super().__init__(likelihood, num_samples)

    def objective(self, inference: Inference, reconstruction: Tensor, kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        bound = importance_bound(inference.log_weights).mean()
        return -bound, {f"iw{self.num_samples}_elbo_nats": bound}


class LikelihoodAlone(Bound):
    """The likelihood of a bound, which suffices for sampling and evaluation.

    Args:
        likelihood: Likelihood p(x | z).
    """

    def __init__(self, *, likelihood: Likelihood) -> None:
        super().__init__(likelihood, 1)

    def objective(self, inference: Inference, reconstruction: Tensor, kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("it is not used in training")


Bound.without_training = LikelihoodAlone
