"""Residual encoder and decoder for autoencoders, at any size that can be halved twice.

Blocks have the pre-activation order of He et al. 2016, "Identity mappings in deep residual networks". There is one linear layer
on each side of the latent. ``widths`` are listed from the image inwards; the last one is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder, beside_image
from genimg.networks.layers import complete_widths, halvings, normalisation_layer, start_at_zero
from genimg.networks.resampling import Doubling
from genimg.types import PixelLikelihood
from genimg.utils.numbers import require_least

_NORMALISATIONS = ("batch", "none")


class ResidualBlock(nn.Module):
    """Residual block of two 3x3 convolutions, each after normalisation and ReLU. Initially the residual is 0.

    Args:
        inputs, outputs: Numbers of channels.
        normalisation: ``batch`` or ``none``.
        resampling: ``down`` halves height and width by 2x2 average pooling, ``up`` doubles them by repeating pixels, or
            ``none``.
    """

    def __init__(self, inputs: int, outputs: int, *, normalisation: str, resampling: str) -> None:
        super().__init__()
        up: list[nn.Module] = [Doubling()] if resampling == "up" else []
        down: list[nn.Module] = [nn.AvgPool2d(2)] if resampling == "down" else []
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        start_at_zero(last.weight)
        self.residual = nn.Sequential(
            normalisation_layer(normalisation, inputs),
            nn.ReLU(),
            *up,
            nn.Conv2d(inputs, outputs, 3, padding=1),
            normalisation_layer(normalisation, outputs),
            nn.ReLU(),
            last,
            *down,
        )
        # A 1x1 convolution commutes with resampling, and at the smaller size it costs a quarter.
        project: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1)] if inputs != outputs else []
        self.shortcut = nn.Sequential(*down, *project, *up)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H', W']."""
        residual: Tensor = self.residual(features)
        return residual + self.shortcut(features)


class Encoder(nn.Module):
    """A convolution, residual blocks at every size down to the smallest, and a linear layer.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition: Encoder of the condition, whose vector is appended to the image as constant channels.
        latent_dim: Number of latent dimensions Z.
        moments: Number of moments per latent dimension: 2 for a mean and a log-variance, 1 without noise.
        widths: Numbers of channels of the feature maps.
        num_blocks: Number of blocks at every size, one of which halves it.
        normalisation: ``batch`` or ``none``.

    Raises:
        ValueError: If a setting is out of range or does not fit the image size.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition: ConditionEncoder,
        latent_dim: int,
        moments: int,
        widths: Sequence[int],
        num_blocks: int,
        normalisation: str,
    ) -> None:
        super().__init__()
        require_least(1, moments=moments, latent_dim=latent_dim)
        features, base = _feature_maps(image_size, widths, num_blocks, normalisation)
        self.condition = condition
        self.start = nn.Conv2d(channels + condition.dim, features[0], 3, padding=1)
        blocks = []
        for inputs, outputs in pairwise(features):
            same = [_block(inputs, inputs, normalisation) for _ in range(num_blocks - 1)]
            blocks += [*same, _block(inputs, outputs, normalisation, "down")]
        blocks += [_block(features[-1], features[-1], normalisation) for _ in range(num_blocks - 1)]
        self.blocks = nn.ModuleList(blocks)
        self.activate = nn.Sequential(normalisation_layer(normalisation, features[-1]), nn.ReLU())
        self.shape = (moments, latent_dim)
        self.moments = nn.Linear(features[-1] * math.prod(base), moments * latent_dim)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [-1, 1] and raw conditions to moments [N, moments, Z]."""
        features = self.start(beside_image(image, self.condition(condition)))
        for block in self.blocks:
            features = block(features)
        return self.moments(self.activate(features).flatten(1)).unflatten(1, self.shape)


class Decoder(nn.Module):
    """The encoder mirrored: a linear layer, residual blocks at every size up to the image's, and a convolution.

    Args:
        image_size, channels, latent_dim, widths, normalisation: Same as the encoder's.
        condition: Encoder of the condition, whose vector is concatenated to the latent.
        num_blocks: Number of blocks at every size, one of which doubles it.
        likelihood: Pixel likelihood, which determines the number of outputs per pixel.

    Raises:
        ValueError: If a setting is out of range or does not fit the image size.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition: ConditionEncoder,
        latent_dim: int,
        widths: Sequence[int],
        num_blocks: int,
        normalisation: str,
        likelihood: PixelLikelihood,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        features, base = _feature_maps(image_size, widths, num_blocks, normalisation)
        features.reverse()
        self.condition = condition
        self.shape = (features[0], *base)
        self.project = nn.Linear(latent_dim + condition.dim, math.prod(self.shape))
        blocks = [_block(features[0], features[0], normalisation) for _ in range(num_blocks - 1)]
        for inputs, outputs in pairwise(features):
            same = [_block(outputs, outputs, normalisation) for _ in range(num_blocks - 1)]
            blocks += [_block(inputs, outputs, normalisation, "up"), *same]
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Sequential(
            normalisation_layer(normalisation, features[-1]),
            nn.ReLU(),
            nn.Conv2d(features[-1], likelihood.num_outputs(channels), 3, padding=1),
        )

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to likelihood parameters [N, O, H, W], unbounded."""
        start = torch.cat([latent, self.condition(condition).to(latent.dtype)], dim=1)
        features = self.project(start).unflatten(1, self.shape)
        for block in self.blocks:
            features = block(features)
        return self.output(features)


def _block(inputs: int, outputs: int, normalisation: str, resampling: str = "none") -> ResidualBlock:
    return ResidualBlock(inputs, outputs, normalisation=normalisation, resampling=resampling)


def _feature_maps(
    image_size: int | Sequence[int], widths: Sequence[int], num_blocks: int, normalisation: str
) -> tuple[list[int], tuple[int, int]]:
    """Return the channels of all feature maps from the image inwards, and the size of the smallest."""
    require_least(1, num_blocks=num_blocks)
    if normalisation not in _NORMALISATIONS:
        raise ValueError(f"normalisation={normalisation} is unknown: choose one of {', '.join(_NORMALISATIONS)}")
    count, base = halvings(image_size)
    return complete_widths(widths, count + 1), base
