"""What only the data knows, and networks are made for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.tasks.base import Task
from genimg.errors import CheckpointError
from genimg.utils.pillow import MOST_PIXELS
from genimg.utils.type_hints import restored

_MOST = {"image_size": 2**16, "num_classes": 10**7}
_MOST_CHANNELS = 2**10
_FIX = "choose another checkpoint, because this one is damaged or was made by another program"


@dataclass(frozen=True)
class DataFacts:
    """Facts about a dataset, computed once.

    A constructor below ``model`` that has a parameter of one of these names, and is given no value for it by the config,
    receives it as an argument.

    Attributes:
        image_size: Pixels: one number for square images, else (height, width).
        channels: Of an image; of both together where the data has pairs.
        num_classes: K; 0 without labels.
        source_channels, target_channels: Of a task's two images; None without a task.
    """

    image_size: int | tuple[int, int]
    channels: int
    num_classes: int
    source_channels: int | None = None
    target_channels: int | None = None

    @classmethod
    def of(cls, dataset: ImageDataset, task: Task | None) -> DataFacts:
        """Return the facts about a dataset whose images a task, if any, is made from."""
        channels, height, width = dataset.shape
        source, target = task.channels(dataset.shape) if task is not None else (None, None)
        return cls(
            image_size=height if height == width else (height, width),
            channels=channels,
            num_classes=len(dataset.class_names) if dataset.labels is not None else 0,
            source_channels=source,
            target_channels=target,
        )

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> DataFacts:
        """Return the facts that a checkpoint holds.

        Raises:
            CheckpointError: If they are of another type, or larger than those of any data.
        """
        size = saved.get("image_size")
        facts = restored(cls, {**saved, "image_size": tuple(size) if isinstance(size, list) else size}, "facts")
        for name, value in asdict(facts).items():
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(0 <= number <= _MOST.get(name, _MOST_CHANNELS) for number in numbers):
                raise CheckpointError(f"{name}={value} of the checkpoint's facts about its data is not possible", _FIX)
        sides = facts.image_size if isinstance(facts.image_size, tuple) else (facts.image_size,) * 2
        if not 0 < math.prod(sides) <= MOST_PIXELS:
            raise CheckpointError(f"image_size={size} of the checkpoint's facts about its data is not possible", _FIX)
        return facts

    def channels_into(self, *, backwards: bool = False) -> int:
        """Return the channels of the images that a translator takes; ``backwards``, those of the other domain."""
        channels = self.target_channels if backwards else self.source_channels
        assert channels is not None, "the data has no task"
        return channels

    def record(self) -> dict[str, Any]:
        """Return the facts as a checkpoint holds them."""
        size = self.image_size
        return {**asdict(self), "image_size": list(size) if isinstance(size, tuple) else size}

    def arguments(self) -> dict[str, Any]:
        """Return the facts by parameter name, without those that the data does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}
