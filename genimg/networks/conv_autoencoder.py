"""Convolutional encoder and decoder for variational autoencoders, at any size that can be halved twice.

The usual layout of public convolutional VAEs: stride-2 convolutions with batch norm, channels doubling as the
resolution halves, and one linear layer on each side of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genimg.networks.layers import halvings


class Encoder(nn.Module):
    """Image to the mean and log-variance of q(z | x).

    Args:
        image_size: pixels, one number or [height, width].
        channels: of the image.
        latent_dim: Z.
        width: channels of the layer next to the image; each further layer has twice as many.
    """

    def __init__(self, *, image_size: int | Sequence[int], channels: int, latent_dim: int, width: int) -> None:
        super().__init__()
        count, (height, breadth) = halvings(image_size)
        layers: list[nn.Module] = []
        inputs = channels
        for level in range(count):
            outputs = width * 2**level
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.moments = nn.Linear(inputs * height * breadth, 2 * latent_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] in [-1, 1] -> mean [N, Z] and log-variance [N, Z]."""
        mean, log_variance = self.moments(self.layers(image).flatten(1)).chunk(2, dim=1)
        return mean, log_variance


class Decoder(nn.Module):
    """Latent to the parameters of p(x | z), one per pixel and channel; the likelihood says what they mean.

    Args: as the encoder's.
    """

    def __init__(self, *, image_size: int | Sequence[int], channels: int, latent_dim: int, width: int) -> None:
        super().__init__()
        count, self.base = halvings(image_size)
        features = width * 2 ** (count - 1)
        self.features = features
        self.project = nn.Linear(latent_dim, features * self.base[0] * self.base[1])
        layers: list[nn.Module] = [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
        for _ in range(count - 1):
            layers += [
                nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(features // 2),
                nn.ReLU(inplace=True),
            ]
            features //= 2
        layers.append(nn.ConvTranspose2d(features, channels, 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W], unbounded."""
        return self.layers(self.project(latent).unflatten(1, (self.features, *self.base)))
