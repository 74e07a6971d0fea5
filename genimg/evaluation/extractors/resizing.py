"""Bit-exact reimplementation of Pillow's bicubic resizing, which published FD-DINOv2 and CLIP distances use."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.utils.exact import double, has_float64

_PRECISION = 22  # fractional bits of Pillow's weights for 8-bit images


def pillow_bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 images [N, C, H, W] to [N, C, height, width], like ``PIL.Image.resize`` with ``BICUBIC``.

    Pillow widens the filter when it reduces (anti-aliasing), and rounds to 8 bits after the rows and again after the columns.
    It computes with integers below 2^53, so float64 matrix products give the same result on any device. Pillow 13 resizes the
    columns first for some images that are not square; this function follows earlier versions, which never did.
    """
    if not has_float64(images.device):
        return pillow_bicubic(images.cpu(), height, width).to(images.device)
    if images.shape[3] != width:
        images = _to_8_bits(double(images) @ _weights(images.shape[3], width).to(images.device))
    if images.shape[2] != height:
        images = _to_8_bits(_weights(images.shape[2], height).T.to(images.device) @ double(images))
    return images


def pillow_bicubic_crop(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side of uint8 images [N, C, H, W] to ``size`` and return the central crop [N, C, size, size].

    This is torchvision's ``Resize(size, BICUBIC)`` and ``CenterCrop(size)`` of a PIL image, as in CLIP's preparation.
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    height, width = size * height // shorter, size * width // shorter
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pillow_bicubic(images, height, width)[:, :, top : top + size, left : left + size]


def _to_8_bits(sums: Tensor) -> Tensor:
    return sums.add_(2 ** (_PRECISION - 1)).mul_(2**-_PRECISION).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=16)
def _weights(inputs: int, outputs: int) -> Tensor:
    """Return Pillow's weights [inputs, outputs] as integers in units of 2^-22."""
    scale = inputs / outputs
    stretch = max(scale, 1.0)  # factor by which the filter is widened; its support is 2 pixels on either side
    centres = (np.arange(outputs) + 0.5) * scale
    first = np.maximum((centres - 2.0 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + 2.0 * stretch + 0.5).astype(np.int64), inputs)  # exclusive
    pixels = np.arange(inputs)[:, None]
    values = _bicubic((pixels - centres + 0.5) / stretch) * ((first <= pixels) & (pixels < last))
    values = values / values.sum(axis=0) * 2**_PRECISION
    return torch.from_numpy(np.trunc(values + np.copysign(0.5, values)))


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate the cubic kernel of Keys 1981 with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
