"""Find the black and white values of a folder's 16- and 32-bit images from a sample, before training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genimg.data.decode import PixelFormat, checked_levels, common_format, has_sixteen_bits, is_deep
from genimg.data.image_files import ImageFiles
from genimg.errors import ConfigError, DataError
from genimg.utils.mounting import in_config
from genimg.utils.pillow import open_header, open_image

log = logging.getLogger(__name__)

_LOOKED_AT = 32  # files whose headers are read
_DECODED = 8  # maximum number of 16- and 32-bit files to decode
_DARK = 4096  # level of 65,536; 12-bit values stored in 16 bits have a sixteenth of their brightness

_UNREADABLE = (OSError, ValueError)


@dataclass(frozen=True)
class _Deep:
    """A decoded 16- or 32-bit image: its file, bits (16, 32, or 0 for floats), minimum and maximum."""

    path: Path
    bits: int
    low: float
    high: float


def requested_format(
    image_size: int | Sequence[int] | None, channels: int | None, fit: str, range: Sequence[float] | None
) -> PixelFormat | None:
    """Return the format that a dataset's parameters request; None if they keep the files' own size and channels.

    Raises:
        ConfigError: If a parameter is invalid, or only one of ``image_size`` and ``channels`` is None.
    """
    if (image_size is None) != (channels is None):
        size, count = ("null" if each is None else each for each in (image_size, channels))
        raise ConfigError(
            f"image_size={size} does not match channels={count}: give both, or neither to keep those of the files"
        )
    return None if image_size is None or channels is None else PixelFormat.of(image_size, channels, fit, range)


def pixel_format(files: ImageFiles, requested: PixelFormat | None, range: Sequence[float] | None) -> PixelFormat:
    """Return the requested format, or the common one of the files, with the value of white in their floats.

    Raises:
        DataError: See ``common_format`` and ``with_float_white``.
    """
    return with_float_white(files, requested or replace(common_format(files), levels=checked_levels(range)))


def with_float_white(files: ImageFiles, pixels: PixelFormat) -> PixelFormat:
    """Choose whether white is 1 or 255 for all floats of a folder, because a single dark image is ambiguous.

    Unreadable files are skipped; loading the images reports them.

    Args:
        files: Images of the folder.
        pixels: Target format of the images.

    Raises:
        DataError: If a 32-bit image of the sample has values outside 0 to 255 and no range is given.
    """
    count = min(_LOOKED_AT, len(files.paths))
    chosen = np.random.default_rng(len(files.paths)).choice(len(files.paths), count, replace=False)  # names may be periodic
    sample = [files.paths[each] for each in chosen.tolist() if _looks_deep(files, files.paths[each])]
    deep = [found for found in (_decoded(files, path) for path in sample[:_DECODED]) if found is not None]
    if pixels.levels is not None:
        if not sample:
            log.warning(
                in_config("range=[%g,%g] has no effect on 8-bit images, and all %d inspected images of %s have 8 bits"),
                *pixels.levels, count, files.root,
            )  # fmt: skip
        return pixels
    _refuse_other_ranges([found for found in deep if found.bits != 16])
    _warn_of_dark_images([found for found in deep if found.bits == 16])
    floats = [found.high for found in deep if found.bits == 0]
    return replace(pixels, float_white=1.0 if max(floats) <= 1.0 else 255.0) if floats else pixels


def _looks_deep(files: ImageFiles, path: str) -> bool:
    """Return whether the header declares 16 or 32 bits."""
    try:
        with open_header(files.open(path)) as image:
            return is_deep(image)
    except _UNREADABLE:
        return False


def _decoded(files: ImageFiles, path: str) -> _Deep | None:
    try:
        with open_image(files.open(path)) as image:
            bits = 16 if has_sixteen_bits(image) else 0 if image.mode == "F" else 32
            values = np.asarray(image).astype(np.float64)
    except _UNREADABLE:
        return None
    found = _Deep(files.root / path, bits, float(values.min()), float(values.max())) if values.size else None
    return found if np.isfinite(values).all() else None


def _refuse_other_ranges(deep: Sequence[_Deep]) -> None:
    outside = next((found for found in deep if found.low < 0 or found.high > 255), None)
    if outside is not None:
        low, high = min(found.low for found in deep), max(found.high for found in deep)
        raise DataError(
            f"the image {outside.path} holds 32-bit values from {outside.low:.6g} to {outside.high:.6g}, not 0 to 255, or "
            "floats from 0 to 1",
            f"give the values that become black and white, such as range=[{low:.6g},{high:.6g}] (the values in {len(deep)} "
            f"file{'s' * (len(deep) > 1)} of the folder), or store 8 bits",
            key="range",
        )


def _warn_of_dark_images(deep: Sequence[_Deep]) -> None:
    if deep and 0 < (highest := max(found.high for found in deep)) < _DARK:
        log.warning(
            in_config("%s and others have 16 bits, but hold no value above %d of 65535, so they will be nearly black: give the "
                      "values that become black and white, such as range=[0,%d]"), deep[0].path, highest, highest,
        )  # fmt: skip
