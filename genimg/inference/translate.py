"""A trained translator of images of any size, within the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from genimg.data.tasks.base import Task
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.inference.tiling import in_tiles, num_tiles, padded
from genimg.methods.image_to_image import Translation
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import steady

_FULL = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


class MemoryFullError(UserError):
    """Of the network's device."""


@dataclass(frozen=True)
class Translator:
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
    """

    method: Translation
    direction: str | None
    device: torch.device
    tile: int | None
    overlap: int
    batch_size: int
    seed: int
    least: int

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
        whole = padded(source, self.method.multiple, self.least)
        with steady(self.seed, number):
            if self.tile is not None and max(whole.shape[2:]) > self.tile:
                output = torch.cat([self._in_tiles(each, self.tile) for each in whole.split(1)])
            else:
                output = self._network(whole)
        output = output[:, :, :height, :width]
        if not output.isfinite().all():
            raise CheckpointError("the model answers NaN or infinite values: its training has diverged; use another checkpoint")
        return to_uint8(task.shown(source)), to_uint8(task.result(output, source))

    def _in_tiles(self, source: Tensor, tile: int) -> Tensor:
        place = {"tile": tile, "overlap": self.overlap, "multiple": self.method.multiple}
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
    side, enough = method.multiple, -(-trained // method.multiple) * method.multiple
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
