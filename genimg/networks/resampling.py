"""Resampling by two with a separable low-pass filter: Zhang 2019; Karras et al. 2019 (StyleGAN), appendix C.

Each layer is one depthwise convolution over zero-padded features [N, C, H, W]. It preserves constants except at edges.
Positions match NVlabs' upfirdn2d, so weights trained with it are compatible.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Filter(nn.Module):
    kernel: Tensor

    def __init__(self, taps: Sequence[float], gain: float) -> None:
        super().__init__()
        row = torch.tensor([0.0] * (len(taps) % 2) + list(taps))  # even length, for equal padding on both sides
        row = row / row.sum()
        self.register_buffer("kernel", gain * torch.outer(row, row)[None, None], persistent=False)  # [1, 1, T, T]
        self.radius = len(row) // 2

    def _correlate(self, features: Tensor, *, stride: int, padding: int) -> Tensor:
        channels = features.shape[1]
        kernel = self.kernel.flip(2, 3).expand(channels, 1, -1, -1)
        return F.conv2d(features, kernel, stride=stride, padding=padding, groups=channels)


class Upsample(_Filter):
    """Upsampling from [N, C, H, W] to [N, C, 2H, 2W]: zeros between the pixels, then the filter with gain 4.

    It is always computed in float32, even under autocast: in bfloat16 this transposed convolution takes 8 to 15 times as long
    on a CPU.

    Args:
        taps: Filter along one axis, of any scale.
    """

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__(taps, 4.0)

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        with torch.autocast(features.device.type, enabled=False):
            wide = features.to(kernel.dtype)
            wide = F.conv_transpose2d(wide, kernel, stride=2, padding=self.radius - 1, groups=channels)
            return wide.to(features.dtype)


class Downsample(_Filter):
    """Downsampling from [N, C, H, W] to [N, C, H/2, W/2] by the filter with stride 2.

    It is always computed in float32, which makes the backward pass fast on a CPU.

    Args:
        taps: Filter along one axis, of any scale.
    """

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__(taps, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            narrow = self._correlate(features.to(self.kernel.dtype), stride=2, padding=self.radius - 1)
            return narrow.to(features.dtype)


class Blur(_Filter):
    """Filter from [N, C, H, W] to [N, C, H + 2P + 1 - T, W + 2P + 1 - T] for T taps (one more if T is odd).

    Args:
        taps: Filter along one axis, of any scale.
        padding: Number P of zeros at each edge.
        gain: Factor by which a constant is multiplied.
    """

    def __init__(self, taps: Sequence[float], *, padding: int, gain: float) -> None:
        super().__init__(taps, gain)
        self.padding = padding

    def forward(self, features: Tensor) -> Tensor:
        return self._correlate(features, stride=1, padding=self.padding)
