"""DCGAN: Radford, Metz & Chintala, "Unsupervised representation learning with deep convolutional GANs", ICLR 2016.

At 64 px with width 64 both networks match the paper's code: 512, 256, 128 and 64 channels at 4, 8, 16 and 32 px. At other
sizes the layers next to the image keep their widths, and halving stops at an odd size (7x7 for 28 px) or at ``bottom_size``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import Conditioned, ConditionEncoder
from genimg.networks.layers import halvings, initialise, normalisation_layer, spectral_normalise
from genimg.utils.numbers import require_least


class Generator(nn.Module):
    """Transposed convolutions from a latent to an image, each but the last followed by normalisation and ReLU.

    Args:
        latent_dim: Number of latent dimensions Z.
        condition: Encoder of the condition. Its vector joins the latent, or feeds ``conditional_batch`` normalisation.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        width: Number of channels before the last layer; it doubles with every layer towards the latent.
        bottom_size: Minimum shorter side of the first layer's output, in pixels.
        normalisation, initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers.
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
        normalisation: str,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        require_least(1, width=width)
        count, base = halvings(image_size, bottom_size=bottom_size)
        self.condition = condition
        self.joined = normalisation != "conditional_batch"
        features = width * 2 ** (count - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent_dim + self.joined * condition.dim, features, base, bias=False),
            normalisation_layer(normalisation, features, condition.dim),
            nn.ReLU(inplace=True),
        ]
        for _ in range(count - 1):
            layers += [
                nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False),
                normalisation_layer(normalisation, features // 2, condition.dim),
                nn.ReLU(inplace=True),
            ]
            features //= 2
        layers += [nn.ConvTranspose2d(features, channels, 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.layers = Conditioned(layers)
        initialise(self, initialisation)
        if spectral_norm:
            spectral_normalise(self.layers)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to images [N, C, H, W] in [-1, 1]."""
        vector = self.condition(condition).to(latent.dtype)
        start = torch.cat([latent, vector], dim=1) if self.joined else latent  # [N, Z + E]
        return self.layers(start[:, :, None, None], vector)


class Features(nn.Module):
    """Strided convolutions from an image to the features before a discriminator's logit.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition_channels: Number of further input channels, for ``concat`` conditioning.
        width: Number of channels of the first layer, doubled by every further layer.
        bottom_size: Minimum shorter side of the last layer's output, in pixels.
        kernel_size: 4, or 5 as in some ports of the paper's code.
        normalisation: Normalisation after each layer but the first; see ``layers``.
        activation_first: Whether to normalise after the activation instead of before it.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition_channels: int = 0,
        width: int,
        bottom_size: int,
        kernel_size: int,
        normalisation: str,
        activation_first: bool,
    ) -> None:
        super().__init__()
        if kernel_size not in (4, 5):
            raise ValueError(f"kernel_size={kernel_size} must be 4 or 5")
        require_least(1, width=width)
        count, base = halvings(image_size, bottom_size=bottom_size)
        padding = (kernel_size - 1) // 2
        features = width
        layers: list[nn.Module] = [
            nn.Conv2d(channels + condition_channels, features, kernel_size, stride=2, padding=padding, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in range(count - 1):
            norm, activation = normalisation_layer(normalisation, features * 2), nn.LeakyReLU(0.2, inplace=True)
            layers += [
                nn.Conv2d(features, features * 2, kernel_size, stride=2, padding=padding, bias=False),
                *((activation, norm) if activation_first else (norm, activation)),
            ]
            features *= 2
        self.layers = nn.Sequential(*layers)
        self.num_features = features * base[0] * base[1]

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, C + condition_channels, H, W] to features [N, num_features]."""
        return self.layers(image).flatten(1)
