"""Convolutional encoder and decoder for autoencoders, at any size that can be halved twice.

They have the usual layout of public convolutional VAEs: stride-2 convolutions with batch norm, channels that double as the
resolution halves, and one linear layer on each side of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder, beside_image
from genimg.networks.layers import halvings
from genimg.types import PixelLikelihood
from genimg.utils.numbers import require_least


class Encoder(nn.Module):
    """Network from images to the moments of every latent dimension, such as the mean and log-variance of q(z | x).

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition: Encoder of the condition, whose vector is appended to the image as constant channels.
        latent_dim: Number of latent dimensions Z.
        moments: Number of moments per latent dimension: 2 for a mean and a log-variance, 1 without noise.
        width: Number of channels of the layer next to the image, doubled by every further layer.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition: ConditionEncoder,
        latent_dim: int,
        moments: int,
        width: int,
    ) -> None:
        super().__init__()
        require_least(1, moments=moments, latent_dim=latent_dim, width=width)
        count, (height, breadth) = halvings(image_size)
        self.condition = condition
        layers: list[nn.Module] = []
        inputs = channels + condition.dim
        for level in range(count):
            outputs = width * 2**level
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.shape = (moments, latent_dim)
        self.moments = nn.Linear(inputs * height * breadth, moments * latent_dim)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [-1, 1] and raw conditions to moments [N, moments, Z]."""
        features = self.layers(beside_image(image, self.condition(condition)))
        return self.moments(features.flatten(1)).unflatten(1, self.shape)


class Decoder(nn.Module):
    """Network from latents to the parameters of p(x | z) for every pixel and channel, which the likelihood interprets.

    Args:
        image_size, channels, latent_dim, width: Same as the encoder's.
        condition: Encoder of the condition, whose vector is concatenated to the latent.
        likelihood: Pixel likelihood, which determines the number of outputs per pixel.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition: ConditionEncoder,
        latent_dim: int,
        width: int,
        likelihood: PixelLikelihood,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.condition = condition
        require_least(1, latent_dim=latent_dim, width=width)
        count, self.base = halvings(image_size)
        features = width * 2 ** (count - 1)
        self.features = features
        self.project = nn.Linear(latent_dim + condition.dim, features * self.base[0] * self.base[1])
        layers: list[nn.Module] = [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
        for _ in range(count - 1):
            layers += [
                nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(features // 2),
                nn.ReLU(inplace=True),
            ]
            features //= 2
        layers.append(nn.ConvTranspose2d(features, likelihood.num_outputs(channels), 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to likelihood parameters [N, O, H, W], unbounded."""
        start = torch.cat([latent, self.condition(condition).to(latent.dtype)], dim=1)
        return self.layers(self.project(start).unflatten(1, (self.features, *self.base)))
