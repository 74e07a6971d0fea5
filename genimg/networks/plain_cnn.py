"""The standard CNNs of SNGAN: Miyato et al. 2018, table 3.

Ports (chainer-gan-lib, pytorch-gan-collections) differ from the table in ``activate_start`` and ``strided_doubles``. With batch
norm, ReLU and sum pooling these networks are also the DCGAN of PyTorch-StudioGAN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import Conditioned, ConditionEncoder
from genimg.networks.layers import halvings, initialise, normalisation_layer, pooled, spectral_normalise
from genimg.utils.numbers import require_least

POOLINGS = ("flatten", "sum")


class Generator(nn.Module):
    """A linear layer, transposed convolutions with normalisation and ReLU that double the size, and a convolution.

    Args:
        latent_dim: Number of latent dimensions Z.
        condition: Encoder of the condition. Its vector joins the latent, or feeds ``conditional_batch`` normalisation.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        width: Number of channels before the last convolution; it doubles with every layer towards the latent.
        bottom_size: Minimum shorter side of the linear layer's output, in pixels.
        activate_start: Whether normalisation and ReLU also follow the linear layer, as in the ports but not in the table.
        normalisation, initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers except the condition encoder's.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        condition: ConditionEncoder,
        image_size: int | Sequence[int],
        channels: int,
        width: int,
        bottom_size: int,
        activate_start: bool,
        normalisation: str,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        require_least(1, width=width)
        count, self.base = halvings(image_size, bottom_size=bottom_size)
        self.condition = condition
        self.joined = normalisation != "conditional_batch"
        features = width * 2**count
        self.linear = nn.Linear(latent_dim + self.joined * condition.dim, features * math.prod(self.base))
        layers: list[nn.Module] = []
        if activate_start:
            layers += [normalisation_layer(normalisation, features, condition.dim), nn.ReLU(inplace=True)]
        for _ in range(count):
            layers += [
                nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1),
                normalisation_layer(normalisation, features // 2, condition.dim),
                nn.ReLU(inplace=True),
            ]
            features //= 2
        self.layers = Conditioned([*layers, nn.Conv2d(features, channels, 3, padding=1), nn.Tanh()])
        initialise(self, initialisation)
        if spectral_norm:
            for part in (self.linear, self.layers):
                spectral_normalise(part)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to images [N, C, H, W] in [-1, 1]."""
        vector = self.condition(condition).to(latent.dtype)
        start = torch.cat([latent, vector], dim=1) if self.joined else latent  # [N, Z + E]
        return self.layers(self.linear(start).unflatten(1, (-1, *self.base)), vector)


class Features(nn.Module):
    """Pairs of a 3x3 and a strided 4x4 convolution, and a last 3x3 convolution, each with normalisation and leaky ReLU.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition_channels: Number of further input channels, for ``concat`` conditioning.
        width: Number of channels of the first layer, doubled with every halving of the size.
        bottom_size: Minimum shorter side of the last feature map, in pixels.
        strided_doubles: Whether the strided convolution doubles the channels (the ports), or the next convolution (the table).
        negative_slope: Negative slope of the leaky ReLU; 0 makes it ReLU.
        normalisation: Normalisation of each layer; see ``layers``.
        pooling: ``flatten``, or ``sum`` over height and width.

    Raises:
        ValueError: If the image size does not fit, or the pooling is unknown.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition_channels: int = 0,
        width: int,
        bottom_size: int,
        strided_doubles: bool,
        negative_slope: float,
        normalisation: str,
        pooling: str,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling} is unknown: choose one of {', '.join(POOLINGS)}")
        require_least(1, width=width)
        if negative_slope < 0:
            raise ValueError(f"negative_slope={negative_slope} must be 0 or more")
        count, base = halvings(image_size, bottom_size=bottom_size)
        self.pooling = pooling
        inputs = channels + condition_channels
        layers: list[nn.Module] = []
        for level in range(count + 1):
            features = width * 2**level
            convolutions = [nn.Conv2d(inputs, features, 3, padding=1)]
            inputs = features
            if level < count:
                inputs = features * 2 if strided_doubles else features
                convolutions.append(nn.Conv2d(features, inputs, 4, stride=2, padding=1))
            for convolution in convolutions:
                norm = normalisation_layer(normalisation, convolution.out_channels)
                layers += [convolution, norm, nn.LeakyReLU(negative_slope, inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.num_features = inputs * (math.prod(base) if pooling == "flatten" else 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, C + condition_channels, H, W] to features [N, num_features]."""
        features = self.layers(image)
        return pooled(features, self.pooling)
