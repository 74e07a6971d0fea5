"""Reconstructions of image files by an autoencoder, and samples around an image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg.data.decode import PixelFormat
from genimg.data.facts import DataFacts
from genimg.errors import ConfigError
from genimg.inference.checks import require_finite
from genimg.inference.conditions import Condition, repeated, require_one
from genimg.inference.image_files import (
    cell,
    checked_output,
    existing,
    find_pictures,
    grid_of,
    read_resized,
    side_by_side,
    with_sizes,
)
from genimg.methods.capabilities import Generates, Reconstructs, SamplesNearby
from genimg.types import Batch
from genimg.utils.files import naming_full_disk
from genimg.utils.images import save_png, to_float, to_uint8, write_png
from genimg.utils.outputs import Record, own_folder, stamp_of
from genimg.utils.paths import relative
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)

_MAX_SHOWN = 32  # images in the grid


def reconstruct(
    method: Reconstructs,
    given: str,
    conditions: Sequence[Condition],
    pixels: PixelFormat,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    record: Record,
) -> None:
    """Write the reconstruction of every image under the image's name, and a grid of some originals and reconstructions.

    Args:
        method: Model in evaluation mode, on the device.
        given: Path of the image or directory in ``reconstruct=``.
        conditions: Requested conditions; there must be one, used for all images.
        pixels: Format that images are converted to.
        folder: Directory to write.
        batch_size: Number of images in a batch.
        device: Device of the model.
        record: Metadata stored in the folder.

    Raises:
        ConfigError: If the files or the output are invalid.
    """
    condition = require_one(method, conditions, f"reconstruct={given}")
    pictures = with_sizes(find_pictures(given, "reconstruct"))
    output = checked_output(folder, {"reconstruct": given}, pictures, grid=True, overwrite=True, command=record["made_by"])
    shown: list[tuple[Tensor, Tensor]] = []
    with (
        naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"),
        own_folder(output, record) as made_in,
        Progress(total=len(pictures), desc="reconstructing", unit="image") as progress,
    ):
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            originals = torch.stack([read_resized(picture.file, pixels) for picture in some])
            made = reconstructed(method, originals, condition, device)
            for picture, original, image in zip(some, originals, made, strict=True):
                save_png(image, made_in / picture.name)
                if len(shown) < _MAX_SHOWN:
                    shown.append((cell(original), cell(image)))
            progress.update(len(some))
    log.info("%d reconstruction%s: %s", len(pictures), "s" * (len(pictures) > 1), relative(output))
    write_png(side_by_side(shown), grid_of(output), stamp_of(record["made_by"]))
    log.info("grid of images, each with its reconstruction on the right: %s", relative(grid_of(output)))


def reconstructed(method: Reconstructs, originals: Tensor, condition: Condition, device: torch.device) -> Tensor:
    """Return the reconstructions of images, uint8 [N, C, H, W], on the CPU.

    Args:
        method: Model in evaluation mode, on the device.
        originals: Images of the model's size, uint8 [N, C, H, W].
        condition: Condition of all images.
        device: Device of the model.

    Raises:
        CheckpointError: If the model returns NaN or infinite values.
    """
    batch: Batch = {"image": to_float(originals), **repeated(condition.row, len(originals))}
    return to_uint8(require_finite(method.reconstruct({key: value.to(device) for key, value in batch.items()}))).cpu()


def read_near(method: Generates, given: str, conditions: Sequence[Condition], pixels: PixelFormat) -> Tensor:
    """Read the image around which to sample.

    Args:
        method: Model in evaluation mode.
        given: Path of the image file in ``near=``.
        conditions: Requested conditions; there must be one, used for the image and the samples.
        pixels: Format that the image is converted to.

    Returns:
        The image, float32 [1, C, H, W] in [-1, 1], on the CPU.

    Raises:
        DataError: If the file cannot be read.
        ConfigError: If the model does not encode images into latents.
    """
    if not isinstance(method, SamplesNearby):
        name = type(method).__name__
        raise ConfigError(f"near={given} has no effect on a {name}, which encodes no images into latents: remove it")
    require_one(method, conditions, f"near={given}")
    file = existing("near", given, "an image")
    if file.is_dir():
        raise ConfigError(f"near={given} is a directory: give one image")
    return to_float(read_resized(file, pixels)[None])


def pixel_format(facts: DataFacts, data: Mapping[str, Any]) -> PixelFormat:
    """Return the format of a model's input images.

    Args:
        facts: Facts about the training images, with the size and channels.
        data: The ``data`` group of the checkpoint's config, with optional ``fit`` and ``range``.
    """
    return PixelFormat.of(facts.image_size, facts.channels, data.get("fit") or "crop", data.get("range"))
