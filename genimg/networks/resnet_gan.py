"""Residual GANs: SNGAN (Miyato et al. 2018, tables 4 to 6), WGAN-GP (Gulrajani et al. 2017), SAGAN (Zhang et al. 2019).

The same pair of networks serves all image sizes. ``widths`` are listed from the image inwards, and the last one is repeated:
[256] is the generator for CIFAR at any size, [64, 128, 256, 512, 1024] the one for 64 and 128 px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import Conditioned, ConditionEncoder
from genimg.networks.layers import (
    SelfAttention,
    complete_widths,
    halvings,
    initialise,
    normalisation_layer,
    pooled,
    set_batch_norm_eps,
    spectral_normalise,
)
from genimg.networks.resampling import INTERPOLATIONS, Doubling
from genimg.types import height_width
from genimg.utils.numbers import require_least

POOLINGS = ("sum", "mean")


class GeneratorBlock(nn.Module):
    """Residual block of two convolutions that doubles height and width.

    Args:
        inputs, outputs: Numbers of channels.
        normalisation, condition_dim: See ``layers.normalisation_layer``.
        upsampling: ``nearest`` as in the papers' code, or ``bilinear``.
    """

    takes_condition = True

    def __init__(
        self, inputs: int, outputs: int, *, normalisation: str, condition_dim: int, upsampling: str = "nearest"
    ) -> None:
        super().__init__()
        self.residual = Conditioned(
            [
                normalisation_layer(normalisation, inputs, condition_dim),
                nn.ReLU(),
                Doubling(upsampling),
                _residual_convolution(inputs, outputs),
                normalisation_layer(normalisation, outputs, condition_dim),
                nn.ReLU(),
                _residual_convolution(outputs, outputs),
            ]
        )
        # The published order is the reverse; a 1x1 convolution commutes with interpolation and costs a quarter before it.
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), Doubling(upsampling))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map [N, inputs, H, W] and [N, E] to [N, outputs, 2H, 2W]."""
        return self.residual(features, condition) + self.shortcut(features)


def generator_blocks(
    widths: Sequence[int],
    base: tuple[int, int],
    *,
    attention_at: int | None,
    normalisation: str,
    condition_dim: int,
    upsampling: str = "nearest",
) -> list[Conditioned]:
    """Build blocks from the smallest feature map to the image, with attention after the block that reaches ``attention_at``.

    Args:
        widths: Numbers of channels of all feature maps, from the image inwards.
        base: Height and width of the smallest feature map.
        attention_at: Shorter side of the feature map that gets self-attention, in pixels; None for no attention.
        normalisation, condition_dim: See ``layers.normalisation_layer``.
        upsampling: See ``GeneratorBlock``.

    Raises:
        ValueError: If no feature map has the size ``attention_at``, or the upsampling is unknown.
    """
    if upsampling not in INTERPOLATIONS:
        raise ValueError(f"upsampling={upsampling} is unknown: choose one of {', '.join(INTERPOLATIONS)}")
    channels = list(reversed(widths))
    sides = [min(base) * 2 ** (level + 1) for level in range(len(channels) - 1)]
    _check_attention(attention_at, dict(zip(sides, channels[1:], strict=True)))
    blocks = []
    for inputs, outputs, side in zip(channels, channels[1:], sides, strict=False):
        block = Conditioned(
            [GeneratorBlock(inputs, outputs, normalisation=normalisation, condition_dim=condition_dim, upsampling=upsampling)]
        )
        if side == attention_at:
            block.append(SelfAttention(outputs))
        blocks.append(block)
    return blocks


class Generator(nn.Module):
    """A linear layer, a residual block for every doubling of the size, and a convolution.

    Args:
        latent_dim: Number of latent dimensions Z.
        condition: Encoder of the condition. Its vector joins the latent, or feeds ``conditional_batch`` normalisation.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        widths: Numbers of channels of the feature maps, from the image inwards; the last one is repeated.
        bottom_size: Minimum shorter side of the linear layer's output, in pixels.
        attention_at: Shorter side of the feature map that gets self-attention, in pixels; None for no attention.
        normalisation: Normalisation; see ``layers``. That of the last layer is unconditional.
        initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers except the condition encoder's.
        upsampling: ``nearest``, or ``bilinear`` as in mimicry.
        batch_norm_eps: Epsilon of every batch norm; None keeps PyTorch's 1e-5.

    Raises:
        ValueError: If a setting does not fit the image size.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        condition: ConditionEncoder,
        image_size: int | Sequence[int],
        channels: int,
        widths: Sequence[int],
        bottom_size: int,
        attention_at: int | None,
        normalisation: str,
        initialisation: str,
        spectral_norm: bool,
        upsampling: str = "nearest",
        batch_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        count, self.base = halvings(image_size, bottom_size=bottom_size)
        features = complete_widths(widths, count + 1)
        self.condition = condition
        conditional = normalisation == "conditional_batch"
        self.joined = not conditional
        self.linear = nn.Linear(latent_dim + self.joined * condition.dim, features[-1] * math.prod(self.base))
        self.blocks = Conditioned(
            generator_blocks(
                features,
                self.base,
                attention_at=attention_at,
                normalisation=normalisation,
                condition_dim=condition.dim,
                upsampling=upsampling,
            )
        )
        self.output = nn.Sequential(
            normalisation_layer("batch" if conditional else normalisation, features[0]),
            nn.ReLU(),
            nn.Conv2d(features[0], channels, 3, padding=1),
            nn.Tanh(),
        )
        set_batch_norm_eps(self, batch_norm_eps)
        initialise(self, initialisation)
        if spectral_norm:
            for part in (self.linear, self.blocks, self.output):
                spectral_normalise(part)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to images [N, C, H, W] in [-1, 1]."""
        vector = self.condition(condition).to(latent.dtype)
        start = torch.cat([latent, vector], dim=1) if self.joined else latent  # [N, Z + E]
        features = self.linear(start).unflatten(1, (-1, *self.base))  # [N, width, h, w]
        return self.output(self.blocks(features, vector))


class DiscriminatorBlock(nn.Module):
    """Residual block of two convolutions.

    Args:
        inputs, hidden, outputs: Numbers of channels.
        down: Whether to halve height and width.
        first: Whether the block receives the image; it then begins with a convolution and has no normalisation.
        normalisation: See ``layers``.
        in_place_shortcut: Whether the shortcut sees the block's input after the first ReLU of the residual.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        down: bool,
        first: bool,
        normalisation: str,
        in_place_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.rectifies_input = in_place_shortcut and not first
        residual: list[nn.Module] = [] if first else [normalisation_layer(normalisation, inputs), nn.ReLU()]
        residual += [
            _residual_convolution(inputs, hidden),
            normalisation_layer("none" if first else normalisation, hidden),
            nn.ReLU(),
            _residual_convolution(hidden, outputs),
        ]
        shortcut: list[nn.Module] = []
        if down:
            residual.append(nn.AvgPool2d(2))
            # The published first block has this order. The others begin with the 1x1 convolution: equivalent but slower.
            shortcut.append(nn.AvgPool2d(2))
        if down or inputs != outputs:
            shortcut.append(nn.Conv2d(inputs, outputs, 1))
        self.residual = nn.Sequential(*residual)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W], or to [N, outputs, H/2, W/2] in a ``down`` block."""
        features = torch.relu(features) if self.rectifies_input else features
        return self.residual(features) + self.shortcut(features)


class Features(nn.Module):
    """Residual blocks from an image to the pooled features before a discriminator's logit.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition_channels: Number of further input channels, for ``concat`` conditioning.
        widths: Numbers of channels of the blocks, from the image inwards; the last one is repeated.
        bottom_size: Minimum shorter side of the last feature map, in pixels.
        num_flat_blocks: Number of blocks at that size, after those that halve it.
        wide: Whether a block's hidden channels equal its outputs (SAGAN, BigGAN) or its inputs (SNGAN, WGAN-GP).
        attention_at: Shorter side of the feature map that gets self-attention, in pixels; None for no attention.
        normalisation: Normalisation in each block but the first; see ``layers``.
        pooling: ``sum`` or ``mean`` over height and width.
        in_place_shortcut: Whether the first ReLU of every block but the first also changes the shortcut's input, as the
            in-place ReLUs of PyTorch-StudioGAN and mimicry do in their published results. Requires ``normalisation=none``.

    Raises:
        ValueError: If a setting does not fit the image size, or the pooling is unknown.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition_channels: int = 0,
        widths: Sequence[int],
        bottom_size: int,
        num_flat_blocks: int,
        wide: bool,
        attention_at: int | None,
        normalisation: str,
        pooling: str,
        in_place_shortcut: bool = False,
    ) -> None:
        super().__init__()
        if in_place_shortcut and normalisation != "none":
            raise ValueError(f"in_place_shortcut=true has no effect with normalisation={normalisation}: set it to false")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling} is unknown: choose one of {', '.join(POOLINGS)}")
        require_least(0, num_flat_blocks=num_flat_blocks)
        count, _ = halvings(image_size, bottom_size=bottom_size, least=1)
        outputs = complete_widths(widths, count + num_flat_blocks)
        sides = [min(height_width(image_size)) // 2 ** (level + 1) for level in range(count)]
        _check_attention(attention_at, dict(zip(sides, outputs, strict=False)))  # outputs also has the flat blocks
        self.num_features = outputs[-1]
        self.pooling = pooling
        self.blocks = nn.ModuleList()
        inputs = channels + condition_channels
        for level, width in enumerate(outputs):
            hidden = width if wide or level == 0 else inputs
            down = level < count
            self.blocks.append(
                DiscriminatorBlock(
                    inputs,
                    hidden,
                    width,
                    down=down,
                    first=level == 0,
                    normalisation=normalisation,
                    in_place_shortcut=in_place_shortcut,
                )
            )
            if down and sides[level] == attention_at:
                self.blocks.append(SelfAttention(width))
            inputs = width

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, C + condition_channels, H, W] to features [N, num_features]."""
        features = image
        for block in self.blocks:
            features = block(features)
        return pooled(torch.relu(features), self.pooling)


def _check_attention(attention_at: int | None, widths: Mapping[int, int]) -> None:
    """Check that there is a feature map for attention; ``widths`` maps shorter sides to channels."""
    if attention_at is None:
        return
    if attention_at not in widths:
        raise ValueError(
            f"attention_at={attention_at} is not the size of a feature map: choose {', '.join(map(str, sorted(widths)))} or "
            "null"
        )
    if widths[attention_at] % 8:
        raise ValueError(
            f"attention_at={attention_at} needs a number of channels divisible by 8 at that size, not {widths[attention_at]}: "
            "change widths"
        )


def _residual_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    layer.init_gain = math.sqrt(2.0)  # type: ignore[assignment]
    return layer
