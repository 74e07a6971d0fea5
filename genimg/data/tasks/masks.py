"""Masks of missing pixels. Random masks are a function of (seed, position) alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.datasets.file_index import list_images
from genimg.data.tasks.ranges import checked_range, drawn, drawn_integers
from genimg.errors import ConfigError, DataError
from genimg.utils.pillow import open_image
from genimg.utils.rng import Stream, uniform

_TURN, _TURN_RANGE = 2 * math.pi / 5, 2 * math.pi / 15  # angles between segments and course; code of Yu et al. 2019

_MOST_DISTANCES = 2**24  # pixels times segments whose distances a GPU computes at once: 64 MiB for each intermediate result


class Mask(ABC):
    """Generates masks for images of one size."""

    @abstractmethod
    def check(self, height: int, width: int) -> None:
        """Reject an unsupported image size, in pixels.

        Raises:
            ConfigError: If a setting does not fit the size.
            DataError: If mask files are missing, damaged or of another size.
        """

    @abstractmethod
    def __call__(self, positions: NDArray[np.int64], seed: int, *, height: int, width: int, device: torch.device) -> Tensor:
        """Return masks, float32 [N, 1, H, W], 1 for missing pixels."""

    def fingerprint(self) -> str | None:
        """Return the digest of the mask files; None if there are none."""
        return None


class Center(Mask):
    """A fixed rectangle in the centre (Pathak et al. 2016, "Context encoders", section 3.3).

    Args:
        size: Share of each side of the image, between 0 and 1.
    """

    def __init__(self, *, size: float) -> None:
        if not 0 < size < 1:
            raise ValueError(f"size={size} must be a share of the sides, between 0 and 1")
        self.size = size

    def check(self, height: int, width: int) -> None:
        for side in (height, width):
            if not 0 < round(self.size * side) < side:
                raise ConfigError(
                    f"size={self.size} is {round(self.size * side)} of {side} pixels: the hole must be at least 1 pixel, and "
                    "smaller than the image"
                )

    def __call__(self, positions: NDArray[np.int64], seed: int, *, height: int, width: int, device: torch.device) -> Tensor:
        mask = torch.zeros(len(positions), 1, height, width, device=device)
        rows, columns = round(self.size * height), round(self.size * width)
        top, left = (height - rows) // 2, (width - columns) // 2
        mask[:, :, top : top + rows, left : left + columns] = 1.0
        return mask


class Boxes(Mask):
    """Random rectangles, which may overlap (Pathak et al. 2016, section 3.3, "random block").

    Args:
        num_boxes: Maximum number of boxes in an image; the minimum is 1.
        side: Share of the image's sides, or [low, high] to draw the height and width of each box.
    """

    def __init__(self, *, num_boxes: int, side: float | Sequence[float]) -> None:
        if num_boxes < 1:
            raise ValueError(f"num_boxes={num_boxes} must be 1 or more")
        self.num_boxes = num_boxes
        self.side = checked_range("side", side, 0.0, 1.0, above=True)

    def check(self, height: int, width: int) -> None:
        _require_a_pixel("side", self.side[0], height, width)

    def __call__(self, positions: NDArray[np.int64], seed: int, *, height: int, width: int, device: torch.device) -> Tensor:
        box = np.arange(self.num_boxes)[:, None]
        counts = drawn_integers((1, self.num_boxes), seed, Stream.MASK, 0, positions)

        def span(length: int, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            """Return the first pixel of every box along a side, and the pixel after its last one, [B, N]."""
            pixels = np.rint(length * drawn(self.side, seed, Stream.MASK, number, box, positions))
            first = np.floor((length - pixels + 1) * uniform(seed, Stream.MASK, number + 1, box, positions))
            return first, np.where(box < counts, first + pixels, first)  # boxes beyond the count are empty

        spans = np.stack([*span(height, 1), *span(width, 3)]).astype(np.float32)  # [4, B, N]
        edges = torch.from_numpy(spans).to(device, non_blocking=True)
        top, bottom, left, right = edges[..., None, None].unbind()  # [B, N, 1, 1]
        y = torch.arange(height, device=device)[:, None]
        x = torch.arange(width, device=device)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)  # [B, N, H, W]
        return inside.any(dim=0)[:, None].float()


class Strokes(Mask):
    """Free-form masks: zigzag brush strokes.

    Yu et al. 2019, "Free-form image inpainting with gated convolution", section 4.3. Segments turn alternately left and right
    of the stroke's course, by 48 to 96 degrees. Their mean length is an eighth of the image's diagonal, and they end at the
    image's border.

    Args:
        num_strokes: Maximum number of strokes in an image; the minimum is 1.
        num_legs: Number of segments of a stroke, or [low, high] to draw one for each stroke.
        width: Width of the brush as a share of the shorter side, or [low, high] to draw one for each stroke.
    """

    def __init__(self, *, num_strokes: int, num_legs: int | Sequence[int], width: float | Sequence[float]) -> None:
        if num_strokes < 1:
            raise ValueError(f"num_strokes={num_strokes} must be 1 or more")
        low, high = checked_range("num_legs", num_legs, 1, 1000)
        if low != int(low) or high != int(high):
            raise ValueError(f"num_legs={num_legs} must be whole")
        self.num_strokes = num_strokes
        self.num_legs = int(low), int(high)
        self.width = checked_range("width", width, 0.0, 1.0, above=True)

    def check(self, height: int, width: int) -> None:
        _require_a_pixel("width", self.width[0], height, width)

    def __call__(self, positions: NDArray[np.int64], seed: int, *, height: int, width: int, device: torch.device) -> Tensor:
        stroke = np.arange(self.num_strokes)[:, None]
        chance = partial(uniform, seed, Stream.MASK)
        strokes = drawn_integers((1, self.num_strokes), seed, Stream.MASK, 10, positions)  # [N]
        legs = drawn_integers(self.num_legs, seed, Stream.MASK, 11, stroke, positions)  # [S, N]
        legs = np.where(stroke < strokes, legs, 0)
        radius = drawn(self.width, seed, Stream.MASK, 12, stroke, positions) * (min(height, width) / 2)
        course = 2 * math.pi * chance(13, stroke, positions)
        y, x = height * chance(14, stroke, positions), width * chance(15, stroke, positions)
        mean = math.hypot(height, width) / 8
        segments = []
        for leg in range(self.num_legs[1]):
            turn = _TURN + _TURN_RANGE * (2 * chance(16, leg, stroke, positions) - 1)
            heading = course + (turn if leg % 2 else -turn)
            length = 2 * mean * chance(17, leg, stroke, positions)
            to_y, to_x = np.clip(y + length * np.sin(heading), 0, height), np.clip(x + length * np.cos(heading), 0, width)
            segments.append(np.stack([y, x, to_y, to_x, np.where(leg < legs, radius, -1.0)]))
            y, x = to_y, to_x
        return brushed(np.stack(segments, axis=1).reshape(5, -1, len(positions)), height, width, device)


def brushed(segments: NDArray[np.float64], height: int, width: int, device: torch.device) -> Tensor:
    """Return masks of the pixels whose centres are near line segments, float32 [N, 1, H, W].

    Args:
        segments: M segments of every image [5, M, N]: start (y, x) and end (y, x) in pixels from the upper left corner, and
            maximum distance; a negative distance means no segment.
    """
    segments = segments[:, (segments[4] >= 0).any(axis=1)]
    y = torch.arange(height, device=device)[:, None] + 0.5
    x = torch.arange(width, device=device) + 0.5
    count = segments.shape[2]
    missing = torch.zeros(count, height, width, dtype=torch.bool, device=device)
    numbers = torch.from_numpy(segments.astype(np.float32)).to(device, non_blocking=True)[..., None, None]  # [5, M, N, 1, 1]
    # A CPU takes one segment at a time, which stays in its caches; a GPU takes many, because each operation is a launch.
    at_once = 1 if device.type == "cpu" else max(1, _MOST_DISTANCES // (count * height * width))
    for chosen in numbers.split(at_once, dim=1):
        missing |= _near(chosen, y, x).any(dim=0)
    return missing[:, None].float()


def _near(segments: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return which pixels are near each of M segments [5, M, N, 1, 1]: bool [M, N, H, W]."""
    from_y, from_x, to_y, to_x, reach = segments.unbind()
    down, right, dy, dx = y - from_y, x - from_x, to_y - from_y, to_x - from_x  # [M, N, H, 1], [M, N, 1, W], [M, N, 1, 1] twice
    squared = (dy**2 + dx**2).clamp(min=1e-6)
    # The distance is to the foot of the perpendicular, clamped to the segment.
    foot = (down * (dy / squared) + right * (dx / squared)).clamp_(0.0, 1.0)  # [M, N, H, W]
    distance = torch.addcmul(down, foot, dy, value=-1).square_()
    distance += torch.addcmul(right, foot, dx, value=-1).square_()
    return distance <= reach.abs() * reach


class Files(Mask):
    """Masks from image files, white for missing pixels; one is chosen at random for each sample.

    Args:
        folder: Directory of the masks. Pixels of at least half of full brightness are missing. It is not read before the
            first use, so images with their own masks can be inpainted without it.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder).expanduser()
        self._packed: dict[tuple[int, int], NDArray[np.uint8]] = {}  # by size; one bit per pixel, [M, ceil(H W / 8)]

    def check(self, height: int, width: int) -> None:
        """Read the masks.

        Raises:
            DataError: If there are no masks, or one has a different size or cannot be decoded.
        """
        self._load(height, width)

    def __call__(self, positions: NDArray[np.int64], seed: int, *, height: int, width: int, device: torch.device) -> Tensor:
        packed = self._load(height, width)
        chosen = packed[drawn_integers((0, len(packed) - 1), seed, Stream.MASK, 20, positions)]
        bits = np.unpackbits(chosen, axis=1, count=height * width)
        return torch.from_numpy(bits).to(device, non_blocking=True).float().view(len(positions), 1, height, width)

    def _load(self, height: int, width: int) -> NDArray[np.uint8]:
        if (height, width) not in self._packed:
            self._packed[height, width] = np.stack([self._read(path, height, width) for path in self._paths()])
        return self._packed[height, width]

    def fingerprint(self) -> str:
        return list_images(self.folder, refresh=False).digest

    def _paths(self) -> list[str]:
        if not self.folder.is_dir():
            what = "is a file, not a directory" if self.folder.exists() else "does not exist"
            raise DataError(f"folder={self.folder} {what}: give a directory of masks")
        paths = list_images(self.folder, refresh=False).paths
        if not paths:
            raise DataError(f"folder={self.folder} holds no images: expected files such as .png or .jpg")
        return paths

    def _read(self, path: str, height: int, width: int) -> NDArray[np.uint8]:
        try:
            with open_image(self.folder / path) as image:
                if image.size == (width, height):
                    return np.packbits(np.asarray(image.convert("L")) >= 128)
                size = f"{image.height}x{image.width}"
        except (OSError, ValueError) as error:
            raise DataError(
                f"folder={self.folder} holds the mask {path}, which cannot be decoded ({error}): repair it or remove it"
            ) from error
        raise DataError(
            f"folder={self.folder} holds the mask {path} of {size} pixels, but images are {height}x{width} (height x width): "
            "resize the masks without smoothing, or resize the images to the masks' size"
        )


def _require_a_pixel(name: str, share: float, height: int, width: int) -> None:
    """Check that a share of the shorter side is a pixel or more; ``name`` is the parameter that holds the share."""
    if share * min(height, width) < 1:
        raise ConfigError(
            f"{name}={share} is less than a pixel of {height}x{width}: set it to {1 / min(height, width):.3g} or more"
        )
