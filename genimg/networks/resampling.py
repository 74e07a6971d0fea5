"""Resampling by two: by interpolation, or with a separable low-pass filter (Zhang 2019; Karras et al. 2019, appendix C).

Each filter is one depthwise convolution over zero-padded features [N, C, H, W]. It preserves constants except at edges.
Positions match NVlabs' upfirdn2d, so weights trained with it are compatible.

Results have the type of the features, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.autocast import without_autocast

INTERPOLATIONS = ("nearest", "bilinear")


def doubled(features: Tensor, interpolation: str = "nearest") -> Tensor:
    """Interpolate features [N, C, H, W] to [N, C, 2H, 2W] in their type.

    Autocast on a GPU would interpolate in float32, and the layers after it would read and write twice the memory.

    Args:
        features: Features of any floating-point type.
        interpolation: One of ``INTERPOLATIONS``.
    """
    if features.dtype == torch.float32:  # which autocast does not change either
        return F.interpolate(features, scale_factor=2.0, mode=interpolation)
    with without_autocast(features):
        return F.interpolate(features, scale_factor=2.0, mode=interpolation)


class Doubling(nn.Module):
    """Layer that applies ``doubled``.

    Args:
        interpolation: One of ``INTERPOLATIONS``.
    """

    def __init__(self, interpolation: str = "nearest") -> None:
        super().__init__()
        self.interpolation = interpolation

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, 2H, 2W]."""
        return doubled(features, self.interpolation)


class _Filter(nn.Module):
    kernel: Tensor

    def __init__(self, taps: Sequence[float], gain: float) -> None:
        super().__init__()
        row = torch.tensor([0.0] * (len(taps) % 2) + list(taps))  # even length, for equal padding on both sides
        row = row / row.sum()
        self.register_buffer("kernel", gain * torch.outer(row, row)[None, None], persistent=False)  # [1, 1, T, T]
        self.radius = len(row) // 2

    def _wide(self, features: Tensor) -> Tensor:
        """Return features of low precision in float32 on a CPU, where convolutions of one channel are slow in bfloat16."""
        return features.to(self.kernel.dtype) if features.device.type == "cpu" else features

    def _correlate(self, features: Tensor, *, stride: int, padding: int) -> Tensor:
        channels = features.shape[1]
        kernel = self.kernel.to(features.dtype).flip(2, 3).expand(channels, 1, -1, -1)
        return F.conv2d(features, kernel, stride=stride, padding=padding, groups=channels)


class Upsample(_Filter):
    """Upsampling from [N, C, H, W] to [N, C, 2H, 2W]: zeros between the pixels, then the filter with gain 4.

    On a CPU it is always computed in float32: in bfloat16 this transposed convolution takes 8 to 15 times as long there.

    Args:
        taps: Filter along one axis, of any scale.
    """

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__(taps, 4.0)

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        with without_autocast(features):
            wide = self._wide(features)
            kernel = self.kernel.to(wide.dtype).expand(channels, 1, -1, -1)
            wide = F.conv_transpose2d(wide, kernel, stride=2, padding=self.radius - 1, groups=channels)
            return wide.to(features.dtype)


class Downsample(_Filter):
    """Downsampling from [N, C, H, W] to [N, C, H/2, W/2] by the filter with stride 2.

    On a CPU it is always computed in float32, which makes the backward pass fast.

    Args:
        taps: Filter along one axis, of any scale.
    """

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__(taps, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        with without_autocast(features):
            narrow = self._correlate(self._wide(features), stride=2, padding=self.radius - 1)
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
