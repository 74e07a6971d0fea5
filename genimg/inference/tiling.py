"""Padding and tiling, to run a network that supports only certain sizes on images of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from genimg.errors import ConfigError
from genimg.utils.numbers import require_least


def padded(images: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Pad images on the right and at the bottom by reflection, or by replicating the last pixel if a side is too short.

    Args:
        images: Images [N, C, H, W].
        multiple: Number that must divide the padded sides.
        least: Minimum length of the padded sides, a multiple of ``multiple``.
    """
    for axis, place in ((3, 1), (2, 3)):
        side = images.shape[axis]
        more = max(-side % multiple, least - side)
        if more:
            pads = [more if position == place else 0 for position in range(4)]
            images = F.pad(images, pads, mode="reflect" if more < side else "replicate")
    return images


def check_tiles(tile: int | None, overlap: int, *, multiple: int = 1, least: int = 1) -> None:
    """Reject tiles that the network does not support, or that overlap too much.

    Args:
        tile: Side of a tile in pixels; None for no tiles.
        overlap: Pixels by which a tile extends into each neighbour.
        multiple: Divisor of the sides of the network's input.
        least: Shortest side in pixels that the network supports.

    Raises:
        ConfigError: If ``tile`` or ``overlap`` is invalid; the message suggests a valid value.
    """
    require_least(0, overlap=overlap)
    if tile is None:
        return
    if tile < 1:
        raise ConfigError(f"tile={tile} must be 1 or more pixels, or null")
    if tile % multiple:
        fitting = max(least, round(tile / multiple) * multiple)
        raise ConfigError(f"tile={tile} must be a multiple of {multiple} pixels, like this model's images: set tile={fitting}")
    if tile < least:
        raise ConfigError(f"tile={tile} is too small for this model: set tile={least} or more")
    if 2 * overlap >= tile:
        raise ConfigError(f"overlap={overlap} must be less than half of tile={tile}: set overlap={(tile - 1) // 2} or less")


def in_tiles(
    function: Callable[[Tensor], Tensor], image: Tensor, *, tile: int, overlap: int, multiple: int, batch_size: int
) -> Tensor:
    """Apply a function to an image in tiles, blended linearly where they overlap.

    The result equals that on the whole image if no value depends on a pixel farther away than three quarters of
    ``overlap``, because that much of each tile's border is discarded, except at the image's border.

    Args:
        function: Function [M, C, h, w] -> [M, D, h, w]; h and w are ``tile``, or the image's sides if shorter.
        image: Image [1, C, H, W], with sides that are multiples of ``multiple``.
        tile: Side of a tile in pixels, a multiple of ``multiple``.
        overlap: Pixels by which a tile extends into each neighbour, less than half of ``tile``. The overlap may be larger,
            because tiles start at multiples of ``multiple``, so strided layers sample the same pixels as in the whole image.
        multiple: Divisor of the sides of the network's input.
        batch_size: Number of tiles M in a batch.

    Returns:
        The output [1, D, H, W].
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
    """Return the number of tiles of an image."""
    return len(_spans(height, tile, overlap, multiple)) * len(_spans(width, tile, overlap, multiple))


def _spans(side: int, tile: int, overlap: int, multiple: int) -> list[tuple[slice, Tensor]]:
    """Return the positions of tiles along a side, and their weights [tile]; the weights of each pixel sum to 1."""
    if side <= tile:
        return [(slice(0, side), torch.ones(side))]
    step = tile - 2 * overlap
    step = (step - step % multiple) or step  # a network that reduces a tile to one or two pixels leaves no room for alignment
    starts = [*range(0, side - tile, step), side - tile]
    unused = overlap * 3 // 4
    ramp = ((torch.arange(tile) + 0.5 - unused) / max(2 * (overlap - unused), 1)).clamp(0.0, 1.0)
    shares = torch.zeros(len(starts), side)
    for number, start in enumerate(starts):
        # There is no neighbour to blend with at the image's border.
        before = ramp if number else torch.ones(tile)
        behind = ramp.flip(0) if number < len(starts) - 1 else torch.ones(tile)
        shares[number, start : start + tile] = torch.minimum(before, behind)
    shares /= shares.sum(dim=0)
    return [(slice(start, start + tile), share[start : start + tile]) for start, share in zip(starts, shares, strict=True)]
