"""Pieces shared by two or more network families."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genimg.interfaces import height_width


def halvings(image_size: int | Sequence[int], *, smallest: int = 4, least: int = 2) -> tuple[int, tuple[int, int]]:
    """How often an image can be halved until a side would be odd or below ``smallest``, and the size that remains.

    64 px gives 4 halvings and 4x4; 28 px gives 2 and 7x7; [48, 32] gives 3 and 6x4.

    Raises:
        ValueError: if fewer than ``least`` halvings are possible; the message names sizes that fit.
    """
    height, width = height_width(image_size)
    count, (h, w) = 0, (height, width)
    while h % 2 == 0 and w % 2 == 0 and min(h, w) // 2 >= smallest:
        count, h, w = count + 1, h // 2, w // 2
    if count < least:
        unit = 2**least
        floor = smallest * unit
        fitting = [max(floor, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"image size {height}x{width} cannot be made by this model: height and width must be multiples of {unit} "
            f"and at least {floor}; the nearest is data.image_size=[{fitting[0]},{fitting[1]}]"
        )
    return count, (h, w)


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, 0.02), batch-norm scale N(1, 0.02) and shift 0 (Radford et al. 2016, section 4, and its code)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
