"""Translation of images of any size with a trained model, in limited memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genimg.data.facts import DataFacts
from genimg.data.tasks.base import Task
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.inference.checks import require_finite
from genimg.inference.tiling import check_tiles, in_tiles, num_tiles, padded
from genimg.methods.capabilities import Translates
from genimg.types import height_width
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import steady

_FULL = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


class MemoryFullError(UserError):
    """The memory of the network's device is full."""


@dataclass(frozen=True)
class ImageTranslator:
    """A model and its settings for translation. Only the network runs on the device, and large images are kept on the CPU.

    Attributes:
        method: Model in its ``sampled_mode``.
        direction: One of the model's directions, or None.
        device: Device of the network.
        tile: Side in pixels of the tiles that larger images are cut into; None for no tiles.
        overlap: Overlap of the tiles in pixels; see ``in_tiles``.
        batch_size: Number of tiles in a batch.
        seed: Seed of dropout in training mode.
        least: Shortest side in pixels that the network supports.
        channels: Number of channels of images, before the task derives sources from them.
    """

    method: Translates
    direction: str | None
    device: torch.device
    tile: int | None
    overlap: int
    batch_size: int
    seed: int
    least: int
    channels: int

    @classmethod
    def of(
        cls,
        method: Translates,
        facts: DataFacts,
        device: torch.device,
        *,
        direction: str | None,
        tile: int | None,
        overlap: int,
        batch_size: int,
        seed: int,
    ) -> ImageTranslator:
        """Build a translator, and find the sizes and channels that the model supports.

        Args:
            method: Model in its ``sampled_mode``, on the device.
            facts: Facts about the training data.
            device: Device of the model.
            direction: Direction from ``chosen_direction``.
            tile, overlap, batch_size, seed: See the attributes.

        Raises:
            ConfigError: If the tiles do not fit the model, or the memory is too small.
            CheckpointError: If no image file has the channels that the model needs.
        """
        source_channels = facts.channels_into(backwards=direction in method.directions[1:])
        channels = image_channels(method.task, source_channels)
        least = least_side(method, direction, device, source_channels, max(height_width(facts.image_size)))
        check_tiles(tile, overlap, multiple=method.size_divisor, least=least)
        return cls(method, direction, device, tile, overlap, batch_size, seed, least, channels)

    def __call__(self, images: Tensor, masks: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        """Return the sources as viewable images, and their translations: uint8 [N, C, H, W].

        Args:
            images: Images, uint8 [N, C, h, w].
            masks: Masks for inpainting, float32 [N, 1, h, w]; None for none.
            number: Index of the first image; dropout depends only on the seed and this index.

        Raises:
            MemoryFullError: If the device has too little memory.
            CheckpointError: If the model returns NaN or infinite values.
        """
        task = self.method.task
        source = task.given(to_float(images), masks)
        height, width = source.shape[2:]
        whole = padded(source, self.method.size_divisor, self.least)
        with steady(self.seed, number):
            if self.tile is not None and max(whole.shape[2:]) > self.tile:
                output = torch.cat([self._in_tiles(each, self.tile) for each in whole.split(1)])
            else:
                output = self._network(whole)
        output = require_finite(output[:, :, :height, :width])
        return to_uint8(task.shown(source)), to_uint8(task.result(output, source))

    def _in_tiles(self, source: Tensor, tile: int) -> Tensor:
        place = {"tile": tile, "overlap": self.overlap, "multiple": self.method.size_divisor}
        count = num_tiles(*source.shape[2:], **place)
        with tqdm(total=count, desc="tiles", unit="tile", leave=False, delay=1.0, disable=None) as progress:

            def network(tiles: Tensor) -> Tensor:
                outputs = self._network(tiles)
                progress.update(len(tiles))
                return outputs

            # In training mode, batch statistics would mix the tiles.
            together = 1 if self.method.sampled_mode == "train" else self.batch_size
            return in_tiles(network, source, **place, batch_size=together)

    def _network(self, source: Tensor) -> Tensor:
        return run(self.method, source, self.direction, self.device)


def chosen_direction(method: Translates, given: str | None, trained: str = "in one direction") -> str | None:
    """Return the requested direction, or the first; None for a model with a single direction.

    Args:
        method: The model.
        given: The requested direction; None for the default.
        trained: Description of how the model was trained, for messages; see ``way_of_training``.

    Raises:
        ConfigError: If the model does not have the requested direction.
    """
    if given is None or given in method.directions:
        return given or next(iter(method.directions), None)
    if method.directions:
        raise ConfigError(f"direction={given} is unknown: choose {' or '.join(method.directions)}")
    raise ConfigError(f"direction={given}: this model was trained {trained} and has no other direction: remove it")


def way_of_training(data: Mapping[str, Any]) -> str:
    """Return the end of a sentence that begins with "this model was trained", for a model with a single direction.

    Args:
        data: The ``data`` group of the checkpoint's config.
    """
    return f"with data.direction={data['direction']}" if "direction" in data else "to map a task's sources to its targets"


def needs_mask(method: Translates, given: object, key: str, how: str) -> bool:
    """Return whether a model fills holes, after checking that masks are given if and only if it does.

    Args:
        method: The model.
        given: Masks or their path; None for none.
        key: Name of the option.
        how: Instructions for giving masks, for the message about missing masks.

    Raises:
        ConfigError: If masks are needed and not given, or given and not needed.
    """
    needs = "mask" in method.task.keys
    if needs and given is None:
        raise ConfigError(f"{key} is required, because this model fills holes: {how}", key=key)
    if given is not None and not needs:
        what = f"{key}={given}" if isinstance(given, str) else key
        raise ConfigError(f"{what} has no effect: this model was trained without masks: remove it", key=key)
    return needs


def run(method: Translates, source: Tensor, direction: str | None, device: torch.device) -> Tensor:
    """Translate sources [N, S, H, W] on the device; sources and the result [N, T, H, W] are on the CPU.

    Raises:
        MemoryFullError: If the device has too little memory.
    """
    try:
        return method.translate(source.to(device, memory_format=torch.channels_last), direction).cpu()
    except RuntimeError as error:  # includes torch.OutOfMemoryError; the CPU, MPS and cuBLAS have no specific type
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL):
            raise MemoryFullError(str(error).split("\n", 1)[0]) from error
        raise


def blank_source(task: Task, channels: int, side: int) -> Tensor:
    """Return the source [1, C, h, w] that a task derives from a square grey image, to find the shapes of the task's sources.

    Args:
        task: The task.
        channels: Number of channels of the image.
        side: Side of the image in pixels.

    Raises:
        ValueError: If the task does not support this number of channels.
    """
    images = torch.zeros(1, channels, side, side)
    return task.given(images, images[:, :1] if "mask" in task.keys else None)


def image_channels(task: Task, source_channels: int) -> int:
    """Return the largest number of image channels from which the task derives ``source_channels``.

    If the task discards colours, several numbers are possible; the largest is returned.

    Raises:
        CheckpointError: If no number of channels of image files fits.
    """
    for channels in (4, 3, 1):
        try:
            source = blank_source(task, channels, 8)
        except ValueError:  # the task does not support this number
            continue
        if source.shape[1] == source_channels:
            return channels
    raise CheckpointError(f"this model translates sources of {source_channels} channels, which image files do not have")


def least_side(method: Translates, direction: str | None, device: torch.device, channels: int, trained: int) -> int:
    """Find the shortest side in pixels that a network supports; reflection padding and normalisation limit it.

    Args:
        method: The model.
        direction: Direction of the translation.
        device: Device of the model.
        channels: Number of channels of the sources.
        trained: Longest side in pixels of the training images.

    Raises:
        ConfigError: If the memory is too small.
    """
    side, enough = method.size_divisor, -(-trained // method.size_divisor) * method.size_divisor
    while True:
        try:
            run(method, torch.zeros(1, channels, side, side), direction, device)
            return side
        except MemoryFullError as error:
            raise ConfigError(
                f"device={device}: the memory is too small for images of {side}x{side} pixels ({error}): choose another device"
            ) from error
        except (RuntimeError, ValueError):  # from PyTorch layers that need larger images
            if side >= enough:
                raise
        side = min(2 * side, enough)
