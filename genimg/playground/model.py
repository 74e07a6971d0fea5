"""What the playground needs of a trained model, the pictures that it makes, and uploaded pictures."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from genimg.data.decode import PixelFormat
from genimg.data.facts import DataFacts
from genimg.errors import ConfigError, DataError
from genimg.inference.reconstruct import pixel_format
from genimg.methods.base import Method
from genimg.methods.sampling_options import Lookup
from genimg.utils.images import png_of
from genimg.utils.pillow import open_image

MOST_BYTES_OF_UPLOAD = 32 * 2**20
_MOST_UPLOADS = 8
_LONGEST_NAME = 255  # characters, as file systems allow


@dataclass(frozen=True)
class PlayedModel:
    """A trained model.

    Attributes:
        method: The model in evaluation mode, on the device, prepared for sampling.
        device: Device of the model.
        facts: Facts about the training data.
        data: The ``data`` group of the checkpoint's config.
        class_names: Class names by label; empty if the checkpoint does not have them.
        lookup: Functions that find the models and classes to which sampling options refer.
    """

    method: Method
    device: torch.device
    facts: DataFacts
    data: Mapping[str, Any]
    class_names: Sequence[str]
    lookup: Lookup

    @property
    def pixels(self) -> PixelFormat:
        """Format of the model's images."""
        return pixel_format(self.facts, self.data)


@dataclass(frozen=True)
class PagePicture:
    """A picture on the page.

    Attributes:
        name: Name of the file that the command writes; for an input, a description.
        png: Content of the file.
        width, height: Size in pixels.
        about: Label, caption or description; may be empty.
        is_input: Whether it is an uploaded picture as the model sees it, which the command does not write.
    """

    name: str
    png: bytes
    width: int
    height: int
    about: str = ""
    is_input: bool = False

    @classmethod
    def of(cls, pixels: Tensor, name: str, about: str = "", *, is_input: bool = False) -> PagePicture:
        """Return the picture of pixels, uint8 [C, H, W]; see the attributes."""
        return cls(name, png_of(pixels), pixels.shape[2], pixels.shape[1], about, is_input)


@dataclass(frozen=True)
class Made:
    """The result of a request.

    Attributes:
        pictures: The pictures, inputs first.
        command: Name of the command that makes the same pictures, without genimg-.
        options: Options of that command by name, without those of the checkpoint; None for an option that is not set.
    """

    pictures: Sequence[PagePicture]
    command: str
    options: Mapping[str, Any]


class Uploads:
    """Uploaded pictures, in a temporary directory; the oldest is removed when there are too many."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="genimg-play-")
        self._names: OrderedDict[str, str] = OrderedDict()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._directory.cleanup()

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        """Keep a picture.

        Args:
            name: Name of the file on the user's side.
            content: Content of the file.

        Returns:
            The picture's ``id`` and ``name``.

        Raises:
            DataError: If it is not an image, or too large in pixels.
        """
        name = re.sub(r"[\x00-\x1f\x7f]", "_", name.replace("\\", "/").rpartition("/")[2])[-_LONGEST_NAME:] or "picture"
        key = f"picture{next(self._numbers)}"
        path = Path(self._directory.name, key)
        path.write_bytes(content)
        try:
            with open_image(path):
                pass
        except OSError as error:
            path.unlink()
            raise DataError(f"{name} cannot be opened: {error}", "choose a PNG, JPEG or WebP file") from error
        self._names[key] = name
        if len(self._names) > _MOST_UPLOADS:
            oldest, _ = self._names.popitem(last=False)
            Path(self._directory.name, oldest).unlink()
        return {"id": key, "name": name}

    def find(self, key: str, control: str) -> tuple[Path, str]:
        """Return the path of a picture and its name on the user's side.

        Args:
            key: The picture's ``id``; empty if none is chosen.
            control: Name of the control, for messages.

        Raises:
            ConfigError: If there is no such picture.
        """
        if not key:
            raise ConfigError(f"{control} is required: choose a picture", key=control)
        if key not in self._names:
            raise ConfigError(f"{control}: this picture is no longer here", "choose it again", key=control)
        return Path(self._directory.name, key), self._names[key]

    def named(self, message: str) -> str:
        """Replace paths of uploaded pictures in a message by their names."""
        pattern = re.escape(self._directory.name + os.sep) + r"(\w+)"
        return re.sub(pattern, lambda found: self._names.get(found[1], found[0]), message)
