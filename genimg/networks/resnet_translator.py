"""The residual translator of Johnson, Alahi & Fei-Fei (ECCV 2016) in CycleGAN's version (Zhu et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import Tensor, nn

from genimg.networks.layers import (
    Padding,
    check_padding,
    initialise,
    normalisation_layer,
    spectral_normalise,
    upsampling_convolution,
)
from genimg.utils.numbers import require_least


class ResidualBlock(nn.Module):
    """Residual block of two normalised 3x3 convolutions, with ReLU between them and none after the sum.

    Args:
        channels: Number of channels C.
        normalisation: See ``layers``.
        padding: ``zeros``, ``reflect`` or ``replicate``.
        dropout: Dropout probability between the convolutions.
    """

    def __init__(self, channels: int, *, normalisation: str, padding: Padding, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, channels, 3, normalisation=normalisation, padding=padding),
            nn.ReLU(inplace=True),
            *([nn.Dropout(dropout)] if dropout else []),
            *_convolution(channels, channels, 3, normalisation=normalisation, padding=padding),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        residual: Tensor = self.layers(features)
        return features + residual


class Translator(nn.Module):
    """A 7x7 convolution, strided convolutions, residual blocks, as many upsampling layers, and a 7x7 convolution.

    With width 64, 2 strided convolutions and 9 blocks (6 below 256 px) it is CycleGAN's generator. Height and width of images
    must be multiples of ``size_divisor``.

    Args:
        source_channels, target_channels: Numbers of channels of source and target images.
        width: Number of channels of the first convolution, doubled by every strided one.
        num_downs: Number of strided convolutions.
        num_blocks: Number of residual blocks at the smallest size.
        normalisation: Normalisation; see ``layers``. ``instance`` has no scale and shift.
        padding: Padding of the 7x7 convolutions and the blocks: ``zeros``, ``reflect`` or ``replicate``.
        upsampling: See ``layers.upsampling_convolution``.
        dropout: Dropout probability in the blocks.
        initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers.

    Attributes:
        encoder_channels: Numbers of channels of the features at every layer of ``encode``.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    def __init__(
        self,
        *,
        source_channels: int,
        target_channels: int,
        width: int,
        num_downs: int,
        num_blocks: int,
        normalisation: str,
        padding: Padding,
        upsampling: str,
        dropout: float,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        require_least(1, width=width)
        require_least(0, num_downs=num_downs, num_blocks=num_blocks)
        check_padding(padding)
        self.size_divisor = 2**num_downs
        self.source_channels, self.target_channels = source_channels, target_channels
        bias = normalisation != "batch"
        layers = [*_convolution(source_channels, width, 7, normalisation=normalisation, padding=padding), nn.ReLU(inplace=True)]
        channels = width
        self.encoder_channels = [source_channels]
        self._encoder_stops = [0]  # number of layers in the chain before each encoder layer
        for _ in range(num_downs):
            self.encoder_channels.append(2 * channels)
            self._encoder_stops.append(len(layers) + 1)
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=bias),
                normalisation_layer(normalisation, 2 * channels, affine=False),
                nn.ReLU(inplace=True),
            ]
            channels *= 2
        self.encoder_channels += [channels] * num_blocks
        self._encoder_stops += range(len(layers) + 1, len(layers) + num_blocks + 1)
        layers += [
            ResidualBlock(channels, normalisation=normalisation, padding=padding, dropout=dropout) for _ in range(num_blocks)
        ]
        for _ in range(num_downs):
            layers += [
                upsampling_convolution(channels, channels // 2, 3, kind=upsampling, bias=bias),
                normalisation_layer(normalisation, channels // 2, affine=False),
                nn.ReLU(inplace=True),
            ]
            channels //= 2
        layers += [nn.Conv2d(channels, target_channels, 7, padding=3, padding_mode=padding), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        initialise(self, initialisation)
        if spectral_norm:
            spectral_normalise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Translate images [N, C, H, W] into [N, C', H, W] in [-1, 1]."""
        translated: Tensor = self.layers(image)
        return translated

    def encode(self, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return features between an image [N, C, H, W] and the last residual block.

        Args:
            image: Image as in ``forward``.
            layers: Layer numbers in ascending order. 0 is the image itself; then come the strided convolutions, before their
                normalisation, and the residual blocks. With 2 strided convolutions, 0, 1, 2, 3 and 7 are the layers 0, 4, 8, 12
                and 16 of CUT's code.

        Returns:
            Features of each layer, [N, C', H', W'].
        """
        features, start, found = image, 0, []
        for stop in (self._encoder_stops[layer] for layer in layers):
            for layer in islice(self.layers, start, stop):
                # ReLU is not in place here, because without normalisation it would change collected features.
                features = features.relu() if isinstance(layer, nn.ReLU) else layer(features)
            found.append(features)
            start = stop
        return found


def _convolution(inputs: int, outputs: int, size: int, *, normalisation: str, padding: Padding) -> list[nn.Module]:
    """Return a convolution that keeps height and width, and its normalisation."""
    bias = normalisation != "batch"
    return [
        nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode=padding, bias=bias),
        normalisation_layer(normalisation, outputs, affine=False),
    ]
