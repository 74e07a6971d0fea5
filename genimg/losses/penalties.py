"""Penalties on the networks of a GAN. Gradients are with respect to images; norms are over the C x H x W values of one image.

A penalty needs the discriminator without compilation, because PyTorch has no second derivatives of compiled networks. It runs
its own forward pass in float32 or, with ``reuse_forward``, uses that of the discriminator's update in the training precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genimg.schedules import Number, Scheduled, Step, is_positive, shown
from genimg.types import Metrics
from genimg.utils.distributed import sum_over_ranks, world_size
from genimg.utils.durations import NumImages


@dataclass(frozen=True)
class PenaltyInputs:
    """Inputs of a discriminator's penalty.

    Attributes:
        real, fake: Images [N, C, H, W], float32, without a graph.
        logits: Function from images to logits [N] under the batch's conditions, in float32, through the augmentation.
        plain_logits: The same function without the augmentation.
        perturb: Function from a standard deviation to two sets of generated images [N, C, H, W] in float32: those of the fake
            images' latents, and those of the same latents plus normal noise of that standard deviation.
        judged_real, judged_fake: Images [N, C, H, W] that require a gradient, and their logits [N] from the forward pass of the
            update; None if no penalty reuses it.
    """

    real: Tensor
    fake: Tensor
    logits: Callable[[Tensor], Tensor]
    plain_logits: Callable[[Tensor], Tensor]
    perturb: Callable[[float], tuple[Tensor, Tensor]]
    judged_real: tuple[Tensor, Tensor] | None = None
    judged_fake: tuple[Tensor, Tensor] | None = None


class DiscriminatorPenalty(nn.Module, ABC):
    """A penalty added to the discriminator's loss.

    Args:
        interval: Interval in updates of the network. 1 adds the penalty to every loss; k > 1 runs one additional update every k
            updates, on the penalty times k (lazy regularisation, Karras et al. 2020, "Analyzing and improving", appendix B).
    """

    needed_in_training_only = True

    reuses: frozenset[str] = frozenset()
    """Images (``real``, ``fake``) whose gradient is taken through the update's own forward; see ``PenaltyInputs``."""

    def __init__(self, *, interval: int) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"interval={interval} must be 1 or more steps")
        self.interval = interval

    @abstractmethod
    def forward(self, inputs: PenaltyInputs) -> Tensor:
        """Return the weighted penalty, a scalar: a mean over the N images."""


class GradientPenalty(DiscriminatorPenalty):
    """weight E[(||grad D(x)||_2 - center)^2] at random points between real and fake images.

    Gulrajani et al. 2017, equation 3, with center 1; Thanh-Tung et al. 2019 with center 0.

    Args:
        weight: Weight lambda; 10 in the paper.
        center: Target norm of the gradient.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
    """

    weight = Scheduled()

    def __init__(self, *, weight: Number, center: float, interval: int) -> None:
        super().__init__(interval=interval)
        require_positive("weight", weight)
        self.weight = weight
        self.center = center

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        t = torch.rand(len(inputs.real), 1, 1, 1, device=inputs.real.device)
        between = torch.lerp(inputs.fake, inputs.real, t)
        norms = squared_gradient_norms(inputs.logits, between).clamp_min(1e-16).sqrt()  # sqrt has no derivative at 0
        return self.weight * (norms - self.center).square().mean()


class DRAGAN(DiscriminatorPenalty):
    """weight E[(||grad D(x + noise)||_2 - 1)^2] around real images. Kodali et al. 2017, equation 2, and its code.

    The noise is uniform in [0, 0.5 std], where std is the standard deviation of the batch's values, times one number per image,
    uniform in [0, 1]. As in the code, this gives a random point between an image and its perturbed copy.

    Args:
        weight: Weight lambda; 10 in the paper.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
    """

    weight = Scheduled()

    def __init__(self, *, weight: Number, interval: int) -> None:
        super().__init__(interval=interval)
        require_positive("weight", weight)
        self.weight = weight

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        noise = 0.5 * inputs.real.std() * torch.rand_like(inputs.real)
        alpha = torch.rand(len(inputs.real), 1, 1, 1, device=inputs.real.device)
        norms = squared_gradient_norms(inputs.logits, inputs.real + alpha * noise).clamp_min(1e-16).sqrt()
        return self.weight * (norms - 1.0).square().mean()


class R1(DiscriminatorPenalty):
    """gamma/2 E[||grad D(x)||^2] at real images. Mescheder et al. 2018, equation 9.

    Args:
        gamma: Weight, or ``auto``: 0.0002 x pixels / batch size (StyleGAN2-ADA's rule for square images).
        image_size: Side in pixels, or [height, width]; used by ``auto``.
        batch_size: Images per step; used by ``auto``.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
        reuse_forward: Whether to take the gradient through the forward of the discriminator's update, in the training
            precision, as in R3GAN, instead of through a separate forward in float32. Requires an interval of 1.

    Raises:
        ValueError: If a number is out of range, or a lazy penalty reuses the forward.
    """

    gamma = Scheduled()

    def __init__(
        self,
        *,
        gamma: Number | str,
        image_size: int | list[int],
        batch_size: int,
        interval: int,
        reuse_forward: bool = False,
    ) -> None:
        super().__init__(interval=interval)
        self.gamma = _gamma(gamma, image_size, batch_size)
        self.reuses = _checked_reuse("real", reuse_forward, interval)

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        if self.reuses:
            assert inputs.judged_real is not None
            return 0.5 * self.gamma * squared_norms_of_gradient(*inputs.judged_real).mean()
        return 0.5 * self.gamma * squared_gradient_norms(inputs.logits, inputs.real).mean()


class R2(DiscriminatorPenalty):
    """gamma/2 E[||grad D(G(z))||^2] at generated images. Mescheder et al. 2018, equation 10. For the arguments, see ``R1``."""

    gamma = Scheduled()

    def __init__(
        self,
        *,
        gamma: Number | str,
        image_size: int | list[int],
        batch_size: int,
        interval: int,
        reuse_forward: bool = False,
    ) -> None:
        super().__init__(interval=interval)
        self.gamma = _gamma(gamma, image_size, batch_size)
        self.reuses = _checked_reuse("fake", reuse_forward, interval)

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        if self.reuses:
            assert inputs.judged_fake is not None
            return 0.5 * self.gamma * squared_norms_of_gradient(*inputs.judged_fake).mean()
        return 0.5 * self.gamma * squared_gradient_norms(inputs.logits, inputs.fake).mean()


class LeCam(DiscriminatorPenalty):
    """weight (E[max(0, D(x) - a_fake)^2] + E[max(0, a_real - D(G(z)))^2]), where a are moving averages of the logits.

    Tseng et al. 2021, equation 6, with the maximum of the authors' code: only real logits above a_fake and fake logits below
    a_real are pulled towards these averages. Until ``start``, the averages are those of the last batch and the penalty is 0, as
    in that code.

    Args:
        weight: Weight lambda; 0.0001 to 0.3 in the paper's experiments.
        decay: Decay of the averages per step (with accumulation: per microbatch); 0.99 in the paper's code.
        start: Images seen from which the penalty counts; 1k iterations in the paper's code.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
    """

    weight = Scheduled()
    started = Scheduled()

    def __init__(self, *, weight: Number, decay: float, start: NumImages, interval: int) -> None:
        super().__init__(interval=interval)
        require_positive("weight", weight)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be at least 0 and below 1")
        self.weight = weight
        self.decay = decay
        self.started = Step(begin=start)
        self.average_real: Tensor
        self.average_fake: Tensor
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        real, fake = inputs.logits(inputs.real), inputs.logits(inputs.fake)
        with torch.no_grad():
            means = sum_over_ranks(torch.stack([real.mean(), fake.mean()])) / world_size()
            decay = self.decay * self.started
            self.average_real.lerp_(means[0], 1.0 - decay)
            self.average_fake.lerp_(means[1], 1.0 - decay)
        on_real = torch.relu(real - self.average_fake).square().mean()
        on_fake = torch.relu(self.average_real - fake).square().mean()
        return self.started * self.weight * (on_real + on_fake)


class GeneratorPenalty(nn.Module, ABC):
    """A penalty added to the generator's loss; for ``interval``, see ``DiscriminatorPenalty``."""

    needed_in_training_only = True

    def __init__(self, *, interval: int) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"interval={interval} must be 1 or more steps")
        self.interval = interval

    def check(self, generator: nn.Module) -> None:
        """Reject a generator that the penalty cannot use.

        Raises:
            ValueError: If the penalty cannot use it; the message suggests a suitable generator.
        """

    @abstractmethod
    def forward(self, generator: nn.Module, latent: Tensor, condition: Tensor) -> tuple[Tensor, Metrics]:
        """Return the weighted penalty, a scalar, and additional metrics for latents [N, Z] and conditions as in the batch."""


class WeightClipping(nn.Module):
    """Clipping of every weight of the discriminator to [-limit, limit]: Arjovsky et al. 2017, algorithm 1.

    Args:
        limit: Limit c; 0.01 in the paper.
    """

    needed_in_training_only = True

    limit = Scheduled()

    def __init__(self, *, limit: Number) -> None:
        super().__init__()
        require_positive("limit", limit)
        self.limit = limit

    @torch.no_grad()
    def clip(self, discriminator: nn.Module) -> None:
        """Clip the weights after an update of the discriminator; frozen ones do not change."""
        parameters: list[Tensor] = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
        if isinstance(self.limit, Tensor):
            for parameter in parameters:
                parameter.clamp_(-self.limit, self.limit)
            return
        torch._foreach_clamp_max_(parameters, self.limit)
        torch._foreach_clamp_min_(parameters, -self.limit)


def squared_gradient_norms(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return ||grad_x sum_n logits(x)_n||^2 for each image [N], with a graph for the second derivative."""
    images = images.detach().requires_grad_(True)
    return squared_norms_of_gradient(images, logits(images))


def squared_norms_of_gradient(images: Tensor, logits: Tensor) -> Tensor:
    """Return ||grad_x sum_n logits_n||^2 for each image [N], with a graph for the second derivative.

    The images must require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def _gamma(gamma: Number | str, image_size: int | list[int], batch_size: int) -> Number:
    if gamma == "auto":
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        return 0.0002 * height * width / batch_size
    if isinstance(gamma, str):
        raise ValueError(f"gamma={gamma} must be auto or a number")
    require_positive("gamma", gamma)
    return gamma


def _checked_reuse(side: str, reuse_forward: bool, interval: int) -> frozenset[str]:
    if reuse_forward and interval > 1:
        raise ValueError(
            f"reuse_forward=true has no effect with interval={interval}, because its update has no other forward pass: set "
            "interval=1, or reuse_forward=false"
        )
    return frozenset({side}) if reuse_forward else frozenset()


def require_positive(name: str, value: Number) -> None:
    """Reject a penalty's setting that would disable or invert it.

    Raises:
        ValueError: If the setting is not positive; the message names it.
    """
    if not is_positive(value):
        raise ValueError(f"{name}={shown(value)} must be above 0: for no penalty, remove it")
