"""Encoder and decoder between images and a grid of latents: Rombach et al., "Latent diffusion models", CVPR 2022, appendix E.

The layout is that of a diffusion model's U-Net without its skip connections: residual blocks at each size, and self-attention
at the smallest one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.diffusion_blocks import ARCHITECTURES, SelfAttention
from genimg.networks.diffusion_layers import GroupNorm
from genimg.networks.resampling import Doubling
from genimg.types import height_width
from genimg.utils.numbers import require_least


class Block(nn.Module):
    """Residual block: group norm, SiLU and a 3x3 convolution, twice.

    Args:
        inputs, outputs: Number of channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            GroupNorm(inputs, eps=1e-6), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1),
            GroupNorm(outputs, eps=1e-6), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H, W]."""
        return self.skip(features) + self.layers(features)


class Encoder(nn.Module):
    """Residual blocks at each size, and strided convolutions between sizes.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        latent_channels: Number C of channels of a latent.
        width: Number of channels at the largest size.
        multipliers: Channels of each size as multiples of the width, from the image inwards; sizes differ by a factor of 2.
        num_blocks: Number of blocks per size.
        patch_size: Side of the patches whose pixels become the channels of one position; 1 keeps the image as it is.
        attention: Whether the smallest size has self-attention.

    Raises:
        ValueError: If a setting is out of range, or the image size is not a multiple of the factor between images and latents.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        latent_channels: int,
        width: int,
        multipliers: Sequence[int],
        num_blocks: int,
        patch_size: int,
        attention: bool,
    ) -> None:
        super().__init__()
        widths = _widths(width, multipliers, latent_channels=latent_channels, num_blocks=num_blocks, patch_size=patch_size)
        _require_multiple(image_size, patch_size * 2 ** (len(widths) - 1))
        self.patch_size = patch_size
        self.stem = nn.Conv2d(channels * patch_size**2, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        inputs = widths[0]
        for level, outputs in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(inputs, inputs, 3, stride=2, padding=1))
            for _ in range(num_blocks):
                layers.append(Block(inputs, outputs))
                inputs = outputs
        self.blocks = nn.ModuleList([*layers, *_middle(inputs, attention)])
        self.norm = GroupNorm(inputs, eps=1e-6)
        self.output = nn.Conv2d(inputs, 2 * latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, C', H, W] in [-1, 1] to means and log-variances [N, 2 C, h, w]."""
        features = self.stem(F.pixel_unshuffle(image, self.patch_size))
        for block in self.blocks:
            features = block(features)
        return self.output(F.silu(self.norm(features)))


class Decoder(nn.Module):
    """The encoder mirrored, with one more block per size and nearest-neighbour upsampling before a convolution.

    Args:
        channels, latent_channels, width, multipliers, num_blocks, patch_size, attention: Same as the encoder's.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        channels: int,
        latent_channels: int,
        width: int,
        multipliers: Sequence[int],
        num_blocks: int,
        patch_size: int,
        attention: bool,
    ) -> None:
        super().__init__()
        widths = _widths(width, multipliers, latent_channels=latent_channels, num_blocks=num_blocks, patch_size=patch_size)
        self.patch_size = patch_size
        inputs = widths[-1]
        self.stem = nn.Conv2d(latent_channels, inputs, 3, padding=1)
        layers = _middle(inputs, attention)
        for level, outputs in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + 1):
                layers.append(Block(inputs, outputs))
                inputs = outputs
            if level:
                layers += [Doubling(), nn.Conv2d(inputs, inputs, 3, padding=1)]
        self.blocks = nn.ModuleList(layers)
        self.norm = GroupNorm(inputs, eps=1e-6)
        self.output = nn.Conv2d(inputs, channels * patch_size**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Map latents [N, C, h, w] to images [N, C', H, W], unbounded."""
        features = self.stem(latent)
        for block in self.blocks:
            features = block(features)
        return F.pixel_shuffle(self.output(F.silu(self.norm(features))), self.patch_size)


def _widths(width: int, multipliers: Sequence[int], **counts: int) -> list[int]:
    require_least(1, width=width, **counts)
    given = list(multipliers)
    if not given or any(multiplier < 1 for multiplier in given):
        raise ValueError(f"multipliers={given} must be a list of one or more positive numbers, from the image inwards")
    return [width * multiplier for multiplier in given]


def _middle(channels: int, attention: bool) -> list[nn.Module]:
    mixing = [SelfAttention(channels, 1, ARCHITECTURES["adm"])] if attention else []
    return [Block(channels, channels), *mixing, Block(channels, channels)]


def _require_multiple(image_size: int | Sequence[int], unit: int) -> None:
    height, width = height_width(image_size)
    if height % unit or width % unit:
        nearest = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"image_size=[{height},{width}] does not fit this network: height and width must be multiples of {unit}; the "
            f"nearest is [{nearest[0]},{nearest[1]}]"
        )
