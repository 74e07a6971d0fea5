"""Distances of an image from its target, as losses."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg.errors import ConfigError
from genimg.losses.perceptual import PerceptualLoss
from genimg.schedules import Number, Scheduled, is_within, shown
from genimg.types import Metrics

KINDS = ("l1", "l2", "charbonnier")


class ReconstructionLoss:
    """The mean over pixels and channels of |d|, of d^2, or of sqrt(d^2 + epsilon^2), with d = output - target in [-2, 2].

    For inpainting, the mean of each image is weighted: 1 for missing pixels, ``known_weight`` for the others (Liu et al. 2018,
    equation 7, which has 1/6).

    Args:
        kind: ``l1``; ``l2``; ``charbonnier`` (Charbonnier et al. 1994; Lai et al. 2017 for images).
        epsilon: Constant of ``charbonnier``, in units of images in [-1, 1]; None for the others.
        known_weight: Weight of pixels that a mask does not hide, 0 or more; 1 if there are no masks.
        perceptual: Perceptual distance to add, with its own weight; None for none.

    Raises:
        ValueError: If the kind is unknown, or a number is out of range.
    """

    needed_in_training_only = True

    known_weight = Scheduled()

    def __init__(
        self, *, kind: str, epsilon: float | None, known_weight: Number, perceptual: PerceptualLoss | None = None
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind={kind} is unknown: choose one of {', '.join(KINDS)}")
        if (kind == "charbonnier") != (epsilon is not None):
            given = "null" if epsilon is None else epsilon
            raise ValueError(f"epsilon={given} does not match kind={kind}: charbonnier needs a number, the others null")
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"epsilon={epsilon} must be above 0")
        if not is_within(known_weight, 0):
            raise ValueError(f"known_weight={shown(known_weight)} must be 0 or more")
        self.kind = kind
        self.epsilon = epsilon
        self.known_weight = known_weight
        self.perceptual = perceptual

    def __call__(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the scalar loss of images [N, C, H, W], in float32; ``mask`` [N, 1, H, W] is 1 where pixels were missing."""
        return self.with_metrics(output, target, mask)[0]

    def with_metrics(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Metrics]:
        """Return the loss, and metrics: ``loss/reconstruction``, and ``loss/perceptual``, its part, if there is one."""
        loss, metrics = self._of_pixels(output, target, mask), {}
        if self.perceptual is not None:
            distance = self.perceptual(output, target)
            loss, metrics = loss + distance, {"loss/perceptual": distance.detach()}
        return loss, {"loss/reconstruction": loss.detach()} | metrics

    def _of_pixels(self, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        difference = output.float() - target.float()
        if self.kind == "l1":
            distance = difference.abs()
        elif self.kind == "l2":
            distance = difference.square()
        else:
            assert self.epsilon is not None
            distance = (difference.square() + self.epsilon**2).sqrt()
        if mask is None:
            if not isinstance(self.known_weight, Tensor) and self.known_weight != 1:  # `check` saw it on the host
                raise ConfigError(f"known_weight={self.known_weight} has no effect without masks", "set it to 1")
            return distance.mean()
        weight = self.known_weight + (1.0 - self.known_weight) * mask
        total = weight.flatten(1).sum(dim=1) * distance.shape[1]  # [N]
        # Normalised per image, so the loss is a mean over samples. An image without holes may have a total weight of 0.
        return ((weight * distance).flatten(1).sum(dim=1) / total.clamp_min(torch.finfo(total.dtype).tiny)).mean()
