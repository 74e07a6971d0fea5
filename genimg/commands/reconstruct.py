"""genimg-sample reconstruct=: what an autoencoder makes of image files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from genimg.config.instantiate import Config
from genimg.data.decode import PixelFormat
from genimg.errors import ConfigError
from genimg.inference.conditions import KEYS, Condition
from genimg.inference.image_files import cell, checked_output, find_pictures, grid_of, read_resized, side_by_side, with_sizes
from genimg.methods.base import Method
from genimg.types import Batch
from genimg.utils.files import naming_full_disk
from genimg.utils.images import to_float, to_uint8, write_png
from genimg.utils.outputs import Record, own_folder, stamp_of
from genimg.utils.paths import relative

log = logging.getLogger(__name__)

_MOST_SHOWN = 32  # images in the grid


def reconstruct(
    method: Method,
    data: Config,
    options: Config,
    conditions: Sequence[Condition],
    folder: Path,
    device: torch.device,
    record: Record,
) -> None:
    """Write the reconstruction of every image of ``reconstruct``, under its name, and a grid of some beside their originals.

    Args:
        method: in evaluation mode, on the device.
        data: of the checkpoint's config; images are brought to its size.
        options: of the command.
        conditions: one, of all images.
        folder: to write to.
        device: of the method.
        record: what the folder says about itself.

    Raises:
        ConfigError: If the method is no autoencoder, or the files or the output are not as they must be.
    """
    if not method.reconstructs:
        name = type(method).__name__
        raise ConfigError(
            f"reconstruct={options['reconstruct']} is for autoencoders, such as a VAE, and this model is a {name}: remove it"
        )
    condition = require_one(options, "reconstruct", method, conditions)
    pictures = with_sizes(find_pictures(options["reconstruct"], "reconstruct"))
    output = checked_output(folder, {"reconstruct": options["reconstruct"]}, pictures, grid=True, overwrite=True,
                            command=record["made_by"])  # fmt: skip
    to = pixel_format(data)
    shown: list[tuple[Tensor, Tensor]] = []
    with (
        naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"),
        own_folder(output, record) as made_in,
        tqdm(total=len(pictures), desc="reconstructing", unit="image", disable=None) as progress,
    ):
        for start in range(0, len(pictures), options["batch_size"]):
            some = pictures[start : start + options["batch_size"]]
            originals = torch.stack([read_resized(picture.file, to) for picture in some])
            batch: Batch = {"image": to_float(originals).to(device)}
            batch |= {key: value.to(device).expand(len(some), *value.shape[1:]) for key, value in condition.row.items()}
            made = to_uint8(method.reconstruct(batch)).cpu()
            for picture, original, image in zip(some, originals, made, strict=True):
                write_png(image, made_in / picture.name)
                if len(shown) < _MOST_SHOWN:
                    shown.append((cell(original), cell(image)))
            progress.update(len(some))
    log.info("%d reconstruction%s: %s", len(pictures), "s" * (len(pictures) > 1), relative(output))
    write_png(side_by_side(shown), grid_of(output), stamp_of(record["made_by"]))
    log.info("images and, right of each, its reconstruction: %s", relative(grid_of(output)))


def require_one(options: Config, what: str, method: Method, conditions: Sequence[Condition]) -> Condition:
    """The only condition that is asked for.

    Args:
        options: of the command.
        what: the option that needs it.
        method: the model.
        conditions: those that are asked for.

    Raises:
        ConfigError: If there are several, or none where the model reads them.
    """
    for option, key in KEYS.items():
        if key in method.batch_keys and options[option] is None:
            raise ConfigError(
                f"{what}={options[what]}: this model reads a {key} with every image: say which, with {option}=..."
            )
    if len(conditions) > 1:
        raise ConfigError(f"{what}={options[what]} goes with one condition, not {len(conditions)}: give one label or text")
    return conditions[0]


def pixel_format(data: Config) -> PixelFormat:
    """Of the images that a model was trained on."""
    return PixelFormat.of(data["image_size"], data["channels"], data.get("fit") or "crop", data.get("range"))
