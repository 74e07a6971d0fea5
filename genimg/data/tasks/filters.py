"""Blurs and gradients of images, each image by numbers of its own.

They are sums of shifted images, not convolutions, which are inexact in TF32 and whose sums depend on the batch's size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_radius(sigma: float) -> int:
    """Pixels to which a Gaussian is followed: four standard deviations, as in scipy."""
    return int(4.0 * sigma + 0.5)


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Images [N, C, H, W] blurred by standard deviations ``sigmas`` [N] in pixels; their reflections lie around them.

    Args:
        radius: pixels to which the Gaussian is followed, less than H and W.
    """
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)  # [N, 2 radius + 1]
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, :, None, None, None]
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        size, padded = images.shape[dim], F.pad(images, padding, mode="reflect")
        images = weights[:, 0] * padded.narrow(dim, 0, size)
        for tap in range(1, 2 * radius + 1):
            images = images.addcmul(weights[:, tap], padded.narrow(dim, tap, size))
    return images


def motion_blur(images: Tensor, lengths: Tensor, radians: Tensor, samples: int) -> Tensor:
    """The mean of images [N, C, H, W] along lines through every pixel: what a shaking camera sees.

    Args:
        lengths: of the lines [N], pixels.
        radians: from the horizontal, counter-clockwise [N].
        samples: points of a line, bilinear; as many as its pixels at least.
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device)[None, :] - (width - 1) / 2
    x, y = torch.broadcast_tensors(x * (2 / width), y * (2 / height))
    pixels = torch.stack([x, y], dim=-1)  # [H, W, 2]
    ends = torch.stack([radians.cos() * lengths * (2 / width), -radians.sin() * lengths * (2 / height)], dim=-1)  # [N, 2]
    total = torch.zeros_like(images)
    for sample in range(samples):
        grid = pixels + ((sample + 0.5) / samples - 0.5) * ends[:, None, None]  # [N, H, W, 2]
        total += F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return total / samples


def sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of images [N, C, H, W] downwards and to the right; a step of height x has x on both of its sides.

    Sobel & Feldman 1968; the border is repeated outside.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    columns = (padded[:, :, :height] + 2.0 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4.0  # smoothed downwards
    rows = (padded[:, :, :, :width] + 2.0 * padded[:, :, :, 1:-1] + padded[:, :, :, 2:]) / 4.0
    return rows[:, :, 2:] - rows[:, :, :height], columns[:, :, :, 2:] - columns[:, :, :, :width]


def dilated(images: Tensor) -> Tensor:
    """The greatest value within a pixel to each side, of images [N, C, H, W]; faster here than pooling is."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = torch.maximum(torch.maximum(padded[:, :, :height], padded[:, :, 1:-1]), padded[:, :, 2:])
    return torch.maximum(torch.maximum(rows[:, :, :, :width], rows[:, :, :, 1:-1]), rows[:, :, :, 2:])


def along_gradient(magnitude: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The magnitudes of the two neighbours that lie across an edge, up or left of it and down or right of it.

    Args:
        magnitude, down, right: of the gradient [N, 1, H, W]; its direction is rounded to an eighth of the circle.
    """
    height, width = magnitude.shape[2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def at(dy: int, dx: int) -> Tensor:
        return padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    horizontal = down.abs() <= math.tan(math.pi / 8) * right.abs()
    vertical = right.abs() < math.tan(math.pi / 8) * down.abs()
    falling = down * right > 0  # from the upper left to the lower right

    def choose(sideways: Tensor, upright: Tensor, diagonal: Tensor, antidiagonal: Tensor) -> Tensor:
        return torch.where(horizontal, sideways, torch.where(vertical, upright, torch.where(falling, diagonal, antidiagonal)))

    return choose(at(0, -1), at(-1, 0), at(-1, -1), at(-1, 1)), choose(at(0, 1), at(1, 0), at(1, 1), at(1, -1))
