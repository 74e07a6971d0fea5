"""Translation of images of any size with a trained model, in limited memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genimg.data.facts import DataFacts
from genimg.data.tasks.base import Task
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.inference.checks import require_finite
from genimg.inference.tiling import check_tiles, in_tiles, num_tiles, padded
from genimg.methods.capabilities import Translates, TranslatesRandomly
from genimg.methods.sampling_options import sampling_options, translation_keys, with_one_step
from genimg.types import height_width
from genimg.utils.images import to_float, to_uint8
from genimg.utils.progress import Progress
from genimg.utils.rng import steady
from genimg.utils.words import nearest

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
        seed: Seed of dropout in training mode, and of random translations.
        least: Shortest side in pixels that the network supports.
        channels: Number of channels of images, before the task derives sources from them.
        num_samples: Number of translations of each image, 1 unless they are random.
        options: Sampling options of random translations; None for a model without them.
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
    num_samples: int = 1
    options: Any = None

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
        num_samples: int = 1,
        sampling: Mapping[str, Any] = MappingProxyType({}),
        other_options: Sequence[str] = (),
    ) -> ImageTranslator:
        """Build a translator, and find the sizes and channels that the model supports.

        Args:
            method: Model in its ``sampled_mode``, on the device.
            facts: Facts about the training data.
            device: Device of the model.
            direction: Direction from ``chosen_direction``.
            tile, overlap, batch_size, seed, num_samples: See the attributes.
            sampling: Sampling options of the model by name, which replace its defaults.
            other_options: Names of the caller's options, to suggest for a misspelt sampling option.

        Raises:
            ConfigError: If the tiles or the sampling options do not fit the model, or the memory is too small.
            CheckpointError: If no image file has the channels that the model needs.
        """
        options = options_of(method, sampling, other_options, num_samples=num_samples, tile=tile)
        source_channels = facts.channels_into(backwards=direction in method.directions[1:])
        channels = image_channels(method.task, source_channels)
        least = least_side(method, direction, device, source_channels, max(height_width(facts.image_size)))
        check_tiles(tile, overlap, multiple=method.size_divisor, least=least)
        return cls(method, direction, device, tile, overlap, batch_size, seed, least, channels, num_samples, options)

    def __call__(self, images: Tensor, masks: Tensor | None, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the sources as viewable images, and ``num_samples`` translations of them, each uint8 [N, C, H, W].

        Args:
            images: Images, uint8 [N, C, h, w].
            masks: Masks for inpainting, float32 [N, 1, h, w]; None for none.
            numbers: Indices of the images. A random translation depends only on the seed and the image's index; dropout
                depends on the seed and the index of the first image.

        Raises:
            MemoryFullError: If the device has too little memory.
            CheckpointError: If the model returns NaN or infinite values.
        """
        task = self.method.task
        source = task.given(to_float(images), masks)
        height, width = source.shape[2:]
        whole = padded(source, self.method.size_divisor, self.least)
        with steady(self.seed, numbers[0]):
            if isinstance(self.method, TranslatesRandomly):
                outputs = [self._random(self.method, whole, numbers, sample) for sample in range(self.num_samples)]
            elif self.tile is not None and max(whole.shape[2:]) > self.tile:
                outputs = [torch.cat([self._in_tiles(each, self.tile) for each in whole.split(1)])]
            else:
                outputs = [self._network(whole)]
        outputs = [require_finite(output[:, :, :height, :width]) for output in outputs]
        return to_uint8(task.shown(source)), [to_uint8(task.result(output, source)) for output in outputs]

    def _random(self, method: TranslatesRandomly, source: Tensor, numbers: Sequence[int], sample: int) -> Tensor:
        keys = translation_keys(self.seed, np.asarray(numbers, dtype=np.int64), sample)
        return run(lambda whole: method.translate_randomly(whole, keys.to(self.device), self.options), source, self.device)

    def _in_tiles(self, source: Tensor, tile: int) -> Tensor:
        place = {"tile": tile, "overlap": self.overlap, "multiple": self.method.size_divisor}
        count = num_tiles(*source.shape[2:], **place)
        with Progress(total=count, desc="tiles", unit="tile", leave=False, delay=1.0) as progress:

            def network(tiles: Tensor) -> Tensor:
                outputs = self._network(tiles)
                progress.update(len(tiles))
                return outputs

            # In training mode, batch statistics would mix the tiles.
            together = 1 if self.method.sampled_mode == "train" else self.batch_size
            return in_tiles(network, source, **place, batch_size=together)

    def _network(self, source: Tensor) -> Tensor:
        return run(lambda whole: self.method.translate(whole, self.direction), source, self.device)


def options_of(
    method: Translates, sampling: Mapping[str, Any], others: Sequence[str], *, num_samples: int, tile: int | None
) -> Any:
    """Return a model's sampling options with the given values; None for a model whose translations are not random.

    Args:
        method: The model.
        sampling: Values by name.
        others: Names of the caller's own options, to suggest for a misspelt one.
        num_samples: Number of translations of each image.
        tile: Side of the tiles in pixels; None for no tiles.

    Raises:
        ConfigError: If an option is unknown, or has no effect on the model.
    """
    if not isinstance(method, TranslatesRandomly):
        if sampling:
            name = next(iter(sampling))
            raise ConfigError(
                f"unknown key {name}{nearest(name, others)}: this model, a {type(method).__name__}, has no sampling options",
                key=name,
            )
        if num_samples > 1:
            raise ConfigError(
                f"num_samples={num_samples} has no effect, because this model, a {type(method).__name__}, has only one "
                "translation of each image: remove it",
                key="num_samples",
            )
        return None
    if tile is not None:
        raise ConfigError(
            f"tile={tile} does not work with this model, a {type(method).__name__}, because its translations are random and "
            "tiles would not fit together: remove it, and give smaller images",
            key="tile",
        )
    options = sampling_options(method, sampling, others)
    method.check_options(options)
    return options


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


def run(translate: Callable[[Tensor], Tensor], source: Tensor, device: torch.device) -> Tensor:
    """Translate sources [N, S, H, W] on the device; sources and the result [N, T, H, W] are on the CPU.

    Args:
        translate: Function that translates sources on the device.
        source: The sources.
        device: The device.

    Raises:
        MemoryFullError: If the device has too little memory.
    """
    try:
        return translate(source.to(device, memory_format=torch.channels_last)).cpu()
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

    def translate(source: Tensor) -> Tensor:
        if not isinstance(method, TranslatesRandomly):
            return method.translate(source, direction)
        return method.translate_randomly(
            source, torch.zeros(1, dtype=torch.int64, device=device), with_one_step(method.sampling_options)
        )

    side, enough = method.size_divisor, -(-trained // method.size_divisor) * method.size_divisor
    while True:
        try:
            run(translate, torch.zeros(1, channels, side, side), device)
            return side
        except MemoryFullError as error:
            raise ConfigError(
                f"device={device}: the memory is too small for images of {side}x{side} pixels ({error}): choose another device"
            ) from error
        except (RuntimeError, ValueError):  # from PyTorch layers that need larger images
            if side >= enough:
                raise
        side = min(2 * side, enough)
