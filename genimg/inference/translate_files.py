"""Translate image files or their halves in batches of one size, and write a grid of some results."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, ConfigError
from genimg.inference.image_files import InputImage, cell, grid_of, halved, read_image, read_mask, side_by_side, with_masks
from genimg.inference.translate import ImageTranslator, MemoryFullError, blank_source, needs_mask
from genimg.inference.translate_labels import LabelTranslator
from genimg.methods.capabilities import Translates
from genimg.types import height_width
from genimg.utils.files import naming_full_disk
from genimg.utils.images import save_png, write_png
from genimg.utils.outputs import Record, own_folder, stamp_of
from genimg.utils.paths import relative
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)

_MAX_SHOWN = 16  # images in the grid
_SAME_RATIO = 0.02  # tolerance of the aspect ratio of two images side by side
_FAR = 2.0  # ratio of the sides of two images of the same shape
_PROBE = 8  # pixels
_USUAL_TILE = 256  # pixels, suggested in messages


def with_fitting_masks(pictures: list[InputImage], method: Translates, given: str | None) -> list[InputImage]:
    """Return the images, with masks if the model fills holes.

    Args:
        pictures: The images.
        method: The model.
        given: File or directory in ``mask=``; None for none.

    Raises:
        ConfigError: If masks are needed and not given, or given and not needed.
        DataError: If an image's mask is missing.
    """
    how = "set mask=DIRECTORY, with files named like the images, or mask=FILE; missing pixels must be white"
    return with_masks(pictures, given) if needs_mask(method, given, "mask", how) else pictures


def require_whole(pictures: Sequence[InputImage], facts: DataFacts, direction: str) -> None:
    """Reject files that look like the training files, which hold two images side by side.

    Args:
        pictures: The images, with their sizes.
        facts: Facts about the training data.
        direction: Direction of training; ``b2a`` translates the right images to the left ones.

    Raises:
        ConfigError: If there is such a file; the message names the first.
    """
    height, width = height_width(facts.image_size)
    for picture in pictures:
        ratio = (picture.size[1] / picture.size[0]) / (2 * width / height)
        if abs(ratio - 1) < _SAME_RATIO:
            source = "right" if direction == "b2a" else "left"
            raise ConfigError(
                f"{picture.file} of {picture.size[0]}x{picture.size[1]} pixels looks like two images side by side, the "
                f"format of this model's training data: set half={source} to translate the {source} one, or half=whole to "
                "translate whole files",
                key="half",
            )


def halves(pictures: Sequence[InputImage], half: str, mask: str | None) -> list[InputImage]:
    """Return the left or right halves of files with two images side by side.

    Args:
        pictures: The files, with their sizes.
        half: ``left`` or ``right``.
        mask: File or directory in ``mask=``; None for none.

    Raises:
        ConfigError: If the width of a file is odd, or there are masks.
    """
    if mask is not None:
        raise ConfigError(f"half={half} and mask={mask} cannot be combined: split the files beforehand")
    return halved(pictures, half)


def warn_of_unusual_sizes(translator: ImageTranslator, pictures: Sequence[InputImage], facts: DataFacts) -> None:
    """Warn once if the network would see images of a very different size than in training.

    Args:
        translator: Translator of the images. A translator between classes brings them to the training size itself.
        pictures: The images, with their sizes.
        facts: Facts about the training data.
    """
    if isinstance(translator, LabelTranslator):
        return
    factor = blank_source(translator.method.task, translator.channels, _PROBE).shape[2] / _PROBE  # super-resolution enlarges
    height, width = height_width(facts.image_size)
    trained = math.sqrt(height * width) / factor
    far = [each for each in pictures if not 1 / _FAR <= math.sqrt(each.size[0] * each.size[1]) / trained <= _FAR]
    if far:
        log.warning(
            "%s of %dx%d pixels%s far from the size that this model was trained at, %dx%d (height x width): objects have "
            "another scale than in training, so the result may be poor. Resize the images, or train with another "
            "data.image_size",
            far[0].file, *far[0].size, f" and {len(far) - 1} more are" if len(far) > 1 else " is",
            round(height / factor), round(width / factor),
        )  # fmt: skip


def translate_files(
    translator: ImageTranslator,
    pictures: Sequence[InputImage],
    levels: tuple[float, float] | None,
    output: Path,
    record: Record,
    *,
    grid: bool,
) -> None:
    """Write the translations of all images, and a grid of some sources and translations.

    Args:
        translator: Translator of the images.
        pictures: The images, with their sizes.
        levels: Values of 16- and 32-bit images that become black and white; see ``PixelFormat``.
        output: Absolute path of the directory, from ``checked_output``.
        record: Metadata stored in the directory.
        grid: Whether to write the grid.

    Raises:
        DataError: If an image cannot be decoded.
        CheckpointError: If the model returns NaN or infinite values.
        ConfigError: If the memory is too small.
    """
    with naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"):
        with own_folder(output, record) as folder:
            shown = _write_all(translator, pictures, levels, folder)
        count = len(pictures) * translator.num_samples
        log.info("%d image%s: %s", count, "s" * (count > 1), relative(output))
        if grid:
            write_png(side_by_side(shown), grid_of(output), stamp_of(record["made_by"]))
            few = "" if len(shown) == len(pictures) else f", the first {len(shown)}"
            made = "translation" if translator.num_samples == 1 else f"{translator.num_samples} translations"
            log.info("grid of images, each with its %s on the right%s: %s", made, few, relative(grid_of(output)))


def _write_all(
    translator: ImageTranslator, pictures: Sequence[InputImage], levels: tuple[float, float] | None, folder: Path
) -> list[tuple[Tensor, ...]]:
    """Write the translations, and return the first sources and results for the grid."""
    shown: dict[int, tuple[Tensor, ...]] = {}
    with Progress(total=len(pictures), desc="translating", unit="image") as progress:
        for batch in _batches(translator, pictures):
            images = torch.stack([read_image(each, translator.channels, levels) for each in batch])
            masks = torch.stack([read_mask(each) for each in batch]) if batch[0].mask is not None else None
            try:
                sources, results = translator(images, masks, [each.number for each in batch])
            except MemoryFullError as error:
                raise ConfigError(_too_large(batch, translator), key="tile") from error
            except CheckpointError as error:
                raise CheckpointError(f"{batch[0].file}: {error}") from error
            for picture, source, *own in zip(batch, sources, *results, strict=True):
                for name, result in zip(names_of_translations(picture.name, len(own)), own, strict=True):
                    save_png(result, folder / name)
                if picture.number < _MAX_SHOWN:
                    shown[picture.number] = cell(source), *map(cell, own)
            progress.update(len(batch))
    return [shown[number] for number in sorted(shown)]


def names_of_translations(name: str, count: int) -> list[str]:
    """Return the names of an image's translations: its own, or ``photo_0.png``, ``photo_1.png``, ... if there are several."""
    path = PurePosixPath(name)
    return [name] if count == 1 else [str(path.with_stem(f"{path.stem}_{number}")) for number in range(count)]


def _batches(translator: ImageTranslator, pictures: Sequence[InputImage]) -> Iterator[list[InputImage]]:
    """Yield batches of images of one size, the largest first, so that a lack of memory causes an error at the start.

    A batch has one image in training mode, because batch statistics would mix images, and for tiles, because they are large.
    """
    largest_first = sorted(pictures, key=lambda each: (-each.size[0] * each.size[1], each.size, each.number))
    for size, group in groupby(largest_first, key=lambda each: each.size):
        alone = translator.method.sampled_mode == "train" or (translator.tile is not None and max(size) > translator.tile)
        count, same = 1 if alone else translator.batch_size, list(group)
        yield from (same[start : start + count] for start in range(0, len(same), count))


def _too_large(batch: Sequence[InputImage], translator: ImageTranslator) -> str:
    """Return the message, with advice, for a batch that does not fit into memory."""
    tile, multiple = translator.tile, translator.method.size_divisor
    smaller = _USUAL_TILE if tile is None else tile // 2
    smaller = max(translator.least, smaller // multiple * multiple)
    advice = [f"tile={smaller}"] if tile is None or smaller < tile else []
    advice += ["a smaller batch_size"] if translator.batch_size > 1 else []
    several = f", {len(batch)} at once" if len(batch) > 1 else ""
    height, width = batch[0].size
    return (
        f"the memory is too small for {batch[0].file} of {height}x{width} pixels{several}: set "
        f"{' or '.join(advice) or 'another device'}"
    )
