"""Pairs of a source image and a target image, for image translation.

A pair is read as one image with the source's channels first, then the target's. Geometric augmentation therefore changes
both images alike, and a pair is stored in the same way as an image.
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
from genimg.data.depth import with_float_white
from genimg.data.tasks.base import Pair
from genimg.errors import ConfigError, DataError
from genimg.utils.pillow import open_header, open_image

DIRECTIONS = ("a2b", "b2a")
_MOST_LISTED = 5  # files without a partner named in a message
_MOST_DISTORTED = 1.6  # maximum ratio of the aspect ratios of a half and the training images; 2 for one image cut in half

log = logging.getLogger(__name__)


class PairedDataset(ImageDataset):
    """Pairs of image files, decoded when read.

    Args:
        name: Name for messages.
        files: Files of each pair: one with the two images side by side, or two.
        names: Path of each pair's first file, relative to its folder.
        a, b: Pixel formats of the two domains.
        direction: ``a2b``, or ``b2a`` to translate from domain b to domain a.
        fingerprint: Digest of the files.
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
    """List pairs in one folder of files with domain a on the left and b on the right, or in two folders.

    Args:
        root: Folder of files with two images side by side; or a folder with subfolders ``train``, and ``val`` or ``test`` for
            validation, of such files (the layout of pix2pix). None with ``a`` and ``b``.
        a, b: The two folders; the paths of a pair are equal except for the extension. None with ``root``.
        direction: ``a2b`` or ``b2a``.
        image_size, fit: Size and fit of both images; see ``PixelFormat``.
        channels: Number of channels of both domains.
        channels_a, channels_b: Number of channels of each domain; None for ``channels``.
        refresh_index: See genimg.data.datasets.file_index.
        range: Values of 16- and 32-bit images that become black and white, [low, high]; for None, see ``PixelFormat``.

    Raises:
        ConfigError: If neither or both of ``root`` and the two folders are given, or a parameter has an unknown value.
        DataError: If a folder is missing or has no images, or files have no partner.
    """
    if (root is None) == (a is None and b is None) or (a is None) != (b is None):
        shown = " ".join(f"{key}={given or 'null'}" for key, given in (("root", root), ("a", a), ("b", b)))
        raise ConfigError(
            f"{shown} is ambiguous or incomplete: give root, a folder of files with two images side by side, or both a and b, "
            "two folders with matching file names"
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
            formats = [with_float_white(index, pixels) for pixels in formats]
            sources.append(PairedDataset("paired", files, paths, *formats, direction=direction, fingerprint=index.digest))
        if len(sources) == 2:
            sources[0].validation = sources[1]
        return sources[0]
    assert a is not None
    assert b is not None
    index_a, index_b = _listed("a", a, refresh=refresh_index), _listed("b", b, refresh=refresh_index)
    formats = [with_float_white(index_a, formats[0]), with_float_white(index_b, formats[1])]
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
    """Warn if a file's aspect ratio suggests a single image, which would be cut in half."""
    try:
        with open_header(path) as image:
            width, height = image.size
    except (OSError, ValueError):
        return  # reading it will report the error
    distortion = (height / (width / 2)) / (pixels.height / pixels.width)
    if not 1 / _MOST_DISTORTED < distortion < _MOST_DISTORTED:
        log.warning(
            "%s has %dx%d pixels, so each half has %dx%d: does it hold two images side by side? For two folders of images, "
            "give a and b", path, width, height, width // 2, height,
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
    """Return path without extension -> path.

    Raises:
        DataError: If two files differ only in their extensions.
    """
    found: dict[str, str] = {}
    for path in paths:
        name = str(PurePosixPath(path).with_suffix(""))
        if name in found:
            raise DataError(
                f"{key}={folder} has {found[name]} and {path}, but only one of them can be half of a pair: remove the other"
            )
        found[name] = path
    return found


def _open(file: Path, pixels: PixelFormat) -> NDArray[np.uint8]:
    try:
        with open_image(file) as image:
            return pixels.apply(image)
    except (OSError, ValueError) as error:
        raise CorruptImageError(f"{file}: {error}") from error
