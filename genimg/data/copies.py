"""Augmented copies of a folder's images, for genimg-augment: random parameters, operations and files.

The parameters of a copy are a function of the seed, the image's path and the copy's number alone.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from genimg.data.datasets.builtin import CorruptImageError
from genimg.data.decode import PixelFormat
from genimg.data.transforms import rotate
from genimg.errors import DataError
from genimg.utils.exact import double
from genimg.utils.images import to_float, to_uint8
from genimg.utils.pillow import open_image, upright

Record = dict[str, Any]  # as stored in JSON

RANGES = {
    "horizontal_flip": (0.0, 1.0), "vertical_flip": (0.0, 1.0), "rotation": (0.0, 180.0), "crop": (0.01, 1.0),
    "brightness": (0.0, 10.0), "contrast": (0.0, 10.0), "saturation": (0.0, 10.0), "hue": (0.0, 0.5), "cutout": (0.0, 0.9),
    "mixup": (0.0, 100.0), "cutmix": (0.0, 100.0),
}  # minimum and maximum of each setting  # fmt: skip
_DRAWS = (
    "horizontal_flip", "vertical_flip", "rotation", "crop_area", "crop_ratio", "crop_top", "crop_left", "brightness",
    "contrast", "saturation", "hue", "cutout_top", "cutout_left", "partner", "which_mix", "mix_top", "mix_left",
)  # fmt: skip
_DIGITS = 4  # decimal places of the parameters, which are rounded before they are applied and recorded
_GREY = 127


def draw(random: np.random.Generator, settings: Mapping[str, float], shape: Sequence[int]) -> tuple[Record, dict[str, float]]:
    """Draw the operations on one copy of an image of ``shape`` (C, H, W).

    Every random number is drawn even if it is not used, so a setting does not affect the other operations.

    Returns:
        Name -> parameters of the operations, in their order, and name -> the random numbers in [0, 1).
    """
    channels, height, width = shape
    chance = dict(zip(_DRAWS, random.random(len(_DRAWS)).tolist(), strict=True))
    done: Record = {key: True for key in ("horizontal_flip", "vertical_flip") if chance[key] < settings[key]}
    if settings["rotation"]:
        done["rotation"] = round(settings["rotation"] * (2 * chance["rotation"] - 1), _DIGITS)
    if settings["crop"] < 1:
        area = settings["crop"] + (1 - settings["crop"]) * chance["crop_area"]
        # Relative to the image's aspect ratio; limited so that neither side exceeds the image's.
        lowest, highest = math.log(max(3 / 4, area)), math.log(min(4 / 3, 1 / area))
        ratio = math.exp(lowest + (highest - lowest) * chance["crop_ratio"])
        sides = round(height * math.sqrt(area / ratio)), round(width * math.sqrt(area * ratio))
        done["crop"] = _box((height, width), sides, chance["crop_top"], chance["crop_left"])
    for key in ("brightness", "contrast", "saturation"):
        if settings[key] and (channels > 1 or key != "saturation"):
            lowest = max(0.0, 1 - settings[key])
            done[key] = round(lowest + (1 + settings[key] - lowest) * chance[key], _DIGITS)
    if settings["hue"] and channels > 1:
        done["hue"] = round(settings["hue"] * (2 * chance["hue"] - 1), _DIGITS)
    if settings["cutout"]:
        side = round(settings["cutout"] * min(height, width))
        done["cutout"] = _box((height, width), (side, side), chance["cutout_top"], chance["cutout_left"])
    return done, chance


def draw_mix(
    random: np.random.Generator, settings: Mapping[str, float], chance: dict[str, float], size: tuple[int, int]
) -> tuple[str, Record]:
    """Draw ``mixup`` or ``cutmix`` and its parameters: the image's ``share``, at least 0.5, and for cutmix the ``box``."""
    asked = [key for key in ("mixup", "cutmix") if settings[key]]
    name = asked[int(len(asked) * chance["which_mix"])]
    share = random.beta(settings[name], settings[name])
    share = round(max(share, 1 - share), _DIGITS)  # the copy is in its image's directory, so it must keep that label
    if name == "mixup":
        return name, {"share": share}
    height, width = size
    sides = max(1, int(height * math.sqrt(1 - share))), max(1, int(width * math.sqrt(1 - share)))
    box = _box(size, sides, chance["mix_top"], chance["mix_left"])
    return name, {"share": round(1 - box[2] * box[3] / (height * width), _DIGITS), "box": box}


def _box(size: tuple[int, int], sides: tuple[int, int], top: float, left: float) -> list[int]:
    """Return [top, left, height, width] of a box inside the image, from positions in [0, 1)."""
    height, width = (min(max(side, 1), full) for side, full in zip(sides, size, strict=True))
    return [int(top * (size[0] - height + 1)), int(left * (size[1] - width + 1)), height, width]


def apply(image: Tensor, operations: Record) -> Tensor:
    """Apply the operations in order to an image, uint8 [C, H, W]; its size does not change."""
    for name, value in operations.items():
        image = _OPERATIONS[name](image, value)
    return image


def mix(image: Tensor, other: Tensor, name: str, value: Record) -> Tensor:
    """Mix two images, uint8 [C, H, W], with mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019)."""
    if name == "mixup":
        return (value["share"] * double(image) + (1 - value["share"]) * double(other)).round().to(torch.uint8)
    top, left, height, width = value["box"]
    mixed = image.clone()
    mixed[:, top : top + height, left : left + width] = other[:, top : top + height, left : left + width]
    return mixed


def _rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotate with genimg's function, which reflects at the corners; torchvision's fills them with one colour."""
    return to_uint8(rotate(to_float(image[None]), torch.tensor([degrees])))[0]


def _cut_out(image: Tensor, box: list[int]) -> Tensor:
    """Fill a box with grey (DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout")."""
    colour = torch.full((len(image), 1, 1), _GREY, dtype=torch.uint8)
    colour[3:] = 255  # alpha
    return F.erase(image, *box, v=colour.expand(-1, box[2], box[3]))


def _of_colours(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Return the change applied to all channels but alpha, which torchvision's functions do not support."""
    return lambda image, value: torch.cat([change(image[:3], value), image[3:]])


_OPERATIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "horizontal_flip": lambda image, _: F.horizontal_flip(image),
    "vertical_flip": lambda image, _: F.vertical_flip(image),
    "rotation": _rotated,
    "crop": lambda image, box: F.resized_crop(image, *box, size=list(image.shape[1:]), antialias=True),
    "brightness": _of_colours(F.adjust_brightness),
    "contrast": _of_colours(F.adjust_contrast),
    "saturation": _of_colours(F.adjust_saturation),
    "hue": _of_colours(F.adjust_hue),
    "cutout": _cut_out,
}


# Files


@dataclass(frozen=True, kw_only=True)
class CopyJob:
    """The images to copy and the settings of the copies.

    Attributes:
        root: Directory of the images.
        paths: Paths of the images, relative to ``root``.
        texts: Captions of the images; None if there are none.
        copies: Number of copies of each image.
        originals: Whether to write copies of the original images as well.
        seed: Seed of all random numbers.
        settings: Strength of each operation, with the keys of ``RANGES``.
    """

    root: Path
    paths: Sequence[str]
    texts: Sequence[str] | None
    copies: int
    originals: bool
    seed: int
    settings: Mapping[str, float]

    @cached_property
    def has_classes(self) -> bool:
        """Whether the images have classes, as ``data=folder`` would find."""
        return all("/" in path for path in self.paths) and len({_class(path) for path in self.paths}) > 1


def write_copies(job: CopyJob, index: int, folder: Path, stopped: threading.Event) -> list[Record] | str:
    """Write the copies of one image below ``folder``, whose subdirectories must exist.

    Args:
        job: Images and settings.
        index: Index of the image.
        folder: Root of the output.
        stopped: Event that is set when the result is no longer needed.

    Returns:
        A record of each file, or the decoder's error if the image is corrupt.

    Raises:
        DataError: If the image must be mixed and no other image can be decoded.
        OSError: If a file cannot be written.
    """
    path = job.paths[index]
    try:
        image = read_image(job.root / path)
    except CorruptImageError as error:
        return " ".join(str(error).split("\n"))
    text = {} if job.texts is None else {"text": job.texts[index]}
    lines: list[Record] = []
    if job.originals:
        shutil.copyfile(job.root / path, folder / path)
        lines.append({"file_name": path, **text, "source": path, "operations": {}})
    for number in range(job.copies):
        if stopped.is_set():
            break
        # NumPy accepts a seed of any length.
        key = hashlib.sha256(os.fsencode(f"{job.seed}\0{path}\0{number}")).digest()
        random = np.random.default_rng(list(key))
        operations, chance = draw(random, job.settings, image.shape)
        changed = apply(image, operations)
        line = {"file_name": copy_name(path, number), **text, "source": path, "operations": operations}
        if job.settings["mixup"] or job.settings["cutmix"]:
            name, value = draw_mix(random, job.settings, chance, (image.shape[1], image.shape[2]))
            partner, other = _partner(job, index, chance["partner"], image)
            changed = mix(changed, other, name, value)
            operations[name] = {"with": partner, **value}
            if job.has_classes:
                line["labels"] = _shares(_class(path), _class(partner), value["share"])
        _write_image(changed, folder / copy_name(path, number))
        lines.append(line)
    return lines


def _partner(job: CopyJob, index: int, chance: float, image: Tensor) -> tuple[str, Tensor]:
    """Return another image, converted to the size and channels of ``image``; corrupt ones are replaced by the next."""
    channels, height, width = image.shape
    first = int(chance * (len(job.paths) - 1))
    for step in range(len(job.paths) - 1):
        candidate = job.paths[(index + 1 + (first + step) % (len(job.paths) - 1)) % len(job.paths)]
        try:
            return candidate, read_image(job.root / candidate, PixelFormat(height, width, channels))
        except CorruptImageError as error:  # counted when its own copies are made
            problem = error
    raise DataError(f"no other image can be mixed with {job.root / job.paths[index]} ({problem})", "repair or remove it")


def _shares(own: str, other: str, share: float) -> dict[str, float]:
    return {own: 1.0} if own == other else {own: share, other: round(1 - share, _DIGITS)}


def read_image(path: Path, pixels: PixelFormat | None = None) -> Tensor:
    """Return an image as uint8 [C, H, W], in the format ``pixels``; None keeps the file's size and grey, RGB or RGBA.

    Raises:
        CorruptImageError: If the file cannot be decoded.
    """
    try:
        with open_image(path) as file:
            image = upright(file)
            own = PixelFormat(image.height, image.width, _channels(image))
            return torch.from_numpy(np.array((pixels or own).apply(image)))  # a copy, because Pillow's array may be read-only
    except (OSError, ValueError) as error:
        raise CorruptImageError(f"{path}: {error}") from error


def _channels(image: Image.Image) -> int:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return 4
    return 1 if image.mode in ("1", "L", "F") or image.mode.startswith("I") else 3


def _write_image(image: Tensor, path: Path) -> None:
    array = image.permute(1, 2, 0).numpy()  # [H, W, C]
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())  # Pillow itself does not report a full disk


def stem(path: str) -> str:
    """Return a path without its extension."""
    return str(PurePosixPath(path).with_suffix(""))


def copy_name(path: str, number: int) -> str:
    """Return the path of a copy, relative to the root as ``path`` is."""
    return f"{stem(path)}-{number}.png"


def _class(path: str) -> str:
    return path.split("/", 1)[0]
