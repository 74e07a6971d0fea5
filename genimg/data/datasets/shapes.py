"""``shapes``: coloured geometric shapes drawn by a formula, to train without a download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ImageDataset, digest
from genimg.errors import ConfigError
from genimg.types import height_width
from genimg.utils.rng import Stream, uniform
from genimg.utils.words import nearest

FloatArray = NDArray[np.float64]

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (38, 100, 210),
    "yellow": (235, 190, 20),
    "purple": (140, 70, 180),
    "black": (25, 25, 25),
}
SIZES = {"small": 0.24, "large": 0.36}  # radius as a fraction of the shorter side
BACKGROUND = (245, 245, 240)
_COLOR_NAMES, _SIZE_NAMES = tuple(COLORS), tuple(SIZES)
_COMBINATIONS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


def _circle(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.hypot(x, y) - r


def _square(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85 * r


def _triangle(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    # Three half-planes: the base, and two sides at 60 degrees.
    return np.maximum(y - 0.5 * r, np.abs(x) * np.sqrt(0.75) - 0.5 * (y + r))


def _cross(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    across = np.maximum(np.abs(x) - r, np.abs(y) - 0.32 * r)
    upright = np.maximum(np.abs(x) - 0.32 * r, np.abs(y) - r)
    return np.minimum(across, upright)


def _ring(x: FloatArray, y: FloatArray, r: float) -> FloatArray:
    return np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r


_OUTSIDE: tuple[Callable[[FloatArray, FloatArray, float], FloatArray], ...] = (
    _circle,
    _square,
    _triangle,
    _cross,
    _ring,
)
"""Signed distance in pixels to each shape's edge, negative inside, in the order of SHAPES."""


class ShapesDataset(ImageDataset):
    """Drawn shapes; image ``index`` is a pure function of (seed, index, held_out).

    Args:
        seed: Seed of the dataset, not of training.
        num_images: Number of images.
        image_size: Size in pixels, one number or [height, width].
        channels: 3 for RGB, or 1 for grey.
        num_objects: 1, or 2 for two shapes one above or beside the other.
        labels: Label of the first object: ``shape``, or ``color_shape`` such as "red circle".
        held_out: Combinations such as "red circle" that are never drawn. Each is replaced by another combination; other images
            do not change.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_images: int,
        image_size: int | Sequence[int],
        channels: int,
        num_objects: int,
        labels: str = "shape",
        held_out: Sequence[str] = (),
    ) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels={channels} is not supported by shapes: choose 3 (colour) or 1 (grey)")
        if num_objects not in (1, 2):
            raise ConfigError(f"num_objects={num_objects} is not supported by shapes: choose 1 or 2")
        if num_images < 1:
            raise ConfigError(f"num_images={num_images} must be 1 or more")
        if labels not in ("shape", "color_shape"):
            raise ConfigError(f"labels={labels} is not supported by shapes: choose shape or color_shape")
        self.name = "shapes"
        self.captioned = True
        self.seed = seed
        self.num_images = num_images
        self.num_objects = num_objects
        height, width = height_width(image_size)
        self.shape = (channels, height, width)
        self._held_out = _table_of(held_out)
        self._allowed = np.argwhere(~self._held_out)
        self.class_names = SHAPES
        shape, color, _ = self._choices(np.arange(num_images), 0)
        self.labels = shape
        if labels == "color_shape":
            self.class_names = tuple(sorted(_COMBINATIONS))
            label_of = np.array([self.class_names.index(name) for name in _COMBINATIONS], dtype=np.int64)
            self.labels = label_of.reshape(len(COLORS), len(SHAPES))[color, shape]
        held_out_parts = [sorted(set(held_out))] if held_out else []  # if empty, fingerprints stay as in earlier versions
        self.fingerprint = digest("shapes 3", seed, num_images, self.shape, num_objects, *held_out_parts)
        self._y, self._x = np.mgrid[0:height, 0:width] + 0.5

    def __len__(self) -> int:
        return self.num_images

    def _choices(self, index: Any, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the shape, colour and size of the object at ``position`` (0 or 1), as indices into the tables above."""

        def choose(attribute: int, count: int) -> NDArray[np.int64]:
            return (uniform(self.seed, Stream.DRAWN_SHAPES, index, position, attribute) * count).astype(np.int64)

        shape, color, size = choose(0, len(SHAPES)), choose(1, len(COLORS)), choose(2, len(SIZES))
        held_out = self._held_out[color, shape]
        if held_out.any():
            color_of_another, shape_of_another = self._allowed[choose(5, len(self._allowed))].T
            shape, color = np.where(held_out, shape_of_another, shape), np.where(held_out, color_of_another, color)
        return shape, color, size

    def _above(self, index: Any) -> NDArray[np.bool_]:
        return uniform(self.seed, Stream.DRAWN_SHAPES, index, 2, 0) < 0.5

    def read(self, index: int) -> NDArray[np.uint8]:
        channels, height, width = self.shape
        image = np.empty((3, height, width))
        image[:] = np.array(BACKGROUND, dtype=np.float64)[:, None, None]
        for position in range(self.num_objects):
            shape, color, size = (int(choice[0]) for choice in self._choices(index, position))
            radius, (center_y, center_x) = self._place(index, position, size)
            # Coverage of each pixel, from its centre's distance to the edge: an anti-aliased border one pixel wide.
            distance = _OUTSIDE[shape](self._x - center_x, self._y - center_y, radius)
            coverage = np.clip(0.5 - distance, 0.0, 1.0)
            paint = np.array(COLORS[_COLOR_NAMES[color]], dtype=np.float64)[:, None, None]
            image += coverage * (paint - image)
        if channels == 1:
            image = np.tensordot([0.299, 0.587, 0.114], image, axes=1)[None]  # ITU-R BT.601 luma
        return np.round(image).astype(np.uint8)

    def _place(self, index: int, position: int, size: int) -> tuple[float, tuple[float, float]]:
        """Return radius and centre in pixels. Each of two objects gets half of the canvas, so they never overlap."""
        _, height, width = self.shape
        top, left, tall, wide = 0.0, 0.0, float(height), float(width)
        if self.num_objects == 2:
            if self._above(index)[0]:
                tall /= 2
                top = tall * position
            else:
                wide /= 2
                left = wide * position
        radius = min(SIZES[_SIZE_NAMES[size]] * min(height, width), 0.46 * min(tall, wide))
        # Centres lie in the middle half of the available space, which gives enough variety and is learnt in minutes.
        u, v = (0.25 + 0.5 * uniform(self.seed, Stream.DRAWN_SHAPES, index, position, axis)[0] for axis in (3, 4))
        return radius, (top + radius + u * (tall - 2 * radius), left + radius + v * (wide - 2 * radius))

    def caption(self, index: int) -> str | None:
        return self.captions(np.array([index]))[0]

    def captions(self, indices: NDArray[np.int64]) -> list[str | None]:
        """Return captions such as "a small red circle" or "a small red circle above a large blue square"."""
        phrases = [
            [f"a {_SIZE_NAMES[size]} {_COLOR_NAMES[color]} {SHAPES[shape]}" for shape, color, size in zip(*chosen, strict=True)]
            for chosen in (self._choices(indices, position) for position in range(self.num_objects))
        ]
        relations = [" above " if above else " to the left of " for above in self._above(indices)]
        return [relation.join(objects) for relation, *objects in zip(relations, *phrases, strict=True)]


def _table_of(held_out: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether each combination is held out, bool [colours, shapes].

    Raises:
        ConfigError: If a name is not a combination, or all combinations are held out.
    """
    if isinstance(held_out, str):
        raise ConfigError(f"held_out={held_out} must be a list such as '[red circle,blue square]'")
    for name in held_out:
        if name not in _COMBINATIONS:
            hint = nearest(str(name), _COMBINATIONS)
            raise ConfigError(f"held_out holds {name}, which is not one of the combinations{hint}: they are a colour "
                              f"({', '.join(COLORS)}) and a shape ({', '.join(SHAPES)}), such as 'red circle'")  # fmt: skip
    table = np.array([name in held_out for name in _COMBINATIONS]).reshape(len(COLORS), len(SHAPES))
    if table.all():
        raise ConfigError(f"held_out holds all {len(_COMBINATIONS)} combinations, so nothing is left to draw: remove some")
    return table


def shapes(
    *,
    seed: int,
    num_images: int,
    image_size: int | Sequence[int],
    channels: int,
    num_objects: int,
    labels: str = "shape",
    held_out: Sequence[str] = (),
) -> ImageDataset:
    """Build a dataset of coloured geometric shapes, with the first shape's class label and a caption for every image."""
    return ShapesDataset(
        seed=seed,
        num_images=num_images,
        image_size=image_size,
        channels=channels,
        num_objects=num_objects,
        labels=labels,
        held_out=held_out,
    )
