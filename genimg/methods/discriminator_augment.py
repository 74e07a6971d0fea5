"""Augmentation of a GAN's discriminator inputs, real and generated, for training on few images.

All random numbers come from torch's generator of the images' device. Their count does not depend on their values, and nothing
waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from genimg.methods.augment_operations import (
    SYM6,
    draw_blit,
    draw_color,
    draw_cutout,
    draw_geometric,
    erase,
    in_float32,
    matrix_product,
    recolor,
    resample,
    translate,
)
from genimg.schedules import Number, Scheduled, extremes, is_positive, is_within, shown
from genimg.types import Metrics
from genimg.utils.distributed import sum_over_ranks
from genimg.utils.durations import NumImages


class Augment(nn.Module, ABC):
    """Random changes to discriminator inputs."""

    needed_in_training_only = True

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Augment float images [N, C, H, W] in [-1, 1], twice differentiably, keeping shape and type.

        Values may leave the range.
        """

    def begin(self, batch_size: int) -> None:
        """Start a training step, given the batch size of all ranks together."""

    def observe(self, real_logits: Tensor) -> None:
        """Record the detached float logits [N] of the augmented real images, above 0 if they are judged real."""

    def metrics(self) -> Metrics:
        """Return the values to log."""
        return {}


class DiffAugment(Augment):
    """Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020, section 4 and its code.

    Args:
        policy: Operations applied to every image, in this order. ``color``: brightness +U(-0.5, 0.5), then saturation times
            U(0, 2) around each pixel's mean, then contrast times U(0.5, 1.5) around the image's mean. ``translation``: a shift
            of up to 1/8 of each side, filled with zeros. ``cutout``: a rectangle of half of each side, set to 0.
    """

    def __init__(self, *, policy: Sequence[str]) -> None:
        super().__init__()
        if isinstance(policy, str):
            raise ValueError(f"policy={policy} is not a list: write policy=[{policy}]")
        if not policy or not set(policy) <= _POLICIES.keys() or len(set(policy)) < len(policy):
            raise ValueError(
                f"policy=[{','.join(policy)}] must list one or more of {', '.join(_POLICIES)}, each once; for no augmentation "
                "choose none"
            )
        self.policy = tuple(policy)

    def forward(self, images: Tensor) -> Tensor:
        return in_float32(self._augment, images)

    def _augment(self, images: Tensor) -> Tensor:
        for name in self.policy:
            images = _POLICIES[name](images)
        return images


def _diff_color(images: Tensor) -> Tensor:
    brightness, saturation, contrast = (torch.rand(len(images), 1, 1, 1, device=images.device) for _ in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _diff_translation(images: Tensor) -> Tensor:
    down, right = (_randint(images, -_rounded(side / 8), _rounded(side / 8)) for side in images.shape[2:])
    return translate(images, down, right)


def _diff_cutout(images: Tensor) -> Tensor:
    """Erase a rectangle centred anywhere in the image, so part of it may lie outside."""
    height, width = images.shape[2:]
    tall, wide = _rounded(height / 2), _rounded(width / 2)
    # The centre along an even side lies between two pixels, or at an edge of the image.
    top = _randint(images, 0, height - tall % 2) - tall // 2
    left = _randint(images, 0, width - wide % 2) - wide // 2
    return erase(images, top, left, top + tall, left + wide)


def _randint(images: Tensor, low: int, high: int) -> Tensor:
    """Return a random integer per image, from ``low`` to ``high`` inclusive."""
    return torch.randint(low, high + 1, (len(images),), device=images.device)


def _rounded(value: float) -> int:
    return int(value + 0.5)


_POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": _diff_color,
    "translation": _diff_translation,
    "cutout": _diff_cutout,
}


class AdaptiveAugment(Augment):
    """ADA: Karras et al., "Training generative adversarial networks with limited data", 2020, section 3.

    A discriminator that overfits is confident about the real images: r = E[sign(D(real))] tends to 1. Every few updates, the
    probability p of all operations takes a step of fixed size, up if r is above the target and down if it is below. As in the
    paper and its code, p is clamped at 0 but not at 1, above which it has no further effect. If p keeps rising in the log,
    augmentation does not help. Such a p must fall below 1 before augmentation weakens again.

    The sums are over all ranks, so all ranks have the same p, and the checkpoint of any rank holds the whole state.

    Args:
        groups: Groups of operations; see ``Pipeline``.
        target: Target of r, at least 0 and below 1.
        interval: Number of discriminator updates between two steps of p.
        speed: Number of images over which p rises from 0 to 1 at the fastest.
    """

    p: Tensor
    sums: Tensor
    real_sign: Tensor
    target = Scheduled()

    def __init__(self, *, groups: Mapping[str, float], target: Number, interval: int, speed: NumImages) -> None:
        super().__init__()
        if not (is_within(target, 0) and extremes(target)[1] < 1):
            raise ValueError(f"target={shown(target)} must be 0 or more and less than 1, the mean sign of confident logits")
        if interval < 1:
            raise ValueError(f"interval={interval} must be 1 or more updates")
        if speed <= 0:
            raise ValueError(f"speed={speed} images must be above 0: p rises from 0 to 1 over so many images")
        self.pipeline = Pipeline(groups=groups)
        self.target = target
        self.interval = interval
        self.speed = speed
        self.batch_size: int | None = None
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("sums", torch.zeros(2))  # sum and number of the signs since p's last step
        self.register_buffer("real_sign", torch.zeros(()))  # r at p's last step

    def forward(self, images: Tensor) -> Tensor:
        return self.pipeline(images, self.p)

    def begin(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @torch.no_grad()
    def observe(self, real_logits: Tensor) -> None:
        assert self.batch_size is not None, "begin comes first"
        signs = real_logits.float().sign()
        self.sums += sum_over_ranks(torch.stack([signs, torch.ones_like(signs)], 1).sum(0))
        total, count = self.sums.unbind()
        # Count images, not calls: an update may report its logits in parts.
        due = count >= self.interval * self.batch_size
        mean = total / count
        stepped = (self.p + (mean - self.target).sign() * count / self.speed).clamp(min=0)
        self.p.copy_(torch.where(due, stepped, self.p))
        self.real_sign.copy_(torch.where(due, mean, self.real_sign))
        self.sums.masked_fill_(due, 0.0)

    def metrics(self) -> Metrics:
        return {
            "discriminator_augment/p": self.p.clone(),
            "discriminator_augment/real_sign": self.real_sign.clone(),
        }  # they change in place


class FixedAugment(Augment):
    """The operations of Karras et al. 2020 with a fixed or scheduled probability.

    Args:
        groups: Groups of operations; see ``Pipeline``.
        p: Probability of the operations, or its schedule.

    Raises:
        ValueError: If ``p`` is not a probability, or is always 0.
    """

    p: Tensor
    probability = Scheduled()

    def __init__(self, *, groups: Mapping[str, float], p: Number) -> None:
        super().__init__()
        if not (is_positive(p) and is_within(p, 0, 1)):
            raise ValueError(f"p={shown(p)} must be above 0 and at most 1: for no augmentation, choose none")
        self.pipeline = Pipeline(groups=groups)
        self.probability = p
        # p is on the device, because the operations compare random numbers with it there.
        self.register_buffer("p", torch.zeros(()), persistent=False)
        self.begin(0)

    def forward(self, images: Tensor) -> Tensor:
        return self.pipeline(images, self.p)

    def begin(self, batch_size: int) -> None:
        self.p.fill_(self.probability)

    def metrics(self) -> Metrics:
        return {"discriminator_augment/p": self.p.clone()}  # it changes in place


class Pipeline(nn.Module):
    """The operations of Karras et al. 2020, appendix B, each applied to each image independently with probability p.

    ``blit``: x-flip (2 outcomes), quarter turns (4 outcomes), translation by whole pixels U(-1/8, 1/8) of each side.
    ``geometric``: scale 2^N(0, 0.2^2), rotation by U(-pi, pi), x scaled against y by 2^N(0, 0.2^2), a second rotation, and
    translation by N(0, (1/8)^2) of each side. Each rotation has probability 1 - sqrt(1 - p), so the probability of at least
    one rotation is p.
    ``color``: brightness +N(0, 0.2^2), contrast 2^N(0, 0.5^2), luma flip (2 outcomes), hue U(-pi, pi), saturation 2^N(0, 1).
    ``cutout``: a rectangle of half of each side, centred anywhere in the image, set to 0.

    Args:
        groups: Groups to use, each with the factor from p to the probability of its operations (0.5 for R3GAN's colour).
    """

    taps: Tensor

    def __init__(self, *, groups: Mapping[str, float]) -> None:
        super().__init__()
        if not isinstance(groups, Mapping) or not groups:
            raise ValueError(
                f"groups={groups} must map groups to factors, such as {{blit:1.0}}: choose from {', '.join(_GROUPS)}"
            )
        for name, factor in groups.items():
            if name not in _GROUPS:
                raise ValueError(f"groups.{name} is unknown: choose from {', '.join(_GROUPS)}")
            if type(factor) not in (int, float) or not 0 < factor <= 1:
                raise ValueError(
                    f"groups.{name}={factor} must be a number above 0 and at most 1: for none of its operations, remove it"
                )
        self.groups = dict(groups)
        taps = torch.tensor(SYM6, dtype=torch.float64)
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    def forward(self, images: Tensor, p: Tensor) -> Tensor:
        """Augment images [N, C, H, W] with the probability ``p``, 0-d."""
        return in_float32(lambda exact: self._augment(exact, p), images)

    def _augment(self, images: Tensor, p: Tensor) -> Tensor:
        groups = self.groups
        if "blit" in groups or "geometric" in groups:
            matrix, shift = self._draw_placement(images, p)
            images = resample(images, matrix.to(images.dtype), shift.to(images.dtype), self.taps)
        if "color" in groups:
            brightness, matrix = draw_color(images, groups["color"] * p)
            images = recolor(images, brightness.to(images.dtype), matrix.to(images.dtype))
        if "cutout" in groups:
            images = erase(images, *draw_cutout(images, groups["cutout"] * p))
        return images

    def _draw_placement(self, images: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Draw blit and geometric operations as one matrix [N, 2, 2] and shift [N, 2] from output to input."""
        matrix = torch.eye(2, device=images.device).expand(len(images), 2, 2)
        shift = torch.zeros(len(images), 2, device=images.device)
        if "blit" in self.groups:
            matrix, moved = draw_blit(images, self.groups["blit"] * p)
            shift = shift - (matrix * moved.unsqueeze(1)).sum(2)
        if "geometric" in self.groups:
            second, moved = draw_geometric(images, self.groups["geometric"] * p)
            matrix = matrix_product(matrix, second)
            shift = shift - (matrix * moved.unsqueeze(1)).sum(2)
        return matrix, shift


_GROUPS = ("blit", "geometric", "color", "cutout")
