"""Images of any size for a network that takes certain sizes only: continued beyond their borders, and cut into tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from genimg.errors import ConfigError
from genimg.utils.numbers import require_least


def padded(images: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Images [N, C, H, W] continued at the right and at the bottom to multiples of ``size_divisor`` and ``least``, or more.

    They are reflected, without their last pixel; a side that is too short for that has its last pixel repeated.

    Args:
        least: of either side, a multiple of ``size_divisor``.
    """
    for axis, place in ((3, 1), (2, 3)):
        side = images.shape[axis]
        more = max(-side % multiple, least - side)
        if more:
            pads = [more if position == place else 0 for position in range(4)]
            images = F.pad(images, pads, mode="reflect" if more < side else "replicate")
    return images


def check_tiles(tile: int | None, overlap: int, *, multiple: int = 1, least: int = 1) -> None:
    """Refuse tiles that the network does not take, or that overlap too much.

    Args:
        tile: Size in pixels; None for no tiles.
        overlap: Pixels by which a tile reaches into its neighbours.
        multiple: Number of pixels that the sides of the network's images are multiples of.
        least: Shortest side in pixels that the network takes.

    Raises:
        ConfigError: Naming ``tile`` or ``overlap``, and a value that fits.
    """
    require_least(0, overlap=overlap)
    if tile is None:
        return
    if tile < 1:
        raise ConfigError(f"tile={tile} must be 1 or more pixels, or null")
    if tile % multiple:
        fitting = max(least, round(tile / multiple) * multiple)
        raise ConfigError(f"tile={tile} must be a multiple of {multiple} pixels, as this model's images: set tile={fitting}")
    if tile < least:
        raise ConfigError(f"tile={tile} is too small for this model: set tile={least} or more")
    if 2 * overlap >= tile:
        raise ConfigError(f"overlap={overlap} must be less than half of tile={tile}: set overlap={(tile - 1) // 2} or less")


def in_tiles(
    function: Callable[[Tensor], Tensor], image: Tensor, *, tile: int, overlap: int, multiple: int, batch_size: int
) -> Tensor:
    """A function of a whole image, from its values on tiles, which blend linearly where they meet.

    Equal to the function of the whole image where its values depend on no pixel further away than three quarters of
    ``overlap``: so much of a tile's border is not used, but where the image ends there.

    Args:
        function: [M, C, h, w] -> [M, D, h, w], with h and w of ``tile`` pixels, or the image's where that is smaller.
        image: [1, C, H, W], the sides multiples of ``size_divisor``.
        tile: pixels, a multiple of ``size_divisor``.
        overlap: pixels by which a tile reaches into each neighbour, less than half of ``tile``. Tiles may overlap by more, so
            that all of them begin at multiples of ``size_divisor``, where strided layers sample a whole image, too.
        batch_size: M, of tiles.

    Returns:
        [1, D, H, W].
    """
    assert 0 <= 2 * overlap < tile
    rows, columns = (_spans(side, tile, overlap, multiple) for side in image.shape[2:])
    places = [(row, column) for row in rows for column in columns]
    blended = image.new_zeros(0)
    for start in range(0, len(places), batch_size):
        several = places[start : start + batch_size]
        outputs = function(torch.cat([image[:, :, down, right] for (down, _), (right, _) in several]))
        if not blended.numel():
            blended = outputs.new_zeros(1, outputs.shape[1], *image.shape[2:])
        for ((down, share_of_row), (right, share_of_column)), output in zip(several, outputs, strict=True):
            share = share_of_row[:, None] * share_of_column  # [h, w]
            blended[0, :, down, right] += output * share.to(output)
    return blended


def num_tiles(height: int, width: int, *, tile: int, overlap: int, multiple: int) -> int:
    """Of an image of so many pixels."""
    return len(_spans(height, tile, overlap, multiple)) * len(_spans(width, tile, overlap, multiple))


def _spans(side: int, tile: int, overlap: int, multiple: int) -> list[tuple[slice, Tensor]]:
    """Where tiles lie along a side, and the share [tile] that each has of its pixels; a pixel's shares sum to 1."""
    if side <= tile:
        return [(slice(0, side), torch.ones(side))]
    step = tile - 2 * overlap
    step = (step - step % multiple) or step  # a network that halves its tile to a pixel or two has no room for it
    starts = [*range(0, side - tile, step), side - tile]
    unused = overlap * 3 // 4
    ramp = ((torch.arange(tile) + 0.5 - unused) / max(2 * (overlap - unused), 1)).clamp(0.0, 1.0)
    shares = torch.zeros(len(starts), side)
    for number, start in enumerate(starts):
        # The image's own border has no neighbour to blend with.
        before = ramp if number else torch.ones(tile)
        behind = ramp.flip(0) if number < len(starts) - 1 else torch.ones(tile)
        shares[number, start : start + tile] = torch.minimum(before, behind)
    shares /= shares.sum(dim=0)
    return [(slice(start, start + tile), share[start : start + tile]) for start, share in zip(starts, shares, strict=True)]
