"""Conversion of sRGB images to grey and CIELAB."""

from __future__ import annotations

import torch
from torch import Tensor

# IEC 61966-2-1: linear RGB to CIE XYZ; and its inverse in full precision.
_TO_XYZ = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
_FROM_XYZ = torch.linalg.inv(torch.tensor(_TO_XYZ, dtype=torch.float64)).tolist()
_WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees
_EDGE = 6 / 29  # boundary between the cube root and the linear part; CIE 15:2004, 8.2.1


def luma(images: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601) of grey or RGB images [N, C, H, W]: [N, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB images [N, 3, H, W] in [-1, 1] to CIELAB under D65 (CIE 15:2004).

    L is in [0, 100], a in [-87, 99], b in [-108, 95].
    """
    encoded = (images.float() + 1.0) / 2.0
    linear = torch.where(encoded > 0.04045, ((encoded.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    xyz = [each / white for each, white in zip(_mixed(linear, _TO_XYZ), _WHITE, strict=True)]
    x, y, z = (torch.where(t > _EDGE**3, t.clamp(min=_EDGE**3) ** (1 / 3), t / (3 * _EDGE**2) + 4 / 29) for t in xyz)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Invert ``rgb_to_lab``; colours outside sRGB are clipped to [-1, 1]."""
    lightness, a, b = lab.float().unbind(dim=1)
    y = (lightness + 16.0) / 116.0
    xyz = [torch.where(t > _EDGE, t**3, 3 * _EDGE**2 * (t - 4 / 29)) for t in (y + a / 500.0, y, y - b / 200.0)]
    linear = torch.stack(_mixed(torch.stack([t * w for t, w in zip(xyz, _WHITE, strict=True)], dim=1), _FROM_XYZ), dim=1)
    linear = linear.clamp(0.0, 1.0)
    encoded = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return encoded * 2.0 - 1.0


def _mixed(channels: Tensor, matrix: list[list[float]]) -> list[Tensor]:
    """Multiply every pixel of [N, 3, H, W] by the matrix; a matrix product would be inexact in TF32."""
    first, second, third = channels.unbind(dim=1)
    return [row[0] * first + row[1] * second + row[2] * third for row in matrix]
