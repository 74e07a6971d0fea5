"""R3GAN: Huang et al., "The GAN is dead; long live the GAN! A modern baseline GAN", NeurIPS 2024, section 3.

Both networks consist of residual stages without normalisation, in opposite order. The smallest resolution is always computed
in float32, the others in the trainer's precision.
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

# The filter [1, 2, 1] of the paper, convolved with its box filter [1, 1].
_FILTER = (1, 3, 3, 1)
_LEAKY_GAIN = math.sqrt(2.0 / (1.0 + 0.2**2))  # preserves the second moment after leaky ReLU (He et al. 2015, equation 15)

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Block(nn.Module):
    """Residual block x + f(x); f consists of 1x1, grouped 3x3 and 1x1 convolutions around leaky ReLU, and is 0 at the start.

    Args:
        width: Number of input and output channels.
        expansion: Number of inner channels, as a multiple of the width.
        group_width: Number of channels in a group of the 3x3 convolution.
        depth: Number of blocks in the network. Their variances add up, so deeper networks start with smaller weights (Zhang
            et al. 2019, "Fixup initialization").
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
        """Apply the block to features [N, width, H, W]."""
        inner = F.leaky_relu(self.expand(features), 0.2, inplace=True)
        inner = F.leaky_relu(self.mix(inner), 0.2, inplace=True)
        return features + self.contract(inner)


class Generator(nn.Module):
    """Learnt features scaled by the latent, then stages of blocks with upsampling between them.

    The output is unbounded. Values outside [-1, 1] are clipped when an evaluation converts images to bytes.

    Args:
        latent_dim: Number of latent dimensions Z.
        condition: Encoder of the condition. A linear embedding of its vector, of length Z, is concatenated to the latent.
        normalisation: Must be ``none``.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        widths: Numbers of channels of the stages, from the image inwards; the last one is repeated.
        num_blocks: Number of blocks per stage.
        expansion, group_width: See ``Block``.

    Raises:
        ValueError: If the normalisation is not ``none``, or settings do not fit each other or the image size.
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
                f"normalisation={normalisation} is not supported by R3GAN, whose generator has no normalisation layers: set "
                "it to none, and condition by projection"
            )
        count, size = halvings(image_size, least=1)
        stages = complete_widths(widths, count + 1)[::-1]
        self.condition = condition
        self.embedding = _initialised(nn.Linear(condition.dim, latent_dim, bias=False), 1.0) if condition.dim else None
        joined = latent_dim * (2 if condition.dim else 1)
        self.basis = nn.Parameter(torch.randn(1, stages[0], *size))
        self.scale = _initialised(nn.Linear(joined, stages[0], bias=False), 1.0)
        self.blocks = nn.ModuleList()  # one per stage
        depth = num_blocks * len(stages)
        for number, width in enumerate(stages):
            blocks = [Block(width, expansion=expansion, group_width=group_width, depth=depth) for _ in range(num_blocks)]
            before = [] if number == 0 else [*_change_width(stages[number - 1], width), Upsample(_FILTER)]
            self.blocks.append(nn.Sequential(*before, *blocks))
        self.to_image = _initialised(nn.Conv2d(stages[-1], channels, 1, bias=False), 1.0)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to images [N, C, H, W]."""
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
    """Stages of blocks with downsampling between them, then a depthwise convolution over all positions, and a logit.

    With a condition, the logit is the inner product of the last features and a linear embedding of the condition.

    Args:
        condition: Encoder of the condition.
        head: ``none`` without a condition, ``projection`` with one.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        widths: Numbers of channels of the stages, from the image inwards; the last one is repeated.
        num_blocks: Number of blocks per stage.
        expansion, group_width: See ``Block``.

    Raises:
        ValueError: If the head does not fit the condition, or settings do not fit each other or the image size.
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
                f"head={head} with the condition {type(condition).__name__} is not supported by R3GAN: choose projection with "
                "a condition, or none without one"
            )
        count, size = halvings(image_size, least=1)
        stages = complete_widths(widths, count + 1)
        self.condition = condition
        self.from_image = _initialised(nn.Conv2d(channels, stages[0], 1, bias=False), 1.0)
        self.blocks = nn.ModuleList()  # one per stage
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
        """Score images [N, C, H, W] with their raw conditions."""
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
    """Initialise weights by N(0, gain^2 / fan-in) as in He et al. 2015, and the bias by 0."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
