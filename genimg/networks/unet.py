"""U-Net as a translator: Isola et al., "Image-to-image translation with conditional adversarial nets", CVPR 2017."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.networks.layers import halvings, initialise, normalisation_layer, spectral_normalise, upsampling_convolution
from genimg.utils.numbers import require_least

_WIDEST = 8  # largest multiple of the first width; section 6.1.1 of the paper


class Translator(nn.Module):
    """U-Net that halves an image ``num_downs`` times and doubles it again, with skip connections at each size.

    At 256 px with width 64 and 8 halvings it is pix2pix's generator. Height and width of images must be multiples of
    ``size_divisor``.

    Args:
        source_channels, target_channels: Numbers of channels of source and target images.
        image_size: Size of training images in pixels, one number or [height, width].
        width: Number of channels after the first halving, doubled by each of the next three.
        num_downs: Number of halvings; None uses as many as the image size allows, down to 1 px or an odd size.
        normalisation: Normalisation of all but the first layer and the smallest size; see ``layers``. ``instance`` has no scale
            and shift.
        upsampling: See ``layers.upsampling_convolution``.
        dropout: Dropout probability after the ``num_dropout`` innermost upsampling layers; the paper's only randomness.
        num_dropout: Number of layers with dropout; 3 in the paper.
        initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers.

    Raises:
        ValueError: If the image cannot be halved that often.
    """

    def __init__(
        self,
        *,
        source_channels: int,
        target_channels: int,
        image_size: int | Sequence[int],
        width: int,
        num_downs: int | None,
        normalisation: str,
        upsampling: str,
        dropout: float,
        num_dropout: int,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        require_least(1, width=width)
        require_least(0, num_dropout=num_dropout)
        most, _ = halvings(image_size, bottom_size=1, least=2 if num_downs is None else num_downs)
        count = most if num_downs is None else num_downs
        if count < 2:
            raise ValueError(f"num_downs={num_downs} must be 2 or more, or null")
        self.size_divisor = 2**count
        widths = [width * min(2**level, _WIDEST) for level in range(count)]
        bias = normalisation != "batch"
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        inputs = source_channels
        for level, outputs in enumerate(widths):
            halving = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)
            first, last = level == 0, level == count - 1
            norm = normalisation_layer("none" if first or last else normalisation, outputs, affine=False)
            self.downs.append(nn.Sequential(*([] if first else [nn.LeakyReLU(0.2)]), halving, norm))
            inputs = outputs
        for number, level in enumerate(range(count - 1, 0, -1)):  # from the smallest size outwards
            inputs, outputs = widths[level] * (2 if number else 1), widths[level - 1]
            layers = [
                nn.ReLU(),
                upsampling_convolution(inputs, outputs, 4, kind=upsampling, bias=bias),
                normalisation_layer(normalisation, outputs, affine=False),
            ]
            if dropout and number < num_dropout:
                layers.append(nn.Dropout(dropout))
            self.ups.append(nn.Sequential(*layers))
        outermost = upsampling_convolution(2 * widths[0], target_channels, 4, kind=upsampling, bias=True)
        self.ups.append(nn.Sequential(nn.ReLU(), outermost, nn.Tanh()))
        initialise(self, initialisation)
        if spectral_norm:
            spectral_normalise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Translate images [N, C, H, W] into [N, C', H, W] in [-1, 1]."""
        sides: list[Tensor] = []
        features = image
        for down in self.downs:
            features = down(features)
            sides.append(features)
        sides.pop()  # the smallest is the input of the upsampling path
        for up in self.ups[:-1]:
            features = torch.cat([sides.pop(), up(features)], dim=1)
        translated: Tensor = self.ups[-1](features)
        return translated
