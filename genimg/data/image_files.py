"""Image files in a directory or a zip file, with the labels and captions beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from genimg.data.classes import LABELS_FILE, Classes, classes_by_directory, classes_by_file, length_of_shared
from genimg.data.datasets.caption_files import FolderCaptions, find_captions
from genimg.data.datasets.file_index import list_images
from genimg.data.zips import ZipImages
from genimg.errors import ConfigError, DataError
from genimg.utils.pillow import HEIF_SUFFIXES, INSTALL_HEIF, register_heif


class ImageFiles(Protocol):
    """The image files below a directory or in a zip file."""

    @property
    def root(self) -> Path: ...

    @property
    def paths(self) -> list[str]: ...

    @property
    def digest(self) -> str: ...

    def open(self, path: str) -> Path | BinaryIO:
        """Return the file or its content, for Pillow.

        Raises:
            OSError: If the file is damaged.
        """


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def open_image_files(path: Path, *, refresh: bool) -> ImageFiles:
    """List the images of a directory or zip file; see ``list_images`` and ``ZipImages``."""
    return ZipImages(path) if is_zip(path) else list_images(path, refresh=refresh)


def require_decoders(paths: Sequence[str], root: str) -> None:
    """Check that the optional decoder of HEIC is installed if there are such images.

    Args:
        paths: Names of the images.
        root: Name of the data, for the message.

    Raises:
        DataError: If it is not installed; the message names the first image.
    """
    first = next((path for path in paths if path.lower().endswith(HEIF_SUFFIXES)), None)
    if first is not None and not register_heif():
        count = sum(path.lower().endswith(HEIF_SUFFIXES) for path in paths)
        raise DataError(f"root={root} holds {count} HEIC images, such as {first}", f"{INSTALL_HEIF}, or move them away")


def classes_of(files: ImageFiles) -> Classes:
    """Return the classes from dataset.json if it has labels, or else from the subdirectories.

    The file lies at the top, or in the directory that all images share.

    Raises:
        DataError: If dataset.json is damaged or does not match the images.
    """
    for start in dict.fromkeys((0, length_of_shared(files.paths))):
        name = f"{files.paths[0][:start]}{LABELS_FILE}" if start else LABELS_FILE
        file = files.root / name
        if isinstance(files, ZipImages):
            content = files.read_text_file(name)
        else:
            content = file.read_bytes() if file.is_file() else None
        paths = [path[start:] for path in files.paths]
        if content is not None and (found := classes_by_file(content, paths, str(file))) is not None:
            return found
    return classes_by_directory(files.paths)


def captions_of(files: ImageFiles, wanted: str | None) -> FolderCaptions | None:
    """Return the captions of a directory's images (see ``find_captions``); a zip file has none.

    Raises:
        DataError: If the caption file is missing.
        ConfigError: If captions of a zip file are requested.
    """
    if not isinstance(files, ZipImages):
        return find_captions(files.root, files.paths, wanted)
    if wanted not in (None, "auto"):
        raise ConfigError(f"captions={wanted} is not supported for images in a zip file: unpack it")
    return None
