"""Find, check and decode the image files that genimg-translate and genimg-sample read, and arrange images in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genimg.data.datasets.file_index import list_images
from genimg.data.decode import PixelFormat, half_of
from genimg.errors import ConfigError, DataError
from genimg.utils.files import check_writable
from genimg.utils.images import grid as grid_of_images
from genimg.utils.images import on_white, to_float, to_uint8
from genimg.utils.outputs import require_own_file, require_own_folder
from genimg.utils.paths import expanded
from genimg.utils.pillow import open_header, open_image, upright, upright_size
from genimg.utils.progress import Progress

_UNREADABLE = (OSError, ValueError)
_MAX_NAMED = 5  # invalid files named in a message
_WHITE = 128  # lowest mask level that marks a missing pixel
_CELL = 256  # maximum side in pixels of a picture in the grid


@dataclass(frozen=True)
class InputImage:
    """An image to translate.

    Attributes:
        file: File of the image.
        name: Path of the result, relative to the output.
        number: Index among all images.
        size: Height and width in pixels.
        mask: Mask file of the same size, or None.
        half: ``left`` or ``right`` if only this half of the file is the image, and ``size`` is that of the half; else None.
    """

    file: Path
    name: str
    number: int
    size: tuple[int, int] = (0, 0)
    mask: Path | None = None
    half: str | None = None


def find_pictures(given: object, key: str = "input") -> list[InputImage]:
    """Find an image, or all images below a directory, in the order of their names; sizes are not read yet.

    Args:
        given: Path of the image or directory, from the command line.
        key: Name of the option.

    Raises:
        DataError: If there are no images, or two would be written to the same file.
    """
    root = existing(key, given, "an image or a directory of images")
    if root.is_file():
        return [InputImage(root, _png(root.name), 0)]
    found: dict[str, InputImage] = {}
    for path in list_images(root, refresh=True).paths:
        name = _png(path)
        if name in found:
            raise DataError(f"{found[name].file} and {root / path} would both be written to {name}: rename one of them")
        found[name] = InputImage(root / path, name, len(found))
    if not found:
        raise DataError(f"{key}={given} holds no images: expected files such as .png or .jpg in it or in its subdirectories")
    return list(found.values())


def checked_output(
    given: object, inputs: Mapping[str, object], pictures: Sequence[InputImage], *, grid: bool, overwrite: bool, command: str
) -> Path:
    """Check the output directory and return its absolute path.

    Args:
        given: Path from the command line.
        inputs: Paths that the command reads, by option; None for an option that is not set.
        pictures: Images with their masks.
        grid: Whether to write the grid beside the directory, too; see ``grid_of``.
        overwrite: Whether to replace a directory that the command wrote, with all its contents.
        command: Name of the command that writes.

    Raises:
        ConfigError: If the path is not a directory, has contents that must not be replaced, or overlaps with the inputs.
    """
    output = expanded("output", given).resolve()
    for key, value in inputs.items():
        source = expanded(key, value).resolve()
        if value is None:
            continue
        if output.is_relative_to(source):
            what = f"{key} itself" if output == source else f"inside {key}={value}"
            raise ConfigError(f"output={given} is {what}: choose another directory")
        if source.is_relative_to(output):
            raise ConfigError(f"{key}={value} lies inside output={given}: choose another output")
    if output.is_dir():
        if any(output.iterdir()) and not overwrite:
            raise ConfigError(
                f"output={given} exists and is not empty: choose another output, or set overwrite=true to replace everything "
                f"in it, if {command} wrote it"
            )
    elif output.exists():
        raise ConfigError(f"output={given} is a file: name a directory")
    elif output.suffix.lower() in Image.registered_extensions():
        raise ConfigError(f"output={given} must be a directory, in which images keep their names: remove {output.suffix}")
    else:
        check_writable("output", output)
    if grid and grid_of(output).exists() and not overwrite:
        raise ConfigError(
            f"the grid of output={given} would replace {grid_of(output)}: move that away, or set overwrite=true or grid=false",
            key="output",
        )
    for file in {file for picture in pictures for file in (picture.file, picture.mask) if file is not None}:
        if file.resolve().is_relative_to(output) or (grid and file.resolve() == grid_of(output)):
            raise ConfigError(f"output={given} would overwrite {file}, which is an input: choose another output")
    require_own_folder(output, command)
    if grid:
        require_own_file(grid_of(output), f"the grid of output={given}")
    return output


def grid_of(output: Path) -> Path:
    """Return the path of the grid beside a directory."""
    return output.with_name(f"{output.name}.png")


def with_masks(pictures: Sequence[InputImage], given: object) -> list[InputImage]:
    """Return the images with masks: one file for all, or the files of a directory with the images' names and any extension.

    Raises:
        DataError: If a mask is missing, or two match one image.
    """
    root = existing("mask", given, "an image or a directory of images")
    if root.is_file():
        return [replace(picture, mask=root) for picture in pictures]
    masks: dict[str, str] = {}
    for path in list_images(root, refresh=True).paths:
        other = masks.setdefault(_png(path), path)
        if other != path:
            raise DataError(f"mask={given} has {other} and {path}, of which only one can be an image's mask: remove one")
    alone = [str(picture.file) for picture in pictures if picture.name not in masks]
    if alone:
        raise DataError(f"mask={given} has no mask for {_some(alone)}: expected files with the images' names and any extension")
    return [replace(picture, mask=root / masks[picture.name]) for picture in pictures]


def with_sizes(pictures: Sequence[InputImage]) -> list[InputImage]:
    """Return the images with their sizes, read from the files' headers.

    Raises:
        DataError: If files are not images, or a mask does not have its image's size.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    broken: list[str] = []
    files = list(dict.fromkeys(file for each in pictures for file in (each.file, each.mask) if file is not None))
    for file in Progress(files, desc="reading sizes", unit="image", leave=False, delay=1.0):
        try:
            with open_header(file) as image:
                width, height = upright_size(image)
                sizes[file] = height, width
        except _UNREADABLE as error:
            broken.append(f"{file} ({_reason(error)})")
    if broken:
        raise DataError(f"{_some(broken)} cannot be read: repair or remove these files")
    for picture in pictures:
        if picture.mask is not None and sizes[picture.mask] != sizes[picture.file]:
            raise DataError(
                f"the mask {picture.mask} is {_pixels(sizes[picture.mask])}, and its image {picture.file} is "
                f"{_pixels(sizes[picture.file])} (height x width): resize the mask to the image's size, without smoothing"
            )
    return [replace(picture, size=sizes[picture.file]) for picture in pictures]


def halved(pictures: Sequence[InputImage], half: str) -> list[InputImage]:
    """Return the left or right halves of files with two images side by side; sizes must be known.

    Raises:
        ConfigError: If the width of a file is odd.
    """
    for picture in pictures:
        if picture.size[1] % 2:
            raise ConfigError(f"half={half}: {picture.file} has an odd width, {picture.size[1]}, so it is not two equal images")
    return [replace(picture, half=half, size=(picture.size[0], picture.size[1] // 2)) for picture in pictures]


def read_image(picture: InputImage, channels: int, levels: tuple[float, float] | None = None) -> Tensor:
    """Read an image as uint8 [C, H, W]; for ``levels``, see ``PixelFormat``."""
    try:
        with open_image(picture.file) as file:
            image = upright(file)
            if picture.half is not None:
                image = half_of(image, picture.half)
            if (image.height, image.width) != picture.size:
                raise DataError(f"it is {_pixels((image.height, image.width))}, not {_pixels(picture.size)} as its header says")
            return torch.tensor(PixelFormat(*picture.size, channels, levels=levels).apply(image))
    except _UNREADABLE as error:
        raise DataError(f"{picture.file} cannot be decoded ({_reason(error)}): repair or remove it") from error


def read_resized(file: Path, to: PixelFormat) -> Tensor:
    """Read an image as uint8 [C, H, W] in the given format.

    Raises:
        DataError: If the file cannot be decoded.
    """
    try:
        with open_image(file) as image:
            return torch.tensor(to.apply(image))
    except _UNREADABLE as error:
        raise DataError(f"{file} cannot be decoded ({_reason(error)}): repair or remove it") from error


def read_mask(picture: InputImage) -> Tensor:
    """Read an image's mask as float32 [1, H, W], 1 for missing pixels."""
    assert picture.mask is not None
    try:
        with open_image(picture.mask) as image:
            levels = np.asarray(upright(image).convert("L"))
    except _UNREADABLE as error:
        raise DataError(f"the mask {picture.mask} cannot be decoded ({_reason(error)}): repair or remove it") from error
    return torch.from_numpy(levels >= _WHITE)[None].float()


def existing(key: str, given: object, what: str) -> Path:
    """Return the path given by an option.

    Raises:
        DataError: If the path does not exist.
    """
    path = expanded(key, given)
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{key}={given} does not exist: give {what}")
    return path


def cell(picture: Tensor) -> Tensor:
    """Convert a uint8 picture [C, H, W] to RGB, with transparency on white, and shrink it to the grid's cell if needed."""
    colours = on_white(to_float(picture[None]))
    longest = max(picture.shape[1:])
    if longest > _CELL:
        size = [max(1, round(side * _CELL / longest)) for side in picture.shape[1:]]
        colours = F.interpolate(colours, size, mode="bilinear", antialias=True)
    return to_uint8(colours.expand(1, 3, -1, -1))[0]


def side_by_side(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return a grid of rows or pairs of pictures, each centred in a cell of the largest size: uint8 [3, H, W]."""
    pictures = [picture for row in rows for picture in row]
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    cells = torch.full((len(pictures), 3, height, width), 255, dtype=torch.uint8)
    for place, picture in zip(cells, pictures, strict=True):
        top, left = (height - picture.shape[1]) // 2, (width - picture.shape[2]) // 2
        place[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return grid_of_images(to_float(cells))


def _png(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(".png"))


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
