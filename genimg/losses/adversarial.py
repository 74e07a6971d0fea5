"""Losses of the two-player game, as functions of the discriminator's logits (before any sigmoid); real before fake.

Every function takes logits of any shape and returns the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """The pair of losses that defines a GAN.

    Attributes:
        discriminator: (real logits, fake logits) -> scalar.
        generator: (fake logits) -> scalar.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def cross_entropy_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[log D(x)] - E[log(1 - D(G(z)))] with D = sigmoid(logits). Goodfellow et al. 2014, equation 1."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def minimax_generator_loss(fake_logits: Tensor) -> Tensor:
    """E[log(1 - D(G(z)))]. Goodfellow et al. 2014, equation 1: the exact game, whose gradient vanishes when D wins."""
    return -F.softplus(fake_logits).mean()


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[log D(G(z))]. Goodfellow et al. 2014, section 3: the same fixed point, with a gradient when D wins."""
    return F.softplus(-fake_logits).mean()


def least_squares_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """1/2 E[(D(x) - 1)^2] + 1/2 E[D(G(z))^2]. Mao et al. 2017, equation 9 (a = 0, b = c = 1)."""
    return 0.5 * ((real_logits - 1.0).square().mean() + fake_logits.square().mean())


def least_squares_generator_loss(fake_logits: Tensor) -> Tensor:
    """1/2 E[(D(G(z)) - 1)^2]. Mao et al. 2017, equation 9."""
    return 0.5 * (fake_logits - 1.0).square().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]. Lim & Ye 2017; Miyato et al. 2018, equation 16."""
    return torch.relu(1.0 - real_logits).mean() + torch.relu(1.0 + fake_logits).mean()


def negated_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(G(z))]: the generator's half of the hinge loss. Miyato et al. 2018, equation 17."""
    return -fake_logits.mean()
