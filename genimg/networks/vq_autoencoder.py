"""Encoder and decoder of the VQ-VAE: van den Oord et al., "Neural discrete representation learning", NeurIPS 2017, section 4.1.

Images are represented by a grid of vectors, so every layer is a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from genimg.types import height_width
from genimg.utils.numbers import require_least


class ResidualBlock(nn.Module):
    """Residual block of ReLU, a 3x3 convolution, ReLU and a 1x1 convolution.

    Args:
        width: Number of channels of the features.
        residual_width: Number of channels between the two convolutions.
    """

    def __init__(self, *, width: int, residual_width: int) -> None:
        super().__init__()
        # Not in place, because the sum needs the original features.
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, residual_width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(residual_width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        residual: Tensor = self.layers(features)
        return features + residual


class Encoder(nn.Module):
    """4x4 convolutions of stride 2, residual blocks, and a 1x1 convolution to the dimension of the codes.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        dim: Number of dimensions D of the vectors.
        width: Number of channels of all intermediate layers.
        residual_width: Number of channels inside the blocks.
        num_blocks: Number of residual blocks.
        num_downs: Number of strided convolutions, each of which halves height and width.

    Attributes:
        grid: Height and width of the grid of vectors.

    Raises:
        ValueError: If a setting is out of range, or the size cannot be halved that often.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        dim: int,
        width: int,
        residual_width: int,
        num_blocks: int,
        num_downs: int,
    ) -> None:
        super().__init__()
        require_least(1, width=width, residual_width=residual_width, num_downs=num_downs)
        require_least(0, num_blocks=num_blocks)
        self.grid = _grid(image_size, num_downs)
        self.dim = dim
        inputs = [channels, *[width] * (num_downs - 1)]
        self.downs = nn.ModuleList(nn.Conv2d(count, width, 4, stride=2, padding=1) for count in inputs)
        self.blocks = nn.ModuleList(ResidualBlock(width=width, residual_width=residual_width) for _ in range(num_blocks))
        self.project = nn.Conv2d(width, dim, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [-1, 1] to vectors [N, D, h, w]."""
        features = image
        for number, down in enumerate(self.downs):
            features = down(features if number == 0 else F.relu(features))
        for block in self.blocks:
            features = block(features)
        return self.project(F.relu(features))


class Decoder(nn.Module):
    """The encoder mirrored: a 3x3 convolution, residual blocks, and transposed 4x4 convolutions of stride 2.

    The last layer is linear. Its output is the mean of a Gaussian of fixed variance, as implied by a loss such as the mean
    squared error. A tanh would reach black and white, -1 and 1, only with infinite inputs.

    Args:
        channels, dim, width, residual_width, num_blocks, num_downs: Same as the encoder's.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, *, channels: int, dim: int, width: int, residual_width: int, num_blocks: int, num_downs: int) -> None:
        super().__init__()
        require_least(1, width=width, residual_width=residual_width, num_downs=num_downs)
        require_least(0, num_blocks=num_blocks)
        self.dim = dim
        self.expand = nn.Conv2d(dim, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width=width, residual_width=residual_width) for _ in range(num_blocks))
        outputs = [*[width] * (num_downs - 1), channels]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(width, count, 4, stride=2, padding=1) for count in outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors [N, D, h, w] to images [N, C, H, W], unbounded."""
        features = self.expand(vectors)
        for block in self.blocks:
            features = block(features)
        for up in self.ups:
            features = up(F.relu(features))
        return features


def _grid(image_size: int | Sequence[int], num_downs: int) -> tuple[int, int]:
    height, width = height_width(image_size)
    unit = 2**num_downs
    if height % unit or width % unit:
        nearest = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"image_size=[{height},{width}] cannot be halved {num_downs} times: height and width must be multiples of {unit}, "
            f"of which [{nearest[0]},{nearest[1]}] is the nearest; or choose a smaller num_downs"
        )
    return height // unit, width // unit
