"""Unpaired images of two domains, such as horses and zebras, or photos and paintings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ImageDataset, digest, folder
from genimg.data.decode import check_channels
from genimg.data.tasks.base import Unpaired
from genimg.errors import ConfigError, UserError


class UnpairedDataset(ImageDataset):
    """Two datasets; item ``i`` is one image of each, concatenated along the channels.

    Previews and evaluation use these items; training samples each domain in its own order, see
    ``loader.UnpairedImageLoader``.

    Args:
        a, b: Datasets of the two domains, of equal height and width.
    """

    def __init__(self, a: ImageDataset, b: ImageDataset) -> None:
        self.name = "unpaired"
        self.a, self.b = a, b
        self.shape = (a.shape[0] + b.shape[0], *a.shape[1:])
        self.task = Unpaired(source_channels=a.shape[0])
        self.fingerprint = digest("unpaired", a.fingerprint, b.fingerprint)

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.concatenate([self.a.read(index % len(self.a)), self.b.read(index % len(self.b))])

    def file_names(self) -> Sequence[str] | None:
        """Return the file names of domain a, an empty string, then those of domain b."""
        a, b = self.a.file_names(), self.b.file_names()
        return None if a is None or b is None else [*a, "", *b]


def unpaired(
    *,
    root: str | None,
    a: str | None,
    b: str | None,
    image_size: int | Sequence[int],
    channels: int,
    channels_a: int | None,
    channels_b: int | None,
    fit: str,
    refresh_index: bool = False,
    range: Sequence[float] | None = None,
) -> UnpairedDataset:
    """List two folders of images, one for each domain.

    Args:
        root: Directory with ``trainA`` and ``trainB`` and optionally, for validation, ``testA`` and ``testB`` (the layout of
            CycleGAN); None with ``a`` and ``b``.
        a, b: The two folders; None with ``root``.
        image_size, fit: See ``PixelFormat``.
        channels: Number of channels of both domains.
        channels_a, channels_b: Number of channels of each domain; None for ``channels``.
        refresh_index: See genimg.data.datasets.file_index.
        range: Values of 16- and 32-bit images that become black and white, [low, high]; for None, see ``PixelFormat``.

    Raises:
        ConfigError: If neither or both of ``root`` and the two folders are given, or a parameter has an unknown value.
        DataError: If a folder is missing or has no images.
    """
    if (root is None) == (a is None and b is None) or (a is None) != (b is None):
        shown = " ".join(f"{key}={given or 'null'}" for key, given in (("root", root), ("a", a), ("b", b)))
        raise ConfigError(
            f"{shown} is ambiguous or incomplete: give root, a directory with trainA and trainB, or both a and b, two folders "
            "of images"
        )
    for key, count in (("channels_a", channels_a), ("channels_b", channels_b)):
        check_channels(*((key, count) if count is not None else ("channels", channels)))

    def domain(name: str, key: str, path: str, channels: int) -> ImageDataset:
        try:
            return folder(root=path, image_size=image_size, channels=channels, fit=fit, labels="none", captions=None,
                          refresh_index=refresh_index, name=name, range=range)  # fmt: skip
        except UserError as error:
            if error.key != "root":
                raise
            hint = "; root must hold trainA and trainB, or give both a and b" if key == "root" else ""
            raise type(error)(error.problem.replace("root=", f"{key}=", 1) + hint, error.fix) from error

    if root is None:
        assert a is not None
        assert b is not None
        return UnpairedDataset(
            domain("domain a", "a", a, channels_a or channels), domain("domain b", "b", b, channels_b or channels)
        )
    directory = Path(root).expanduser()
    halves = [(directory / f"{part}A", directory / f"{part}B") for part in ("train", "test")]
    sources = [
        UnpairedDataset(
            domain("domain a", "root", str(first), channels_a or channels),
            domain("domain b", "root", str(second), channels_b or channels),
        )
        for first, second in halves[: 2 if all(path.is_dir() for path in halves[1]) else 1]
    ]
    if len(sources) == 2:
        sources[0].validation = sources[1]
    return sources[0]
