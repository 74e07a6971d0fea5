"""R3GAN: Huang et al., "The GAN is dead; long live the GAN! A modern baseline GAN", NeurIPS 2024, section 3.

Both networks are residual stages without any normalisation, of one width or several, and mirror each other. The smallest
resolution always computes in float32, the others in the trainer's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.discriminator import DiscriminatorOutput
from genimg.networks.layers import complete_widths, halvings
from genimg.networks.resampling import Downsample, Upsample

# [1, 2, 1], the paper's filter between samples, and the box in which it holds a sample.
_FILTER = (1, 3, 3, 1)
_LEAKY_GAIN = math.sqrt(2.0 / (1.0 + 0.2**2))  # keeps the second moment behind leaky ReLU (He et al. 2015, equation 15)

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Block(nn.Module):
    """x + f(x), with f of 1x1, grouped 3x3 and 1x1 convolutions around leaky ReLU, and 0 at the start.

    Args:
        width: channels outside.
        expansion: channels inside, as a multiple of the width.
        group_width: inner channels that a 3x3 convolution mixes.
        depth: blocks in the network: their variances add up, and the weights start small enough for that (Zhang et al.
            2019, "Fixup initialization").
    """

    def __init__(self, width: int, *, expansion: int, group_width: int, depth: int) -> None:
        super().__init__()
        inner = width * expansion
        if inner % group_width:
            raise ValueError(
                f"group_width={group_width} does not divide the {inner} inner channels of a block, {expansion} times {width}"
            )
        gain = _LEAKY_GAIN * depth**-0.25
        self.expand = _initialised(nn.Conv2d(width, inner, 1), gain)
        self.mix = _initialised(nn.Conv2d(inner, inner, 3, padding=1, groups=inner // group_width), gain)
        self.contract = _initialised(nn.Conv2d(inner, width, 1, bias=False), 0.0)

    def forward(self, features: Tensor) -> Tensor:
        """[N, width, H, W] -> the same."""
        inner = F.leaky_relu(self.expand(features), 0.2, inplace=True)
        inner = F.leaky_relu(self.mix(inner), 0.2, inplace=True)
        return features + self.contract(inner)


class Generator(nn.Module):
    """Learnt features scaled by the latent, then stages of blocks, each but the first behind an upsampling.

    The image is not squashed; what lies outside [-1, 1] is cut where an evaluation makes bytes of images.

    Args:
        latent_dim: Z.
        condition: encoder; a linear embedding of its vector, as long as the latent, joins it.
        normalisation: must be ``none``.
        image_size: pixels, one number or [height, width].
        channels: of the image.
        widths: channels of each stage from the image inwards; the last one holds for all beyond.
        num_blocks: of each stage.
        expansion, group_width: see ``Block``.

    Raises:
        ValueError: for another normalisation, or settings that do not fit each other or the image size.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        condition: ConditionEncoder,
        normalisation: str,
        image_size: int | Sequence[int],
        channels: int,
        widths: Sequence[int],
        num_blocks: int,
        expansion: int,
        group_width: int,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        if normalisation != "none":
            raise ValueError(
                f"normalisation={normalisation} is not for R3GAN, whose generator has no normalisation layers: set it to none, "
                "and condition by projection"
            )
        count, size = halvings(image_size, least=1)
        stages = complete_widths(widths, count + 1)[::-1]
        self.condition = condition
        self.embedding = _initialised(nn.Linear(condition.dim, latent_dim, bias=False), 1.0) if condition.dim else None
        joined = latent_dim * (2 if condition.dim else 1)
        self.basis = nn.Parameter(torch.randn(1, stages[0], *size))
        self.scale = _initialised(nn.Linear(joined, stages[0], bias=False), 1.0)
        self.blocks = nn.ModuleList()  # one for each stage
        depth = num_blocks * len(stages)
        for number, width in enumerate(stages):
            blocks = [Block(width, expansion=expansion, group_width=group_width, depth=depth) for _ in range(num_blocks)]
            before = [] if number == 0 else [*_change_width(stages[number - 1], width), Upsample(_FILTER)]
            self.blocks.append(nn.Sequential(*before, *blocks))
        self.to_image = _initialised(nn.Conv2d(stages[-1], channels, 1, bias=False), 1.0)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """[N, Z] and conditions as they stand in the batch -> [N, C, H, W]."""
        with torch.autocast(latent.device.type, enabled=False):
            if self.embedding is not None:
                vector = self.condition(condition).to(latent.dtype)
                latent = torch.cat([latent, self.embedding(vector)], dim=1)
            features = self.basis * self.scale(latent)[:, :, None, None]
            features = self.blocks[0](features)
        for stage in list(self.blocks)[1:]:
            features = stage(features)
        return self.to_image(features).to(latent.dtype)


class Discriminator(nn.Module):
    """Stages of blocks, each but the last before a downsampling; then learnt weights over each channel.

    With a condition, the logit is the inner product of the last features and a linear embedding of the condition.

    Args:
        condition: encoder.
        head: ``none`` without a condition, ``projection`` with one.
        image_size: pixels, one number or [height, width].
        channels: of the image.
        widths: channels of each stage from the image inwards; the last one holds for all beyond.
        num_blocks: of each stage.
        expansion, group_width: see ``Block``.

    Raises:
        ValueError: for another head, or settings that do not fit each other or the image size.
    """

    def __init__(
        self,
        *,
        condition: ConditionEncoder,
        head: str,
        image_size: int | Sequence[int],
        channels: int,
        widths: Sequence[int],
        num_blocks: int,
        expansion: int,
        group_width: int,
    ) -> None:
        super().__init__()
        if head != ("projection" if condition.dim else "none"):
            raise ValueError(
                f"head={head} with the condition {type(condition).__name__} is not for R3GAN: choose projection with a "
                "condition, or none without one"
            )
        count, size = halvings(image_size, least=1)
        stages = complete_widths(widths, count + 1)
        self.condition = condition
        self.from_image = _initialised(nn.Conv2d(channels, stages[0], 1, bias=False), 1.0)
        self.blocks = nn.ModuleList()  # one for each stage
        depth = num_blocks * len(stages)
        for number, width in enumerate(stages):
            blocks = [Block(width, expansion=expansion, group_width=group_width, depth=depth) for _ in range(num_blocks)]
            behind = [Downsample(_FILTER), *_change_width(width, stages[number + 1])] if number < count else []
            self.blocks.append(nn.Sequential(*blocks, *behind))
        last = stages[-1]
        self.basis = _initialised(nn.Conv2d(last, last, size, groups=last, bias=False), 1.0)
        self.logit = _initialised(nn.Linear(last, last if condition.dim else 1, bias=False), 1.0)
        self.embedding = (
            _initialised(nn.Linear(condition.dim, last, bias=False), 1.0 / math.sqrt(last)) if condition.dim else None
        )

    def forward(self, image: Tensor, condition: Tensor) -> DiscriminatorOutput:
        """Images [N, C, H, W] and their conditions as they stand in the batch."""
        features = self.from_image(image)
        for stage in list(self.blocks)[:-1]:
            features = stage(features)
        with torch.autocast(image.device.type, enabled=False):
            features = self.blocks[-1](features.to(self.logit.weight.dtype))
            features = self.logit(self.basis(features).flatten(1))  # [N, D], or [N, 1]
            if self.embedding is None:
                return DiscriminatorOutput(features.squeeze(1))
            return DiscriminatorOutput((features * self.embedding(self.condition(condition).to(features.dtype))).sum(dim=1))


def _change_width(before: int, behind: int) -> list[nn.Module]:
    return [] if before == behind else [_initialised(nn.Conv2d(before, behind, 1, bias=False), 1.0)]


def _initialised(layer: Layer, gain: float) -> Layer:
    """N(0, gain^2 / fan-in), as He et al. 2015; a bias of 0."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
