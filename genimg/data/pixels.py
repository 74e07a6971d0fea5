"""From whatever Pillow opens to a uint8 array of the wanted size and channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from genimg.data.image_files import ImageFiles
from genimg.interfaces import height_width

FITS = ("crop", "stretch", "pad")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # EXIF's tag


@dataclass(frozen=True)
class PixelFormat:
    """How images are brought to one shape.

    Attributes:
        height, width: pixels.
        channels: 1 grey, 3 RGB, 4 RGB with alpha.
        fit: what happens when the aspect ratio differs: ``crop`` the centre, ``stretch``, or ``pad`` with black.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"

    @classmethod
    def of(cls, image_size: int | Sequence[int], channels: int, fit: str = "crop") -> PixelFormat:
        """Build one from config values.

        Raises:
            ValueError: for an unknown fit, channel count or size.
        """
        if channels not in _MODES:
            raise ValueError(f"data.channels={channels} is not supported: choose 1 (grey), 3 (RGB) or 4 (RGBA)")
        if fit not in FITS:
            raise ValueError(f"data.fit={fit} is unknown: choose one of {', '.join(FITS)}")
        return cls(*height_width(image_size), channels, fit)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any Pillow image to uint8 [C, H, W]: 16-bit is scaled, palettes expanded, transparency put on white."""
        image = ImageOps.exif_transpose(image)  # phones store the sensor's picture and say how it was held
        image = _resize(_to_mode(image, _MODES[self.channels]), self)
        array: NDArray[Any] = np.asarray(image, dtype=np.uint8)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def common_format(files: ImageFiles) -> PixelFormat:
    """The one size and number of channels that files have in common, from their headers alone.

    Grey where all are grey, else RGB.

    Raises:
        ValueError: if sizes differ, naming two files, or a file is no image.
    """
    first, size, channels = "", (0, 0), 1
    for path in tqdm(files.paths, desc="reading sizes", unit="image", leave=False, disable=None):
        try:
            with Image.open(files.open(path)) as image:
                sideways = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
                found = image.size[::-1] if sideways else image.size
                channels = channels if image.mode in _GREY else 3
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
            raise ValueError(f"{files.root / path} cannot be read as an image ({error}): remove or repair it") from error
        if not first:
            first, size = path, found
        elif found != size:
            raise ValueError(
                f"the images of {files.root} have different sizes: {first} has {size[0]}x{size[1]} pixels and {path} "
                f"{found[0]}x{found[1]}; bring them to one size, or resize them here with image_size=N"
            )
    return PixelFormat(height=size[1], width=size[0], channels=channels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if mode != "RGBA" and (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info):
        # Dropping alpha would show whatever colour lies under transparent pixels.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and 32-bit grey to 8 bits. Pillow's own conversion clips at 255 and turns such images white."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    if image.mode == "F":
        full_scale = 1.0 if values.size and values.max() <= 1.0 else 255.0
    else:
        full_scale = 65535.0
    return Image.fromarray(np.clip(np.round(values * (255.0 / full_scale)), 0, 255).astype(np.uint8))


def _resize(image: Image.Image, to: PixelFormat) -> Image.Image:
    if image.size == (to.width, to.height):
        return image
    if to.fit == "stretch":
        return image.resize((to.width, to.height), Image.Resampling.LANCZOS)
    width, height = image.size
    if to.fit == "crop":
        # The largest centred box of the wanted aspect ratio.
        scale = min(width / to.width, height / to.height)
        box_width, box_height = to.width * scale, to.height * scale
        left, top = (width - box_width) / 2, (height - box_height) / 2
        box = (left, top, left + box_width, top + box_height)
        return image.resize((to.width, to.height), Image.Resampling.LANCZOS, box=box)
    scale = min(to.width / width, to.height / height)
    inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, (to.width, to.height))
    canvas.paste(inner, ((to.width - inner.width) // 2, (to.height - inner.height) // 2))
    return canvas
