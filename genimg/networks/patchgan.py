"""PatchGAN discriminators: Isola et al. 2017, section 3.2.2. Several scales: Wang et al., "pix2pixHD", CVPR 2018."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.layers import initialise, normalisation_layer, spectral_normalise
from genimg.utils.numbers import require_least

_WIDEST = 8  # largest multiple of the first width


class PatchDiscriminator(nn.Module):
    """Discriminator that scores every patch of an image.

    The patches (receptive fields) have 1, 16, 34, 70, 142 and 286 px for 0 to 5 strided convolutions; the paper uses 3.

    Args:
        target_channels: Number of channels of the scored image.
        source_channels: Number of channels of an image concatenated to it, as in pix2pix; 0 for none.
        width: Number of channels of the first convolution, doubled by each of the next three.
        num_strided: Number of convolutions that halve the size.
        num_scales: Number of networks, each at half the size of the previous one; 3 in pix2pixHD.
        normalisation: Normalisation; see ``layers``. ``instance`` has no scale and shift.
        initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        target_channels: int,
        source_channels: int,
        width: int,
        num_strided: int,
        num_scales: int,
        normalisation: str,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        require_least(1, width=width, num_scales=num_scales)
        require_least(0, num_strided=num_strided)
        inputs = target_channels + source_channels
        self.scales = nn.ModuleList(_one_scale(inputs, width, num_strided, normalisation) for _ in range(num_scales))
        initialise(self, initialisation)
        if spectral_norm:
            spectral_normalise(self)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Score images [N, C, H, W] and their sources: return patch logits [N, 1, h, w], largest scale first."""
        features = image if condition is None else torch.cat([condition, image], dim=1)
        logits = []
        for number, scale in enumerate(self.scales):
            if number:
                features = F.avg_pool2d(features, 3, stride=2, padding=1, count_include_pad=False)
            logits.append(scale(features))
        return logits


def _one_scale(inputs: int, width: int, num_strided: int, normalisation: str) -> nn.Sequential:
    if num_strided == 0:  # 1x1 patches
        return nn.Sequential(
            nn.Conv2d(inputs, width, 1),
            nn.LeakyReLU(0.2, inplace=True),
            *_normalised(width, 2 * width, 1, 1, normalisation),
            nn.Conv2d(2 * width, 1, 1),
        )
    layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    channels = width
    for level in range(1, num_strided + 1):
        outputs = width * min(2**level, _WIDEST)
        layers += _normalised(channels, outputs, 4, 2 if level < num_strided else 1, normalisation)
        channels = outputs
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1))


def _normalised(inputs: int, outputs: int, size: int, stride: int, normalisation: str) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=1 if size == 4 else 0, bias=normalisation != "batch"),
        normalisation_layer(normalisation, outputs, affine=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
