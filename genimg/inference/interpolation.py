"""Interpolation in a closed loop through latents: a grid with a row for each pair of latents, and an animation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genimg.errors import ConfigError
from genimg.inference.between import require_latents
from genimg.inference.conditions import KEYS, Condition, repeated
from genimg.inference.sample import Sampler
from genimg.methods.capabilities import Generates
from genimg.methods.latent import interpolate
from genimg.types import Batch
from genimg.utils.files import atomically
from genimg.utils.images import grid, to_uint8, write_png
from genimg.utils.numbers import require_least
from genimg.utils.outputs import exif_of, require_own_file, stamp_of
from genimg.utils.paths import relative

log = logging.getLogger(__name__)

_FASTEST = 1000  # frames per second: WebP counts whole milliseconds


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The settings of a closed loop through latents.

    Attributes:
        interpolate: ``linear``, or ``spherical`` along great circles.
        num_images: Number of latents, at least 2.
        frames: Number of images from one latent to the next, at least 2.
        frames_per_second: Frame rate of the animation, above 0, at most 1000.

    Raises:
        ConfigError: If an attribute is out of range.
    """

    interpolate: str
    num_images: int
    frames: int
    frames_per_second: float

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ConfigError(f"num_images={self.num_images} must be 2 or more to interpolate between them")
        require_least(2, frames=self.frames)
        if not 0 < self.frames_per_second <= _FASTEST:
            raise ConfigError(f"frames_per_second={self.frames_per_second} must be a number above 0, at most {_FASTEST}")

    def check(self, method: Generates, row: Mapping[str, object]) -> None:
        """Reject a model without latents, and a conditional model without a fixed condition.

        Args:
            method: The model.
            row: Batch of one image with the requested condition; empty for none.

        Raises:
            ConfigError: If the model draws no latents, or needs a condition and none is requested.
        """
        for option, key in KEYS.items():
            if key in method.batch_keys and key not in row:
                raise ConfigError(f"interpolate={self.interpolate} needs the same {key} for all latents: set {option}=...")
        require_latents(method, self.interpolate)


def write_loops(sampler: Sampler, conditions: Sequence[Condition], folder: Path, loop: Loop, command: str) -> None:
    """Write a grid and an animation for each condition.

    Args:
        sampler: Sampler of a model that ``Loop.check`` accepts.
        conditions: One condition, whose files are named like ``folder``, or several, whose files are written into it.
        folder: Absolute path of the output.
        loop: Settings of the loop.
        command: Name of the command, stored in the files.

    Raises:
        ConfigError: If an existing file was not written by genimg.
    """
    places = {condition.name: folder if len(conditions) == 1 else folder / condition.name for condition in conditions}
    for place in places.values():
        for file in _files(place):
            require_own_file(file, f"output={folder}")
    for condition in conditions:
        _write_loop(sampler, condition, places[condition.name], loop, command)
    sampler.log_cost()


def _files(path: Path) -> tuple[Path, Path]:
    """Return the paths of the grid and the animation."""
    picture, animation = (path.with_name(path.name + suffix) for suffix in (".png", ".webp"))
    return picture, animation


def _write_loop(sampler: Sampler, condition: Condition, path: Path, loop: Loop, command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = sampler.draw(range(loop.num_images))["latent"]
    weights = torch.arange(loop.frames) / loop.frames
    spherical = loop.interpolate == "spherical"
    ways = [interpolate(start, end, weights, spherical=spherical) for start, end in zip(keys, keys.roll(-1, 0), strict=True)]
    latents = torch.cat(ways)  # [num_images * frames, Z]
    row = {key: value[:1] for key, value in sampler.draw(range(1)).items()} | condition.row

    def draw(positions: range) -> Batch:
        return repeated(row, len(positions)) | {"latent": latents[positions.start : positions.stop]}

    made = sampler.make_all(len(latents), draw, f"interpolating {condition.name}".strip())
    images = torch.cat([images for _, _, images in made])
    picture, animation = _files(path)
    write_png(grid(images, loop.frames), picture, stamp_of(command))
    _write_animation(to_uint8(images), animation, loop.frames_per_second, command)
    log.info("%d rows of %d images, from one latent to the next: %s", loop.num_images, loop.frames, relative(picture))
    log.info("animation: %s", relative(animation))


def _write_animation(images: Tensor, path: Path, frames_per_second: float, command: str) -> None:
    """Write images, uint8 [N, C, H, W], as a lossless, looping WebP, atomically."""
    arrays = images.permute(0, 2, 3, 1).numpy()  # [N, H, W, C]
    frames = [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
    with atomically(path) as temporary:
        frames[0].save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 / frames_per_second),  # milliseconds
            loop=0,
            lossless=True,
            exif=exif_of(command),
        )
