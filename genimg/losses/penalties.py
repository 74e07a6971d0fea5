"""Penalties on the networks of a GAN. All gradients are with respect to images, all norms over one image's C x H x W values.

A penalty is computed in float32 through the discriminator's eager forward, whatever the training's precision: a second
derivative through a compiled forward is refused by PyTorch, and one in bfloat16 is mostly rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genimg.distributed import sum_over_ranks, world_size
from genimg.images import mirror_and_shift
from genimg.interfaces import Metrics


@dataclass(frozen=True)
class Sides:
    """What a penalty of the discriminator looks at.

    Attributes:
        real, fake: images [N, C, H, W], float32, without a graph.
        logits: images -> logits [N] under the batch's conditions, in float32, through the augmentation.
        plain_logits: the same without the augmentation.
        nearby: std -> two times images [N, C, H, W] in float32: of the fakes' latents, and of these moved by normal noise of
            that standard deviation.
    """

    real: Tensor
    fake: Tensor
    logits: Callable[[Tensor], Tensor]
    plain_logits: Callable[[Tensor], Tensor]
    nearby: Callable[[float], tuple[Tensor, Tensor]]


class DiscriminatorPenalty(nn.Module, ABC):
    """Added to the discriminator's loss.

    Args:
        interval: in updates of its network. 1 adds it to every loss; k > 1 makes one more update every k, of it times k
            (lazy regularisation, Karras et al. 2020, "Analyzing and improving", appendix B).
    """

    def __init__(self, *, interval: int) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"penalty interval={interval} must be 1 or more steps")
        self.interval = interval

    @abstractmethod
    def forward(self, sides: Sides) -> Tensor:
        """The weighted penalty, a scalar: a mean over the N images."""


class GradientPenalty(DiscriminatorPenalty):
    """weight E[(||grad D(x)||_2 - center)^2] at random points between real and fake images.

    Gulrajani et al. 2017, equation 3, with center 1; 0-centred: Thanh-Tung et al. 2019.

    Args:
        weight: lambda; 10 in the paper.
        center: the norm that is wanted.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, weight: float, center: float, interval: int) -> None:
        super().__init__(interval=interval)
        _require_positive("gradient_penalty", "weight", weight)
        self.weight = weight
        self.center = center

    def forward(self, sides: Sides) -> Tensor:
        t = torch.rand(len(sides.real), 1, 1, 1, device=sides.real.device)
        between = torch.lerp(sides.fake, sides.real, t)
        norms = squared_gradient_norms(sides.logits, between).clamp_min(1e-16).sqrt()  # sqrt has no derivative at 0
        return self.weight * (norms - self.center).square().mean()


class DRAGAN(DiscriminatorPenalty):
    """weight E[(||grad D(x + noise)||_2 - 1)^2] around real images. Kodali et al. 2017, equation 2, and its code.

    The noise is uniform in [0, 0.5 std], with the standard deviation of the batch's values.

    Args:
        weight: lambda; 10 in the paper.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, weight: float, interval: int) -> None:
        super().__init__(interval=interval)
        _require_positive("dragan", "weight", weight)
        self.weight = weight

    def forward(self, sides: Sides) -> Tensor:
        perturbed = sides.real + 0.5 * sides.real.std() * torch.rand_like(sides.real)
        norms = squared_gradient_norms(sides.logits, perturbed).clamp_min(1e-16).sqrt()
        return self.weight * (norms - 1.0).square().mean()


class R1(DiscriminatorPenalty):
    """gamma/2 E[||grad D(x)||^2] at real images. Mescheder et al. 2018, equation 9.

    Args:
        gamma: the weight, or ``auto``: 0.0002 x pixels / batch size (StyleGAN2-ADA's rule for square images).
        image_size: pixels, one number or [height, width]; used by ``auto``.
        batch_size: images a step; used by ``auto``.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, gamma: float | str, image_size: int | list[int], batch_size: int, interval: int) -> None:
        super().__init__(interval=interval)
        self.gamma = _gamma("r1", gamma, image_size, batch_size)

    def forward(self, sides: Sides) -> Tensor:
        return 0.5 * self.gamma * squared_gradient_norms(sides.logits, sides.real).mean()


class R2(DiscriminatorPenalty):
    """gamma/2 E[||grad D(G(z))||^2] at generated images. Mescheder et al. 2018, equation 10. Args: as of ``R1``."""

    def __init__(self, *, gamma: float | str, image_size: int | list[int], batch_size: int, interval: int) -> None:
        super().__init__(interval=interval)
        self.gamma = _gamma("r2", gamma, image_size, batch_size)

    def forward(self, sides: Sides) -> Tensor:
        return 0.5 * self.gamma * squared_gradient_norms(sides.logits, sides.fake).mean()


class Consistency(DiscriminatorPenalty):
    """real_weight E[(D(x) - D(T(x)))^2] + fake_weight E[(D(G(z)) - D(T(G(z))))^2]: bCR, Zhao et al. 2021, algorithm 1.

    T mirrors a random half of the images and moves each by up to ``max_shift`` pixels.

    Args:
        real_weight, fake_weight: 10 each in the paper; 0 for the fakes is CR (Zhang et al. 2020).
        max_shift: pixels.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, real_weight: float, fake_weight: float, max_shift: int, interval: int) -> None:
        super().__init__(interval=interval)
        _require_positive("consistency", "real_weight", real_weight)
        if fake_weight < 0 or max_shift < 0:
            raise ValueError(f"penalty.consistency: fake_weight={fake_weight} and max_shift={max_shift} must be 0 or more")
        self.real_weight = real_weight
        self.fake_weight = fake_weight
        self.max_shift = max_shift

    def forward(self, sides: Sides) -> Tensor:
        penalty = self.real_weight * self._difference(sides, sides.real)
        if self.fake_weight:
            penalty = penalty + self.fake_weight * self._difference(sides, sides.fake)
        return penalty

    def _difference(self, sides: Sides, images: Tensor) -> Tensor:
        moved = randomly_moved(images, self.max_shift)
        return (sides.plain_logits(images) - sides.plain_logits(moved)).square().mean()


class LatentConsistency(DiscriminatorPenalty):
    """weight E[(D(G(z)) - D(G(z + dz)))^2]: the discriminator's half of zCR, Zhao et al. 2021, algorithm 2.

    Args:
        weight: 5 in the paper; its other half is ``LatentDiversity``.
        noise: standard deviation of dz; 0.07 in the paper.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, weight: float, noise: float, interval: int) -> None:
        super().__init__(interval=interval)
        _require_positive("latent_consistency", "weight", weight)
        _require_positive("latent_consistency", "noise", noise)
        self.weight = weight
        self.noise = noise

    def forward(self, sides: Sides) -> Tensor:
        fake, near = sides.nearby(self.noise)
        return self.weight * (sides.plain_logits(fake) - sides.plain_logits(near)).square().mean()


class LeCam(DiscriminatorPenalty):
    """weight (E[(D(x) - a_fake)^2] + E[(D(G(z)) - a_real)^2]), a: moving averages of the logits. Tseng et al. 2021, eq. 6.

    Args:
        weight: lambda; 0.0001 to 0.3 in the paper's experiments.
        decay: of the averages, a step (with accumulation: a microbatch); 0.99 in the paper's code.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, weight: float, decay: float, interval: int) -> None:
        super().__init__(interval=interval)
        _require_positive("lecam", "weight", weight)
        if not 0 <= decay < 1:
            raise ValueError(f"penalty.lecam.decay={decay} must be at least 0 and below 1")
        self.weight = weight
        self.decay = decay
        self.average_real: Tensor
        self.average_fake: Tensor
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))

    def forward(self, sides: Sides) -> Tensor:
        real, fake = sides.logits(sides.real), sides.logits(sides.fake)
        with torch.no_grad():
            means = sum_over_ranks(torch.stack([real.mean(), fake.mean()])) / world_size()
            self.average_real.lerp_(means[0], 1.0 - self.decay)
            self.average_fake.lerp_(means[1], 1.0 - self.decay)
        return self.weight * ((real - self.average_fake).square().mean() + (fake - self.average_real).square().mean())


class GeneratorPenalty(nn.Module, ABC):
    """Added to the generator's loss; ``interval`` as of ``DiscriminatorPenalty``."""

    def __init__(self, *, interval: int) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"penalty interval={interval} must be 1 or more steps")
        self.interval = interval

    def check(self, generator: nn.Module) -> None:
        """Refuse a generator that lacks what the penalty needs.

        Raises:
            ValueError: naming what fits.
        """

    @abstractmethod
    def forward(self, generator: nn.Module, latent: Tensor, condition: Tensor) -> tuple[Tensor, Metrics]:
        """The weighted penalty, a scalar, and what else to log; latents [N, Z] and conditions as in the batch."""


class LatentDiversity(GeneratorPenalty):
    """-weight E[||G(z) - G(z + dz)||^2 / (C H W)]: the generator's half of zCR, Zhao et al. 2021, algorithm 2.

    Args:
        weight: 0.5 in the paper.
        noise: standard deviation of dz; 0.07 in the paper.
        interval: see ``DiscriminatorPenalty``.
    """

    def __init__(self, *, weight: float, noise: float, interval: int) -> None:
        super().__init__(interval=interval)
        _require_positive("latent_diversity", "weight", weight)
        _require_positive("latent_diversity", "noise", noise)
        self.weight = weight
        self.noise = noise

    def forward(self, generator: nn.Module, latent: Tensor, condition: Tensor) -> tuple[Tensor, Metrics]:
        there = generator.forward(latent, condition)
        near = generator.forward(latent + self.noise * torch.randn_like(latent), condition)
        return -self.weight * (there - near).square().mean(), {}


class WeightClipping(nn.Module):
    """Keeps every weight of the discriminator within [-limit, limit]: Arjovsky et al. 2017, algorithm 1.

    Args:
        limit: c; 0.01 in the paper.
    """

    def __init__(self, *, limit: float) -> None:
        super().__init__()
        _require_positive("weight_clipping", "limit", limit)
        self.limit = limit

    @torch.no_grad()
    def clip(self, discriminator: nn.Module) -> None:
        """After an update of the discriminator."""
        parameters: list[Tensor] = list(discriminator.parameters())
        torch._foreach_clamp_max_(parameters, self.limit)
        torch._foreach_clamp_min_(parameters, -self.limit)


def squared_gradient_norms(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """||grad_x sum_n logits(x)_n||^2 for each image [N], with a graph for the second derivative."""
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(logits(images).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def randomly_moved(images: Tensor, max_shift: int) -> Tensor:
    """Each image mirrored with probability 1/2 and moved by up to ``max_shift`` pixels each way, its border reflected."""
    count, _, height, width = images.shape
    device = images.device
    if max_shift >= min(height, width):
        raise ValueError(f"penalty.consistency.max_shift={max_shift} must be below the images' {min(height, width)} pixels")
    mirrored = torch.rand(count, device=device) < 0.5
    down, right = torch.randint(-max_shift, max_shift + 1, (2, count), device=device)
    right = torch.where(mirrored, -right, right)  # the shift is of the mirrored image
    return mirror_and_shift(images, mirrored, torch.zeros_like(mirrored), down, right)


def _gamma(name: str, gamma: float | str, image_size: int | list[int], batch_size: int) -> float:
    if gamma == "auto":
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        return 0.0002 * height * width / batch_size
    if isinstance(gamma, str):
        raise ValueError(f"penalty.{name}.gamma={gamma} must be auto or a number")
    _require_positive(name, "gamma", gamma)
    return float(gamma)


def _require_positive(penalty: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"penalty.{penalty}.{name}={value} must be above 0; leave the penalty away for none")
