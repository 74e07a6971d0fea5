"""Blurs and gradients of images, with separate parameters for each image.

They are sums of shifted images. Convolutions would be inexact in TF32, and their sums depend on the batch size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_radius(sigma: float) -> int:
    """Return the radius in pixels at which a Gaussian is truncated: four standard deviations, as in SciPy."""
    return int(4.0 * sigma + 0.5)


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Blur images with reflected borders.

    Args:
        images: Images [N, C, H, W].
        sigmas: Standard deviations in pixels [N].
        radius: Radius in pixels at which the Gaussian is truncated, less than H and W.
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
    """Average images along a line through every pixel, as a camera in motion does.

    Args:
        images: Images [N, C, H, W].
        lengths: Lengths of the lines in pixels [N].
        radians: Counter-clockwise angles of the lines from the horizontal [N].
        samples: Number of bilinear samples on a line, at least its length in pixels.
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
    """Return the gradients of images [N, C, H, W] downwards and to the right (Sobel & Feldman 1968).

    A step of height x has the gradient x on both of its sides. Borders are replicated.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    columns = (padded[:, :, :height] + 2.0 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4.0  # smoothed downwards
    rows = (padded[:, :, :, :width] + 2.0 * padded[:, :, :, 1:-1] + padded[:, :, :, 2:]) / 4.0
    return rows[:, :, 2:] - rows[:, :, :height], columns[:, :, :, 2:] - columns[:, :, :, :width]


def dilated(images: Tensor) -> Tensor:
    """Return the maximum over the 3x3 neighbours in images [N, C, H, W]; faster than max pooling here."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = torch.maximum(torch.maximum(padded[:, :, :height], padded[:, :, 1:-1]), padded[:, :, 2:])
    return torch.maximum(torch.maximum(rows[:, :, :, :width], rows[:, :, :, 1:-1]), rows[:, :, :, 2:])


def along_gradient(magnitude: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient magnitudes of the two neighbours across an edge: up or left, and down or right.

    Args:
        magnitude, down, right: Magnitude and components of the gradient [N, 1, H, W]. The gradient's direction is rounded
            to a multiple of 45 degrees.
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
