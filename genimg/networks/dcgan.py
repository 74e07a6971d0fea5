"""DCGAN: Radford, Metz & Chintala, "Unsupervised representation learning with deep convolutional GANs", ICLR 2016.

At 64 px with width 64 both networks are those of the paper's code: 512, 256, 128, 64 channels at 4, 8, 16, 32 px. Other
sizes keep the channels of the layers next to the image and stop at the first odd or smallest size (28 px: 7x7).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genimg.networks.layers import halvings, initialise


class Generator(nn.Module):
    """Transposed convolutions from a latent to an image, each but the last with batch norm and ReLU.

    Args:
        latent_dim: Z.
        image_size: pixels, one number or [height, width].
        channels: of the image.
        width: channels of the layer before the image; every layer further away has twice as many.
    """

    def __init__(self, *, latent_dim: int, image_size: int | Sequence[int], channels: int, width: int) -> None:
        super().__init__()
        count, base = halvings(image_size)
        features = width * 2 ** (count - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent_dim, features, base, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
        ]
        for _ in range(count - 1):
            layers += [
                nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(features // 2),
                nn.ReLU(inplace=True),
            ]
            features //= 2
        layers += [nn.ConvTranspose2d(features, channels, 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, latent: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W] in [-1, 1]."""
        return self.layers(latent[:, :, None, None])


class Discriminator(nn.Module):
    """Strided convolutions from an image to one logit, each but the first and the last with batch norm.

    Args:
        image_size: pixels, one number or [height, width].
        channels: of the image.
        width: channels of the first layer; each further layer has twice as many.
    """

    def __init__(self, *, image_size: int | Sequence[int], channels: int, width: int) -> None:
        super().__init__()
        count, base = halvings(image_size)
        features = width
        layers: list[nn.Module] = [
            nn.Conv2d(channels, features, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in range(count - 1):
            layers += [
                nn.Conv2d(features, features * 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(features * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            features *= 2
        layers.append(nn.Conv2d(features, 1, base, bias=False))
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N]."""
        return self.layers(image).flatten()
