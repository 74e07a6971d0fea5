"""Facts about the data from which networks are built."""

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

    Each fact is passed to every constructor below ``model`` that has a parameter with its name, unless the config sets it.

    Attributes:
        image_size: Size in pixels: one number for square images, else (height, width).
        channels: Number of channels of an image; of both images together for pairs.
        num_classes: Number of classes K; 0 without labels.
        source_channels, target_channels: Number of channels of a task's two images; None without a task.
    """

    image_size: int | tuple[int, int]
    channels: int
    num_classes: int
    source_channels: int | None = None
    target_channels: int | None = None

    @classmethod
    def of(cls, dataset: ImageDataset, task: Task | None) -> DataFacts:
        """Return the facts about a dataset and the task, if any, that uses its images."""
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
        """Return the facts stored in a checkpoint.

        Raises:
            CheckpointError: If a value has the wrong type or is out of range.
        """
        size = saved.get("image_size")
        facts = restored(cls, {**saved, "image_size": tuple(size) if isinstance(size, list) else size}, "facts")
        for name, value in asdict(facts).items():
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(0 <= number <= _MOST.get(name, _MOST_CHANNELS) for number in numbers):
                raise CheckpointError(f"{name}={value} in the checkpoint's facts about its data is invalid", _FIX)
        sides = facts.image_size if isinstance(facts.image_size, tuple) else (facts.image_size,) * 2
        if not 0 < math.prod(sides) <= MOST_PIXELS:
            raise CheckpointError(f"image_size={size} in the checkpoint's facts about its data is invalid", _FIX)
        return facts

    def channels_into(self, *, backwards: bool = False) -> int:
        """Return the number of channels of a translator's input; if ``backwards``, that of the other domain's images."""
        channels = self.target_channels if backwards else self.source_channels
        assert channels is not None, "the data has no task"
        return channels

    def record(self) -> dict[str, Any]:
        """Return the facts as stored in a checkpoint."""
        size = self.image_size
        return {**asdict(self), "image_size": list(size) if isinstance(size, tuple) else size}

    def arguments(self) -> dict[str, Any]:
        """Return the facts by parameter name, without None."""
        return {name: value for name, value in asdict(self).items() if value is not None}
