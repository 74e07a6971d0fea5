"""genimg-translate: images from images, by a checkpoint of a model that translates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema.commands import Translate
from genimg.data.decode import checked_levels
from genimg.data.facts import DataFacts
from genimg.data.tasks.base import Task
from genimg.errors import CheckpointError, ConfigError
from genimg.inference.image_files import (
    Picture,
    cell,
    checked_output,
    find_pictures,
    grid_of,
    halved,
    read_image,
    read_mask,
    side_by_side,
    with_masks,
    with_sizes,
)
from genimg.inference.translate import MemoryFullError, Translator, image_channels, least_side
from genimg.methods.image_to_image import Translation
from genimg.training.device import choose_device
from genimg.types import height_width
from genimg.utils.files import naming_full_disk
from genimg.utils.images import write_png
from genimg.utils.mappings import flatten
from genimg.utils.outputs import own_folder, record_of, stamp_of
from genimg.utils.paths import relative

log = logging.getLogger(__name__)

_COMMAND = "genimg-translate"
_MOST_SHOWN = 16  # images in the grid
_SAME_RATIO = 0.02  # by which the shape of two images side by side may differ
_USUAL_TILE = 256  # pixels, to be advised


def translate(composed: DictConfig) -> None:
    """Write what a checkpoint makes of every image of ``input``, and a grid of some."""
    options, groups = read_options(composed, Translate, untrusted.GROUPS)
    _check(options)
    pictures = find_pictures(options.input)
    device = choose_device(options.device)
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, flatten(groups) if groups else {})
    data, facts = checkpoint.config["data"], checkpoint.facts
    method = _loaded(options, checkpoint, device)
    direction = _direction(options.direction, method, data)
    if options.model_mode is not None:
        method.set_mode(options.model_mode)
    pictures = _masked(options, pictures, method.task)
    read = {key: getattr(options, key) for key in ("input", "mask")}
    output = checked_output(options.output, read, pictures, grid=options.grid, overwrite=options.overwrite,
                            command=_COMMAND)  # fmt: skip
    pictures = _halved(options, with_sizes(pictures), data, facts)
    source_channels = facts.channels_into(backwards=direction in method.directions[1:])
    channels, levels = image_channels(method.task, source_channels), checked_levels(data.get("range"))
    least = least_side(method, direction, device, source_channels, max(height_width(facts.image_size)))
    _check_tile(options.tile, method.multiple, least)
    translator = Translator(method, direction, device, options.tile, options.overlap, options.batch_size,
                            options.seed, least)  # fmt: skip
    log.info("from %s, trained on %d images", relative(checkpoint.path), checkpoint.images)
    with naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"):
        record = record_of(
            _COMMAND,
            checkpoint=str(checkpoint.path.resolve()),
            checkpoint_images=checkpoint.images,
            options={key: getattr(options, key) for key in ("input", "mask", "direction", "model_mode", "tile", "seed")},
        )
        with own_folder(output, record) as folder:  # fmt: skip
            shown = _write_all(translator, pictures, channels, levels, folder)
        log.info("%d image%s: %s", len(pictures), "s" * (len(pictures) > 1), relative(output))
        if options.grid:
            write_png(side_by_side(shown), grid_of(output), stamp_of(_COMMAND))
            few = "" if len(shown) == len(pictures) else f", the first {len(shown)}"
            log.info("images and, right of each, what was made of it%s: %s", few, relative(grid_of(output)))


# What is refused before the work


def _check(options: Translate) -> None:
    """Refuse what no model can do.

    Raises:
        ConfigError: Naming key and value.
    """
    for key in ("input", "output", "mask"):
        if getattr(options, key) == "":
            raise ConfigError(f"{key}={getattr(options, key)} is not the name of a file or directory")
    for key, least in (("batch_size", 1), ("overlap", 0), ("tile", 1)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise ConfigError(f"{key}={value} must be {least} or more{' pixels, or null' if key == 'tile' else ''}")
    tile, overlap = options.tile, options.overlap
    if tile is not None and 2 * overlap >= tile:
        raise ConfigError(f"overlap={overlap} must be less than half of tile={tile}: set overlap={(tile - 1) // 2} or less")


def _loaded(options: Translate, checkpoint: TrainedCheckpoint, device: torch.device) -> Translation:
    """The checkpoint's method.

    Raises:
        ConfigError: If it does not translate.
    """
    method = checkpoint.method(device)
    if not isinstance(method, Translation):
        raise ConfigError(f"ckpt={options.ckpt}: this model makes images from nothing: use genimg-sample")
    return method


def _direction(given: object, method: Translation, data: Mapping[str, Any]) -> str | None:
    """The one to translate in; None of a method that has no choice.

    Raises:
        ConfigError: If there is no such direction.
    """
    if method.directions:
        if given is not None and given not in method.directions:
            raise ConfigError(f"direction={given} is unknown: choose {' or '.join(method.directions)}")
        return method.directions[0] if given is None else str(given)
    if given is not None:
        way = f"with data.direction={data['direction']}" if "direction" in data else "to make a task's targets of its sources"
        raise ConfigError(f"direction={given}: this model was trained {way}, and knows no other direction: remove it")
    return None


def _masked(options: Translate, pictures: list[Picture], task: Task) -> list[Picture]:
    """With a mask each where the task has masks.

    Raises:
        ConfigError: If masks are needed and not given, or given and not needed.
    """
    if "mask" not in task.keys:
        if options.mask is not None:
            raise ConfigError(f"mask={options.mask} has no effect: this model was trained without masks: remove it")
        return pictures
    if options.mask is None:
        raise ConfigError(
            "mask is required, because this model fills holes: set mask=DIRECTORY, of files named as the images, or mask=FILE, "
            "white where pixels are missing",
            key="mask",
        )
    return with_masks(pictures, options.mask)


def _halved(options: Translate, pictures: list[Picture], data: Mapping[str, Any], facts: DataFacts) -> list[Picture]:
    """The half of each file that is to be translated; whole files where none is.

    Raises:
        ConfigError: If a file looks like the pairs that the model was trained on and the options do not say what it is.
    """
    half = options.half
    if half in ("left", "right"):
        if options.mask is not None:
            raise ConfigError(f"half={half} and mask={options.mask} do not go together: cut the files beforehand")
        return halved(pictures, half)
    in_one_file = str(data["_target_"]).endswith("paired.paired") and data.get("root") is not None
    if half is None and in_one_file:
        height, width = height_width(facts.image_size)
        for picture in pictures:
            ratio = (picture.size[1] / picture.size[0]) / (2 * width / height)
            if abs(ratio - 1) < _SAME_RATIO:
                source = "right" if data["direction"] == "b2a" else "left"
                raise ConfigError(
                    f"{picture.file} of {picture.size[0]}x{picture.size[1]} pixels looks like two images side by side, as this "
                    f"model was trained on: half={source} translates the {source} one, from which it makes the other; "
                    "half=whole takes files as they are",
                    key="half",
                )
    return pictures


def _check_tile(tile: int | None, multiple: int, least: int) -> None:
    """Refuse tiles that the network does not take.

    Raises:
        ConfigError: Naming one that it takes.
    """
    if tile is not None and tile % multiple:
        raise ConfigError(f"tile={tile} must be a multiple of {multiple} pixels, as this model's images: set "
                         f"tile={max(least, round(tile / multiple) * multiple)}")  # fmt: skip
    if tile is not None and tile < least:
        raise ConfigError(f"tile={tile} is too small for this model: set tile={least} or more")


# The work


def _write_all(
    translator: Translator, pictures: Sequence[Picture], channels: int, levels: tuple[float, float] | None, output: Path
) -> list[tuple[Tensor, Tensor]]:
    """Write what is made of all images.

    Returns:
        The first sources and results, for the grid.

    Raises:
        DataError: If an image cannot be decoded.
        CheckpointError: If the model makes no image of it.
        ConfigError: If the memory is too small.
    """
    shown: dict[int, tuple[Tensor, Tensor]] = {}
    with tqdm(total=len(pictures), desc="translating", unit="image", disable=None) as progress:
        for batch in _batches(translator, pictures):
            images = torch.stack([read_image(each, channels, levels) for each in batch])
            masks = torch.stack([read_mask(each) for each in batch]) if batch[0].mask is not None else None
            try:
                sources, results = translator(images, masks, batch[0].number)
            except MemoryFullError as error:
                raise ConfigError(_too_large(batch, translator), key="tile") from error
            except CheckpointError as error:
                raise CheckpointError(f"{batch[0].file}: {error}") from error
            for picture, source, result in zip(batch, sources, results, strict=True):
                write_png(result, output / picture.name)
                if picture.number < _MOST_SHOWN:
                    shown[picture.number] = cell(source), cell(result)
            progress.update(len(batch))
    return [shown[number] for number in sorted(shown)]


def _batches(translator: Translator, pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Images of one size, the largest first, so that a memory that is too small shows at once.

    In training mode they go one by one, because batch statistics would mix them; in tiles too, because they are large.
    """
    largest_first = sorted(pictures, key=lambda each: (-each.size[0] * each.size[1], each.size, each.number))
    for size, group in groupby(largest_first, key=lambda each: each.size):
        alone = translator.method.sampled_mode == "train" or (translator.tile is not None and max(size) > translator.tile)
        count, same = 1 if alone else translator.batch_size, list(group)
        yield from (same[start : start + count] for start in range(0, len(same), count))


def _too_large(batch: Sequence[Picture], translator: Translator) -> str:
    """What to do where the memory is too small for a batch."""
    tile, multiple = translator.tile, translator.method.multiple
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
