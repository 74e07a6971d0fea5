"""Consistency regularisation: equal logits for an image and a slightly changed copy, and for images of nearby latents.

Zhang et al., "Consistency regularization for generative adversarial networks", ICLR 2020 (CR); Zhao et al., "Improved
consistency regularization for GANs", AAAI 2021 (bCR and zCR).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.losses.penalties import DiscriminatorPenalty, GeneratorPenalty, PenaltyInputs, require_positive
from genimg.schedules import Number, Scheduled, is_within, is_zero, shown
from genimg.types import Metrics
from genimg.utils.images import mirror_and_shift


class Consistency(DiscriminatorPenalty):
    """real_weight E[(D(x) - D(T(x)))^2] + fake_weight E[(D(G(z)) - D(T(G(z))))^2]: bCR, Zhao et al. 2021, algorithm 1.

    T mirrors each image with probability 1/2 and shifts it by up to a fraction of its sides.

    Args:
        real_weight, fake_weight: Weights of real and generated images; 10 each in the paper. A fake_weight of 0 gives CR (Zhang
            et al. 2020).
        max_shift_share: Largest shift as a fraction of each side, rounded to pixels; 1/8 is the papers' 4 pixels of 32.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
    """

    real_weight = Scheduled()
    fake_weight = Scheduled()

    def __init__(self, *, real_weight: Number, fake_weight: Number, max_shift_share: float, interval: int) -> None:
        super().__init__(interval=interval)
        require_positive("real_weight", real_weight)
        if not is_within(fake_weight, 0):
            raise ValueError(f"fake_weight={shown(fake_weight)} must be 0 or more")
        if not 0 <= max_shift_share < 1:
            raise ValueError(
                f"max_shift_share={max_shift_share} must be at least 0 and below 1, as a share of the image's sides; "
                "0.125 is usual"
            )
        self.real_weight = real_weight
        self.fake_weight = fake_weight
        self.max_shift_share = max_shift_share

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        penalty = self.real_weight * self._difference(inputs, inputs.real)
        if not is_zero(self.fake_weight):
            penalty = penalty + self.fake_weight * self._difference(inputs, inputs.fake)
        return penalty

    def _difference(self, inputs: PenaltyInputs, images: Tensor) -> Tensor:
        moved = randomly_moved(images, self.max_shift_share)
        return (inputs.plain_logits(images) - inputs.plain_logits(moved)).square().mean()


class LatentConsistency(DiscriminatorPenalty):
    """weight E[(D(G(z)) - D(G(z + dz)))^2]: the discriminator's half of zCR, Zhao et al. 2021, algorithm 2.

    Args:
        weight: Weight of the penalty; 5 in the paper. The other half is ``LatentDiversity``.
        noise: Standard deviation of dz; 0.07 in the paper.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
    """

    weight = Scheduled()
    noise = Scheduled()

    def __init__(self, *, weight: Number, noise: Number, interval: int) -> None:
        super().__init__(interval=interval)
        require_positive("weight", weight)
        require_positive("noise", noise)
        self.weight = weight
        self.noise = noise

    def forward(self, inputs: PenaltyInputs) -> Tensor:
        fake, near = inputs.perturb(self.noise)
        return self.weight * (inputs.plain_logits(fake) - inputs.plain_logits(near)).square().mean()


class LatentDiversity(GeneratorPenalty):
    """-weight E[||G(z) - G(z + dz)||^2 / (C H W)]: the generator's half of zCR, Zhao et al. 2021, algorithm 2.

    Args:
        weight: Weight of the penalty; 0.5 in the paper.
        noise: Standard deviation of dz; 0.07 in the paper.
        interval: Interval in updates; see ``DiscriminatorPenalty``.
    """

    weight = Scheduled()
    noise = Scheduled()

    def __init__(self, *, weight: Number, noise: Number, interval: int) -> None:
        super().__init__(interval=interval)
        require_positive("weight", weight)
        require_positive("noise", noise)
        self.weight = weight
        self.noise = noise

    def forward(self, generator: nn.Module, latent: Tensor, condition: Tensor) -> tuple[Tensor, Metrics]:
        there = generator.forward(latent, condition)
        near = generator.forward(latent + self.noise * torch.randn_like(latent), condition)
        return -self.weight * (there - near).square().mean(), {}


def randomly_moved(images: Tensor, max_shift_share: float) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by up to a fraction of its sides, with reflection at its border."""
    count, _, height, width = images.shape
    device = images.device
    tall, wide = (int(side * max_shift_share + 0.5) for side in (height, width))
    if tall >= height or wide >= width:
        raise ConfigError(
            f"max_shift_share={max_shift_share} leaves nothing of {height}x{width} pixels", "choose a smaller share"
        )
    mirrored = torch.rand(count, device=device) < 0.5
    down = torch.randint(-tall, tall + 1, (count,), device=device)
    right = torch.randint(-wide, wide + 1, (count,), device=device)
    right = torch.where(mirrored, -right, right)  # the shift applies to the mirrored image
    return mirror_and_shift(images, mirrored, torch.zeros_like(mirrored), down, right)
