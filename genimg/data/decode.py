"""Convert any image that Pillow opens to a uint8 array of a given size and number of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from genimg.data.image_files import ImageFiles
from genimg.errors import ConfigError, DataError
from genimg.types import height_width
from genimg.utils.mounting import Place, place
from genimg.utils.pillow import open_header, upright, upright_size
from genimg.utils.progress import Progress

FITS = ("crop", "stretch", "pad")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # Pillow opens their 16-bit grey images with 32 bits
_HOW_TO_GIVE_LEVELS = "give the values that become black and white with range=[low,high], or store 8 bits"


@dataclass(frozen=True)
class PixelFormat:
    """The common format to which images are converted.

    Attributes:
        height, width: Size in pixels.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        fit: Handling of a different aspect ratio: ``crop`` the centre, ``stretch``, or ``pad`` with black.
        levels: Values of 16- and 32-bit images that become black and white; values outside are clipped. None means 0 and
            65,535 for 16 bits, 0 and 255 for 32-bit integers, and 0 and ``float_white`` for floats; 32-bit values outside
            are an error.
        float_white: 1 or 255; None uses 1 for an image without larger values.
        place: Place of the dataset in the config, for messages about images that are read later.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"
    levels: tuple[float, float] | None = None
    float_white: float | None = None
    place: Place = field(default_factory=place, repr=False, compare=False)

    @classmethod
    def of(
        cls, image_size: int | Sequence[int], channels: int, fit: str = "crop", levels: Sequence[float] | None = None
    ) -> PixelFormat:
        """Build a format from a dataset's parameters.

        Raises:
            ConfigError: If the fit, number of channels, size or levels are invalid; the error names the datasets' parameters
                ``image_size``, ``channels``, ``fit`` and ``range``.
        """
        check_channels("channels", channels)
        if fit not in FITS:
            raise ConfigError(f"fit={fit} is unknown: choose one of {', '.join(FITS)}")
        try:
            height, width = height_width(image_size)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return cls(height, width, channels, fit, checked_levels(levels))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Convert a Pillow image to uint8 [C, H, W]: scale 16 and 32 bits, expand palettes, composite transparency on white.

        Raises:
            ValueError: If a 32-bit image contains NaN, or values outside both 0 to 255 and 0 to 1.
        """
        image = upright(image)
        if is_deep(image):
            image = self._to_eight_bits(image)
        image = _resize(_to_mode(image, _MODES[self.channels]), self)
        array: NDArray[Any] = np.asarray(image, dtype=np.uint8)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))

    def _to_eight_bits(self, image: Image.Image) -> Image.Image:
        """Scale 16-bit and 32-bit grey; Pillow's own conversion clips at 255 and turns such images white."""
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values")
        if self.levels is not None:
            levels = self.levels
        elif has_sixteen_bits(image):
            levels = (0.0, 65535.0)
        else:
            levels = self._levels_of_32_bits(values, image.mode)
        return Image.fromarray(scaled(values, levels))

    def _levels_of_32_bits(self, values: NDArray[np.float64], mode: str) -> tuple[float, float]:
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        white = 255.0
        if mode == "F":
            white = self.float_white or (1.0 if high <= 1.0 else 255.0)
        if low < 0.0 or high > white:
            expected = "0 to 1 like others of this folder" if white == 1.0 and low >= 0.0 else "0 to 255, or floats from 0 to 1"
            how = self.place.name(_HOW_TO_GIVE_LEVELS)
            raise ValueError(f"it holds 32-bit values from {low:.6g} to {high:.6g}, not {expected}: {how}")
        return 0.0, white


def check_channels(name: str, channels: int) -> None:
    """Reject an unsupported number of channels; ``name`` is its parameter.

    Raises:
        ConfigError: If the number is not 1, 3 or 4.
    """
    if channels not in _MODES:
        raise ConfigError(f"{name}={channels} is not supported: choose 1 (grey), 3 (RGB) or 4 (RGBA)")


def checked_levels(given: Sequence[float] | None) -> tuple[float, float] | None:
    """Validate the datasets' parameter ``range`` and return the values that become black and white.

    Raises:
        ConfigError: If they are not two finite numbers, the lower first.
    """
    if given is None:
        return None
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    fits = len(numbers) == 2 and all(type(each) in (int, float) and math.isfinite(each) for each in numbers)
    if not fits or numbers[0] >= numbers[1]:
        shown = str(given).replace(", ", ",")
        raise ConfigError(
            f"range={shown} must be [low,high], the values that become black and white, the lower first, such as range=[0,4095]"
        )
    return float(numbers[0]), float(numbers[1])


def scaled(values: NDArray[np.float64], levels: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale values linearly from ``levels`` to uint8, 0 to 255; values outside are clipped."""
    low, high = levels
    return np.clip(np.round((values - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey with 16 or 32 bits per pixel."""
    return image.mode.startswith("I") or image.mode == "F"


def has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether a deep image has 16 bits, where 65,535 is white."""
    return image.mode.startswith("I;") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS)


def half_of(image: Image.Image, half: str) -> Image.Image:
    """Return the ``left`` or ``right`` half of two images side by side, with its ``format`` attribute."""
    middle = image.width // 2
    part = image.crop((0, 0, middle, image.height) if half == "left" else (middle, 0, image.width, image.height))
    part.format = image.format
    return part


def common_format(files: ImageFiles) -> PixelFormat:
    """Return the common size of files, and grey if all are grey, else RGB; only the headers are read.

    Raises:
        DataError: If sizes differ, naming two files, or a file is not an image.
    """
    first, size, channels = "", (0, 0), 1
    for path in Progress(files.paths, desc="reading sizes", unit="image", leave=False):
        try:
            with open_header(files.open(path)) as image:
                found = upright_size(image)
                channels = channels if image.mode in _GREY else 3
        except (OSError, ValueError) as error:
            raise DataError(
                f"the file {files.root / path} cannot be read as an image ({error}): remove or repair it"
            ) from error
        if not first:
            first, size = path, found
        elif found != size:
            raise DataError(
                f"the images of {files.root} have different sizes, such as {first} with {size[0]}x{size[1]} pixels and {path} "
                f"with {found[0]}x{found[1]}",
                "bring them to one size, or resize them here with image_size=N",
                key="image_size",
            )
    return PixelFormat(height=size[1], width=size[0], channels=channels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode != "RGBA" and (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info):
        # Dropping alpha would show the hidden colour of transparent pixels.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, to: PixelFormat) -> Image.Image:
    if image.size == (to.width, to.height):
        return image
    if to.fit == "stretch":
        return image.resize((to.width, to.height), Image.Resampling.LANCZOS)
    if to.fit == "crop":  # the largest centred box with the target aspect ratio
        return ImageOps.fit(image, (to.width, to.height), Image.Resampling.LANCZOS)
    # ImageOps.pad would make a side of 0 pixels of a very narrow image.
    width, height = image.size
    scale = min(to.width / width, to.height / height)
    inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, (to.width, to.height))
    canvas.paste(inner, ((to.width - inner.width) // 2, (to.height - inner.height) // 2))
    return canvas
