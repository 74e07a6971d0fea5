"""Conversions between the three forms of an image: uint8, float in [-1, 1], and a picture file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from genimg.files import atomically


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] to float32 in [-1, 1], channels last in memory, where convolutions are fastest."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, rounded to the nearest level and clamped, as every metric and file sees them."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Float images [N, C, H, W] in [-1, 1] as one uint8 picture [C, H', W'].

    About square unless ``columns`` is given, with an even number of columns, so that pairs stay side by side; images
    [rows, columns, C, H, W] stay where they are.
    """
    if images.ndim == 5:
        images, columns = images.flatten(0, 1), images.shape[1]
    return make_grid(to_uint8(images), nrow=columns or num_columns(len(images)), padding=2, pad_value=255)


def num_columns(count: int) -> int:
    """Of a grid of so many images."""
    return max(2, 2 * round(count**0.5 / 2))


def class_rows(count: int, num_classes: int) -> Tensor:
    """Classes [rows, columns] of a grid of at most ``count`` images with one class a row.

    All classes if there is room for two images of each; else the first, in a grid that is about square.
    """
    columns = count // num_classes if count >= 2 * num_classes else min(num_columns(count), count)
    rows = min(num_classes, count // columns)
    return torch.arange(rows)[:, None].expand(rows, columns)


def write_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 picture [C, H, W] with 1, 3 or 4 channels; the file appears whole or not at all."""
    from PIL import Image

    array = picture.cpu().permute(1, 2, 0).numpy()
    with atomically(path) as temporary:
        Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(temporary, format="PNG")
