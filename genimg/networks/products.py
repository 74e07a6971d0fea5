"""Convolutions of features so small, by weights so large, that they are better computed as one product of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# At 4 to 16 positions the product took a half to a quarter of the time on an AMD EPYC, and at 64 it was slower.
_MOST_POSITIONS = 32  # of the smaller side, in a batch
_LEAST_WEIGHTS = 2**19  # of a layer; smaller ones were not measured, and are left to the convolution


class Conv2d(nn.Conv2d):
    """PyTorch's, as a product of unfolded patches with the weights where a CPU is faster so: at the bottom of a U-Net.

    There each weight meets a few positions only, and the time goes into bringing the weights into the layout that the
    convolution wants, and the gradient back. Results differ by rounding.
    """

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(features)
        count, (height, width) = features.shape[0], _convolved(features, self)
        if not _is_product(features, self, count * height * width):
            return super().forward(features)
        area = self.kernel_size[0] * self.kernel_size[1]
        patches = F.unfold(features, self.kernel_size, self.dilation, self.padding, self.stride)  # [N, C area, H' W']
        rows = patches.unflatten(1, (-1, area)).permute(0, 3, 2, 1).reshape(count * height * width, -1)
        # Channels last in both factors: with weights stored so, this copies nothing.
        matrix = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        convolved = F.linear(rows, matrix, self.bias)
        return convolved.reshape(count, height, width, self.out_channels).permute(0, 3, 1, 2)


class ConvTranspose2d(nn.ConvTranspose2d):
    """PyTorch's, as a product with the weights and a sum of overlapping patches, where ``Conv2d`` would be one."""

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        count, channels, height, width = features.shape
        if output_size is not None or not _is_product(features, self, count * height * width):
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


def _is_product(features: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, positions: int) -> bool:
    if torch.compiler.is_exporting():  # a program for any batch cannot look at how large it is
        return False
    is_small = positions <= _MOST_POSITIONS and layer.groups == 1
    return is_small and features.device.type == "cpu" and layer.weight.numel() >= _LEAST_WEIGHTS


def _convolved(features: Tensor, layer: nn.Conv2d) -> tuple[int, int]:
    def length(axis: int) -> int:
        kernel = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        return (features.shape[2 + axis] + 2 * int(layer.padding[axis]) - kernel) // layer.stride[axis] + 1

    return length(0), length(1)
