"""A trained translator of images of any size, within the memory that there is."""

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
from genimg.methods.image_to_image import Translation
from genimg.types import height_width
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import steady

_FULL = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


class MemoryFullError(UserError):
    """Of the network's device."""


@dataclass(frozen=True)
class ImageTranslator:
    """A method and how it is used; all but the network is on the CPU, where large images have room.

    Attributes:
        method: in its ``sampled_mode``.
        direction: one of its directions, or None.
        device: of the network.
        tile: pixels; larger images are cut. None cuts none.
        overlap: see ``in_tiles``.
        batch_size: of tiles.
        seed: of dropout in training mode.
        least: pixels, the shortest side that the network takes.
        channels: of images, before the task makes sources of them.
    """

    method: Translation
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
        method: Translation,
        facts: DataFacts,
        device: torch.device,
        *,
        direction: str | None,
        tile: int | None,
        overlap: int,
        batch_size: int,
        seed: int,
    ) -> ImageTranslator:
        """Return the translator of a model, which knows the sizes and channels that the model takes.

        Args:
            method: In the mode in which it translates, on the device.
            facts: About the data that the model was trained on.
            device: Of the method.
            direction: Of ``chosen_direction``.
            tile, overlap, batch_size, seed: See the attributes.

        Raises:
            ConfigError: If the tiles do not fit the model, or the memory is too small.
            CheckpointError: If the model translates no images of files.
        """
        source_channels = facts.channels_into(backwards=direction in method.directions[1:])
        channels = image_channels(method.task, source_channels)
        least = least_side(method, direction, device, source_channels, max(height_width(facts.image_size)))
        check_tiles(tile, overlap, multiple=method.size_divisor, least=least)
        return cls(method, direction, device, tile, overlap, batch_size, seed, least, channels)

    def __call__(self, images: Tensor, masks: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        """Sources as pictures, and what is made of them: uint8 [N, C, H, W].

        Args:
            images: uint8 [N, C, h, w].
            masks: float32 [N, 1, h, w], of inpainting.
            number: of the first image; its dropout depends on the seed and this number alone.

        Raises:
            MemoryFullError: If the device has no room for them.
            CheckpointError: If the model answers NaN.
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

            # In training mode batch statistics would mix the tiles.
            together = 1 if self.method.sampled_mode == "train" else self.batch_size
            return in_tiles(network, source, **place, batch_size=together)

    def _network(self, source: Tensor) -> Tensor:
        return run(self.method, source, self.direction, self.device)


def chosen_direction(method: Translation, given: str | None, trained: str = "in one direction") -> str | None:
    """Return the direction to translate in: the requested one, or the first; None for a model that has no choice.

    Args:
        method: The model.
        given: The requested direction; None for the default.
        trained: How the model was trained, for messages; see ``way_of_training``.

    Raises:
        ConfigError: If there is no such direction.
    """
    if given is None or given in method.directions:
        return given or next(iter(method.directions), None)
    if method.directions:
        raise ConfigError(f"direction={given} is unknown: choose {' or '.join(method.directions)}")
    raise ConfigError(f"direction={given}: this model was trained {trained}, and knows no other direction: remove it")


def way_of_training(data: Mapping[str, Any]) -> str:
    """Return how a model with one direction was trained, as the end of a sentence.

    Args:
        data: The ``data`` group of the checkpoint's config.
    """
    return f"with data.direction={data['direction']}" if "direction" in data else "to make a task's targets of its sources"


def needs_mask(method: Translation, given: object, key: str, how: str) -> bool:
    """Return whether a model fills holes, and refuse masks that do not go with that.

    Args:
        method: The model.
        given: The masks, or a path; None for none.
        key: Name of the option.
        how: How to give masks, for the message about missing ones.

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


def run(method: Translation, source: Tensor, direction: str | None, device: torch.device) -> Tensor:
    """What a method on a device makes of sources [N, S, H, W] on the CPU: [N, T, H, W] on the CPU.

    Raises:
        MemoryFullError: if the device has no room for it.
    """
    try:
        return method.translate(source.to(device, memory_format=torch.channels_last), direction).cpu()
    except RuntimeError as error:  # torch.OutOfMemoryError among them; the CPU, MPS and cuBLAS have no type of their own
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL):
            raise MemoryFullError(str(error).split("\n", 1)[0]) from error
        raise


def image_channels(task: Task, source_channels: int) -> int:
    """How many an image must have for its source to have so many; the most, because a task may make less of colours.

    Raises:
        CheckpointError: If no image file has a fitting number.
    """
    for channels in (4, 3, 1):
        images = torch.zeros(1, channels, 8, 8)
        try:
            source = task.given(images, images[:, :1] if "mask" in task.keys else None)
        except ValueError:  # not made for so many
            continue
        if source.shape[1] == source_channels:
            return channels
    raise CheckpointError(f"this model translates sources of {source_channels} channels, which image files do not have")


def least_side(method: Translation, direction: str | None, device: torch.device, channels: int, trained: int) -> int:
    """The shortest side, in pixels, that a network takes: it reflects borders, and normalises what is left of small images.

    Args:
        channels: of sources.
        trained: the longest side of the images it was trained on.

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
        except (RuntimeError, ValueError):  # PyTorch's, of layers that want larger images
            if side >= enough:
                raise
        side = min(2 * side, enough)
