"""Adversarial losses as functions of the discriminator's logits (before any sigmoid), real before fake.

Every function takes logits of any shape and returns the mean over them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.schedules import Number, Scheduled, extremes, is_within, shown


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """The pair of losses that defines a GAN.

    Attributes:
        discriminator: Loss, (real logits, fake logits) -> scalar.
        generator: Loss, (fake logits) -> scalar, or (real logits, fake logits) -> scalar for a relativistic pair.
        relativistic: Whether the generator's loss compares with real images.
        unbounded: Whether the discriminator must be constrained by a penalty or a normalisation, as with the Wasserstein loss.
        boundary: Logit between real and fake, which ADA uses to detect overfitting; None if only differences matter.
    """

    needed_in_training_only: ClassVar[bool] = True

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[..., Tensor]
    relativistic: bool = False
    unbounded: bool = False
    boundary: float | None = 0.0

    def __post_init__(self) -> None:
        """Reject functions that do not map logits to a scalar, which would otherwise fail in the first training step.

        Raises:
            ValueError: If a function does not map logits to a scalar; the message names its parameter.
        """
        real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        of_generator = (real, fake) if self.relativistic else (fake,)
        for name, function, logits in (
            ("discriminator", self.discriminator, (real, fake)),
            ("generator", self.generator, of_generator),
        ):
            takes = "(real logits, fake logits)" if len(logits) == 2 else "(fake logits)"
            try:
                _signature(function).bind(*logits)
            except TypeError as error:
                raise ValueError(f"{name} is a function that does not take {takes} ({error})") from error
            # The random state is restored, because weights may be drawn later.
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
                try:
                    loss = function(*logits)
                except Exception:  # it may need logits of another shape, such as PatchGAN's; training reports errors
                    continue
            if not isinstance(loss, Tensor) or loss.dim() > 0 or not loss.requires_grad:
                found = f"a {type(loss).__name__}"
                if isinstance(loss, Tensor):
                    found = f"a tensor of shape {list(loss.shape)}" if loss.dim() > 0 else "a constant"
                raise ValueError(f"{name} returns {found}, but must return a scalar tensor that depends on {takes}")


def _signature(function: Callable[..., Tensor]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # compiled code may have no signature
        return inspect.signature(lambda *_, **__: None)


def cross_entropy_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return -E[log D(x)] - E[log(1 - D(G(z)))] with D = sigmoid(logits). Goodfellow et al. 2014, equation 1."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def minimax_generator_loss(fake_logits: Tensor) -> Tensor:
    """Return E[log(1 - D(G(z)))], whose gradient vanishes when D wins. Goodfellow et al. 2014, equation 1, unchanged."""
    return -F.softplus(fake_logits).mean()


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """Return -E[log D(G(z))], which has the same fixed point but a gradient when D wins. Goodfellow et al. 2014, section 3."""
    return F.softplus(-fake_logits).mean()


def least_squares_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return 1/2 E[(D(x) - 1)^2] + 1/2 E[D(G(z))^2]. Mao et al. 2017, equation 9 (a = 0, b = c = 1)."""
    return 0.5 * ((real_logits - 1.0).square().mean() + fake_logits.square().mean())


def least_squares_generator_loss(fake_logits: Tensor) -> Tensor:
    """Return 1/2 E[(D(G(z)) - 1)^2]. Mao et al. 2017, equation 9."""
    return 0.5 * (fake_logits - 1.0).square().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]. Lim & Ye 2017; Miyato et al. 2018, equation 16."""
    return torch.relu(1.0 - real_logits).mean() + torch.relu(1.0 + fake_logits).mean()


def negated_generator_loss(fake_logits: Tensor) -> Tensor:
    """Return -E[D(G(z))], the generator's half of the hinge loss. Miyato et al. 2018, equation 17."""
    return -fake_logits.mean()


def wasserstein_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return E[f(G(z))] - E[f(x)], minus the distance if f is 1-Lipschitz. Arjovsky et al. 2017, equation 3."""
    return fake_logits.mean() - real_logits.mean()


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return -E[log sigmoid(D(x) - D(G(z)))] over pairs. Jolicoeur-Martineau 2019, equation 5; Huang et al. 2024 (R3GAN)."""
    return F.softplus(fake_logits - real_logits).mean()


def relativistic_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return -E[log sigmoid(D(G(z)) - D(x))] over pairs. Jolicoeur-Martineau 2019, equation 6."""
    return F.softplus(real_logits - fake_logits).mean()


def relativistic_average_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the cross-entropy of each side's logits minus the other side's mean over the microbatch.

    Jolicoeur-Martineau 2019, equation 7 with the cross-entropy.
    """
    real, fake = real_logits - fake_logits.mean(), fake_logits - real_logits.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def relativistic_average_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss with real and fake exchanged.

    Jolicoeur-Martineau 2019, equation 8 with the cross-entropy.
    """
    return relativistic_average_discriminator_loss(fake_logits, real_logits)


class AuxiliaryClassification:
    """Cross-entropy of a discriminator's class logits, in nats. Odena et al. 2017, equation 3.

    Args:
        real_weight: Weight of real images in the discriminator's loss.
        fake_weight: Weight of generated images in the discriminator's loss; 1 in Odena et al., 0 in later work, because a
            classifier that learns from bad images misleads the generator.
        generator_weight: Weight in the generator's loss.

    Raises:
        ValueError: If a weight is out of range, or the weights would never train the classifier.
    """

    needed_in_training_only = True

    real_weight = Scheduled()
    fake_weight = Scheduled()
    generator_weight = Scheduled()

    def __init__(self, *, real_weight: Number, fake_weight: Number, generator_weight: Number) -> None:
        weights = {"real_weight": real_weight, "fake_weight": fake_weight, "generator_weight": generator_weight}
        for name, weight in weights.items():
            if not is_within(weight, 0):
                raise ValueError(f"{name}={shown(weight)} must be 0 or more")
        if not extremes(real_weight)[1] + extremes(fake_weight)[1] > 0:
            raise ValueError("real_weight=0 and fake_weight=0 would never train the classifier: set one of them above 0")
        self.real_weight, self.fake_weight, self.generator_weight = real_weight, fake_weight, generator_weight
