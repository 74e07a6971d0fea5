"""How near an autoencoder's output is to its input, pixel by pixel and window by window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_DECIBELS = 100.0  # of equal images, whose ratio would be infinite


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in decibels of uint8 images [N, C, H, W]: 10 log10(255^2 / mean squared error).

    Equal images count as 100 dB.
    """
    error = (original.float() - reconstruction.float()).square().flatten(1).mean(dim=1)
    return (10.0 * (255.0**2 / error).log10()).clamp(max=_MOST_DECIBELS)


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity [N] of uint8 images [N, C, H, W]: Wang et al. 2004, equation 13, mean over windows and channels.

    With the paper's settings: Gaussian windows of 11x11 pixels and a deviation of 1.5, K1 = 0.01, K2 = 0.03; only windows
    that lie in the image count. Images smaller than a window take the largest odd window that fits.
    """
    side = min(11, *original.shape[2:])
    side -= 1 - side % 2
    channels = original.shape[1]
    offsets = torch.arange(side, dtype=torch.float32, device=original.device) - side // 2
    weights = (-offsets.square() / (2 * 1.5**2)).exp()
    weights = weights / weights.sum()
    window = (weights[:, None] * weights[None, :]).expand(channels, 1, side, side)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=channels)

    x, y = original.float(), reconstruction.float()
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    )
    return similarity.flatten(1).mean(dim=1)
