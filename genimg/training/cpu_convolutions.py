"""Convolutions as matrix products, which are faster on a CPU for few positions. Results differ by rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# At 4 to 16 positions the matrix product took a quarter to half of the time on an AMD EPYC; at 64 it was slower.
_MOST_POSITIONS = 32  # positions in a batch, at the smaller of input and output
_LEAST_WEIGHTS = 2**19  # weights of a layer; smaller layers were not measured and remain convolutions


class ProductConv2d(nn.Conv2d):
    """PyTorch's convolution, computed as a matrix product with unfolded patches where that is faster: at the bottom of a U-Net.

    There each weight is used at a few positions only. Most of the time goes into converting the weights to the layout of the
    convolution, and the gradient back. Results differ by rounding.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        count, (height, width) = features.shape[0], _convolved(features, self)
        if not _is_product(features, count * height * width):
            return super().forward(features)
        area = self.kernel_size[0] * self.kernel_size[1]
        padding = (int(self.padding[0]), int(self.padding[1]))
        patches = F.unfold(features, self.kernel_size, self.dilation, padding, self.stride)  # [N, C area, H' W']
        rows = patches.unflatten(1, (-1, area)).permute(0, 3, 2, 1).reshape(count * height * width, -1)
        # Channels last in both factors, so weights stored that way are not copied.
        matrix = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        convolved = F.linear(rows, matrix, self.bias)
        return convolved.reshape(count, height, width, self.out_channels).permute(0, 3, 1, 2)


class ProductConvTranspose2d(nn.ConvTranspose2d):
    """PyTorch's layer, computed as a matrix product and a sum of overlapping patches where that is faster."""

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        count, channels, height, width = features.shape
        if output_size is not None or not _is_product(features, count * height * width):
            return super().forward(features, output_size)
        rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
        matrix = self.weight.permute(0, 2, 3, 1).reshape(channels, -1)  # [C, area C']
        patches = (rows @ matrix).reshape(count, height * width, -1, self.out_channels)
        size = (self._length(0, height), self._length(1, width))
        columns = patches.permute(0, 3, 2, 1).flatten(1, 2)  # [N, C' area, H W]
        folded = F.fold(columns, size, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        folded = folded.contiguous(memory_format=torch.channels_last)
        return folded if self.bias is None else folded + self.bias.to(folded.dtype)[:, None, None]

    def _length(self, axis: int, length: int) -> int:
        kernel = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (length - 1) * self.stride[axis] - 2 * int(self.padding[axis]) + kernel + self.output_padding[axis]


def may_be_product(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether a layer is one of those that a matrix product can replace."""
    is_plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return is_plain and layer.weight.numel() >= _LEAST_WEIGHTS


def _is_product(features: Tensor, positions: int) -> bool:
    if torch.compiler.is_exporting():  # an exported program cannot depend on the batch size
        return False
    return positions <= _MOST_POSITIONS and features.device.type == "cpu"


def _convolved(features: Tensor, layer: nn.Conv2d) -> tuple[int, int]:
    def length(axis: int) -> int:
        kernel = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        return (features.shape[2 + axis] + 2 * int(layer.padding[axis]) - kernel) // layer.stride[axis] + 1

    return length(0), length(1)
