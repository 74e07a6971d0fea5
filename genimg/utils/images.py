"""Conversions of images between uint8, float in [-1, 1] and picture files; grids; exact flips and shifts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from genimg.utils.files import atomically


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 [N, C, H, W] to float32 in [-1, 1], channels last in memory, where convolutions are fastest."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Convert float images in [-1, 1] to uint8, rounded and clamped, the form used by all metrics and files."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def on_white(images: Tensor) -> Tensor:
    """Composite float images with alpha, [N, 4, H, W] in [-1, 1], onto white: [N, 3, H, W]. Return other images unchanged."""
    if images.shape[1] != 4:
        return images
    opacity = (images[:, 3:] + 1.0) / 2.0
    return opacity * images[:, :3] + (1.0 - opacity)


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Arrange float images [N, C, H, W] in [-1, 1] in one uint8 picture [C, H', W'].

    By default the grid is about square, with an even number of columns to keep pairs side by side. Images
    [rows, columns, C, H, W] keep their arrangement.
    """
    if images.ndim == 5:
        images, columns = images.flatten(0, 1), images.shape[1]
    return make_grid(to_uint8(images), nrow=columns or num_columns(len(images)), padding=2, pad_value=255)


def num_columns(count: int) -> int:
    """Return the number of columns of a grid of ``count`` images."""
    return max(2, 2 * round(count**0.5 / 2))


def class_rows(count: int, num_classes: int) -> Tensor:
    """Return the classes [rows, columns] of a grid of at most ``count`` images with one class per row.

    The grid shows all classes if it has room for two images of each; otherwise it shows the first classes and is about square.
    """
    columns = count // num_classes if count >= 2 * num_classes else min(num_columns(count), count)
    rows = min(num_classes, count // columns)
    return torch.arange(rows)[:, None].expand(rows, columns)


def mirror_and_shift(images: Tensor, mirrored: Tensor, upside_down: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift images with reflected borders, and then mirror them.

    Args:
        images: Images [N, C, H, W].
        mirrored, upside_down: Whether to flip each image horizontally or vertically, bool [N].
        down, right: Offset of the new image's corner in pixels, int64 [N], less than H and W.
    """

    def source(size: int, reverse: Tensor, shift: Tensor) -> Tensor:
        """Return the source index [N, size] of each output pixel along an axis."""
        index = torch.arange(size, device=images.device).expand(len(images), size)
        index = torch.where(reverse[:, None], size - 1 - index, index) + shift[:, None]
        return size - 1 - (size - 1 - index.abs()).abs()

    rows, columns = source(images.shape[2], upside_down, down), source(images.shape[3], mirrored, right)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [N, H, W, C] to [N, C, H, W]


def write_png(picture: Tensor, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write a uint8 picture [C, H, W] with 1, 3 or 4 channels atomically, with text in its header."""
    with atomically(path) as temporary:
        save_png(picture, temporary, text)


def save_png(picture: Tensor, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write a picture like ``write_png``, but not atomically, for a directory that is itself temporary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_of(picture, text))


def png_of(picture: Tensor, text: Mapping[str, str] | None = None) -> bytes:
    """Return the PNG file of a uint8 picture [C, H, W] with 1, 3 or 4 channels, with text in its header."""
    from PIL import Image, PngImagePlugin

    header = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        header.add_text(key, value)
    array = picture.cpu().permute(1, 2, 0).numpy()
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=header)
    return file.getvalue()
