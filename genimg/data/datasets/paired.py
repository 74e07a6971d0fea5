"""Pairs of images: what a translator is given, and what it shall make of it.

A pair is read as one image whose first channels are the source's and whose others are the target's, so that whatever moves or
mirrors an image does the same to both, and a pair is kept wherever an image is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from genimg.data.datasets.builtin import CorruptImageError, ImageDataset, digest
from genimg.data.datasets.file_index import Index, list_images
from genimg.data.decode import PixelFormat, check_channels, half_of
from genimg.data.depth import with_settled_depth
from genimg.data.tasks.base import Pair
from genimg.errors import ConfigError, DataError
from genimg.utils.pillow import open_header, open_image

DIRECTIONS = ("a2b", "b2a")
_MOST_LISTED = 5  # of the files that have no partner
_MOST_DISTORTED = 1.6  # the aspect ratio of a half against that of the images to train on; of a single image it is 2

log = logging.getLogger(__name__)


class PairedDataset(ImageDataset):
    """Pairs of image files, decoded when read.

    Args:
        name: for messages.
        files: of each pair; one file with the two side by side, or two.
        names: of each pair's first file, relative to its folder.
        a, b: the pixels of the two domains.
        direction: ``a2b``, or ``b2a`` to make images of domain a from those of b.
        fingerprint: of the files.

    """

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[Path, ...]],
        names: Sequence[str],
        a: PixelFormat,
        b: PixelFormat,
        *,
        direction: str,
        fingerprint: str,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ConfigError(f"direction={direction} is unknown: choose a2b or b2a")
        self.name = name
        self.files = files
        self._names = names
        self._a, self._b = a, b
        self._reversed = direction == "b2a"
        self.shape = (a.channels + b.channels, a.height, a.width)
        self.task = Pair(source_channels=(b if self._reversed else a).channels)
        self.fingerprint = digest("pairs", fingerprint, a, b, direction)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> NDArray[np.uint8]:
        files = self.files[index]
        if len(files) == 1:
            a, b = self._halves(files[0])
        else:
            a, b = (_open(file, pixels) for file, pixels in zip(files, (self._a, self._b), strict=True))
        return np.concatenate([b, a] if self._reversed else [a, b])

    def title(self, index: int) -> str:
        return str(self.files[index][0])

    def file_names(self) -> Sequence[str]:
        return self._names

    def _halves(self, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        try:
            with open_image(file) as image:
                if image.width % 2:
                    raise ValueError(f"a width of {image.width} pixels cannot be two images side by side")
                return self._a.apply(half_of(image, "left")), self._b.apply(half_of(image, "right"))
        except (OSError, ValueError) as error:
            raise CorruptImageError(f"{file}: {error}") from error


def paired(
    *,
    root: str | None,
    a: str | None,
    b: str | None,
    direction: str,
    image_size: int | Sequence[int],
    channels: int,
    channels_a: int | None,
    channels_b: int | None,
    fit: str,
    refresh_index: bool = False,
    range: Sequence[float] | None = None,
) -> PairedDataset:
    """Pairs in one folder, each in one file with domain a on the left and b on the right, or in two folders.

    Args:
        root: the folder of files with two images side by side; or one with ``train``, and ``val`` or ``test`` for validation,
            of such folders (the layout of pix2pix). None with two folders.
        a, b: the two folders; pairs are files of equal path, but for the ending. None with ``root``.
        direction: ``a2b`` or ``b2a``.
        image_size, fit: of either image; see PixelFormat.
        channels: of either domain; ``channels_a`` and ``channels_b`` where they differ, else None.
        refresh_index: see genimg.data.datasets.file_index.
        range: the values of 16- and 32-bit images that become black and white, [low, high]; None: see PixelFormat.

    Raises:
        ConfigError: If folders are given in neither way or in both, or for an unknown value of a parameter.
        DataError: If a folder is missing or has no images, or files have no partner.
    """
    if (root is None) == (a is None and b is None) or (a is None) != (b is None):
        shown = " ".join(f"{key}={given or 'null'}" for key, given in (("root", root), ("a", a), ("b", b)))
        raise ConfigError(
            f"{shown} is ambiguous or incomplete: give root, a folder of files with two images side by side, or both a and b, "
            "two folders with files of equal names"
        )
    for key, count in (("channels_a", channels_a), ("channels_b", channels_b)):
        check_channels(*((key, count) if count is not None else ("channels", channels)))
    formats = [PixelFormat.of(image_size, given or channels, fit, range) for given in (channels_a, channels_b)]
    if root is not None:
        directory = Path(root).expanduser()
        divided = (directory / "train").is_dir()
        others = [directory / name for name in ("val", "test") if divided and (directory / name).is_dir()]
        sources = []
        for part in [directory / "train" if divided else directory, *others[:1]]:
            index = _listed("root", str(part), refresh=refresh_index)
            place, paths = index.root, index.paths
            _warn_of_single_images(place / paths[0], formats[0])
            files: list[tuple[Path, ...]] = [(place / path,) for path in paths]
            settled = [with_settled_depth(index, pixels) for pixels in formats]
            sources.append(PairedDataset("paired", files, paths, *settled, direction=direction, fingerprint=index.digest))
        if len(sources) == 2:
            sources[0].validation = sources[1]
        return sources[0]
    assert a is not None
    assert b is not None
    index_a, index_b = _listed("a", a, refresh=refresh_index), _listed("b", b, refresh=refresh_index)
    formats = [with_settled_depth(index_a, formats[0]), with_settled_depth(index_b, formats[1])]
    by_name_a, by_name_b = _by_name("a", a, index_a.paths), _by_name("b", b, index_b.paths)
    alone = [f"{a}/{by_name_a[name]}" for name in sorted(by_name_a.keys() - by_name_b.keys())]
    alone += [f"{b}/{by_name_b[name]}" for name in sorted(by_name_b.keys() - by_name_a.keys())]
    if alone:
        more = f" and {len(alone) - _MOST_LISTED} more" if len(alone) > _MOST_LISTED else ""
        raise DataError(
            f"a={a} b={b} hold {len(alone)} files without a partner of the same name in the other folder, "
            f"{', '.join(alone[:_MOST_LISTED])}{more}: add their partners, or remove them"
        )
    files = [(index_a.root / by_name_a[name], index_b.root / by_name_b[name]) for name in sorted(by_name_a)]
    names, fingerprint = sorted(by_name_a), index_a.digest + index_b.digest
    return PairedDataset("paired", files, names, *formats, direction=direction, fingerprint=fingerprint)


def _warn_of_single_images(path: Path, pixels: PixelFormat) -> None:
    """Of a folder of single images every half would be half an image."""
    try:
        with open_header(path) as image:
            width, height = image.size
    except (OSError, ValueError):
        return  # its reader says what is wrong
    distortion = (height / (width / 2)) / (pixels.height / pixels.width)
    if not 1 / _MOST_DISTORTED < distortion < _MOST_DISTORTED:
        log.warning(
            "%s has %dx%d pixels, so that each half of it has %dx%d: are there two images side by side? Two folders are given "
            "by a and b", path, width, height, width // 2, height,
        )  # fmt: skip


def _listed(key: str, folder: str, *, refresh: bool) -> Index:
    directory = Path(folder).expanduser()
    if not directory.is_dir():
        what = "is a file, not a directory" if directory.exists() else "does not exist"
        raise DataError(f"{key}={folder} {what}: give a directory of images")
    index = list_images(directory, refresh=refresh)
    if not index.paths:
        raise DataError(f"{key}={folder} holds no images: expected files such as .png or .jpg")
    return index


def _by_name(key: str, folder: str, paths: Sequence[str]) -> dict[str, str]:
    """Path without its ending -> path.

    Raises:
        DataError: If two files differ in their endings only.
    """
    found: dict[str, str] = {}
    for path in paths:
        name = str(PurePosixPath(path).with_suffix(""))
        if name in found:
            raise DataError(f"{key}={folder} has {found[name]} and {path}, of which only one can be half of a pair: remove one")
        found[name] = path
    return found


def _open(file: Path, pixels: PixelFormat) -> NDArray[np.uint8]:
    try:
        with open_image(file) as image:
            return pixels.apply(image)
    except (OSError, ValueError) as error:
        raise CorruptImageError(f"{file}: {error}") from error
