"""Folders of images that a command writes whole: its own are replaced, half-written ones are known, others are not touched."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import genimg
from genimg.errors import ConfigError, DataError
from genimg.utils.files import directory_atomically
from genimg.utils.json_text import parse_json
from genimg.utils.regular_files import UnsafeFileError, read_regular
from genimg.utils.type_hints import fits

MARK = "genimg.json"
"""In every such folder: which command wrote it, from what, and which files are its own."""

_STAMP = "Software"  # of a PNG's text, and the tag 0x0131 of EXIF
_EXIF_SOFTWARE = 0x0131
_MOST_SHOWN = 3  # files, in a message

Record = dict[str, Any]  # primitives
_MOST_BYTES = 2**28  # of what a folder says about itself: the names of its files


def record_of(command: str, **about: Any) -> Record:
    """Return what a folder or archive says about itself: the command, genimg's version, and primitives in ``about``."""
    return {"made_by": command, "genimg_version": genimg.__version__, **about}


def read_mark(folder: Path) -> Record | None:
    """Return what a folder says about itself; None if no command of genimg wrote it."""
    try:
        found = parse_json(read_regular(folder / MARK, below=folder, most=_MOST_BYTES))
    except (OSError, ValueError, UnsafeFileError):
        return None
    is_mark = isinstance(found, dict) and isinstance(found.get("made_by"), str) and fits(found.get("files", []), list[str])
    return found if is_mark else None


def is_unfinished(folder: Path) -> bool:
    """Whether a command was killed while it wrote this folder."""
    mark = read_mark(folder)
    return mark is not None and mark.get("complete") is not True


def require_finished(folder: Path) -> None:
    """Refuse a folder that a killed command left.

    Raises:
        DataError: Naming the folder.
    """
    if is_unfinished(folder):
        mark = read_mark(folder) or {}
        raise DataError(
            f"{folder} is unfinished: {mark.get('made_by')} was killed while it wrote there, so that files are "
            "missing: remove it, and run the command again"
        )


def require_own_folder(folder: Path, command: str) -> None:
    """Refuse a folder that a command must not replace: one with files that it did not write.

    Raises:
        ConfigError: Naming the folder, and a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output={folder} is a file: name a directory")
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if folder.is_mount():  # nothing can take its place
        raise ConfigError(f"output={folder} is where a disk is mounted: name a directory on it")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"output={folder} cannot be written, because {place} cannot: choose another output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    mark = read_mark(folder)
    if mark is None or mark["made_by"] != command:
        what = f"was written by {mark['made_by']}" if mark else f"holds files that {command} did not write (there is no {MARK})"
        raise ConfigError(f"output={folder} {what}: choose another output, or move it away")
    if mark.get("complete") is not True:  # whatever is missing, all that is there is the command's
        return
    own = {MARK, *mark.get("files", ())}
    others = sorted(_files(folder) - own)
    if others:
        more = f" and {len(others) - _MOST_SHOWN} more" if len(others) > _MOST_SHOWN else ""
        raise ConfigError(
            f"output={folder} would be replaced, and holds {', '.join(others[:_MOST_SHOWN])}{more}, not written by {command}: "
            "move that away, or choose another output"
        )


@contextlib.contextmanager
def own_folder(path: Path, record: Record) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place, with all that it held, if the block ends well.

    The old folder stays until the new one is complete. A killed process leaves a directory beside it that
    ``is_unfinished``; the next one for the same path removes it.

    Args:
        path: Absolute. Absent, empty, or a folder that ``require_own_folder`` accepts.
        record: Of ``record_of``.
    """
    with directory_atomically(path, replace=True) as folder:
        _write_mark(folder, {**record, "complete": False})
        yield folder
        _write_mark(folder, {**record, "complete": True, "files": sorted(_files(folder) - {MARK})})


def stamp_archive(file: Path, record: Record) -> None:
    """Write into a zip file's comment what wrote it, by which ``require_own_file`` knows it again."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = json.dumps(record).encode()


def stamp_of(command: str) -> dict[str, str]:
    """Return the text of a PNG by which ``require_own_file`` knows it again."""
    return {_STAMP: f"{command} {genimg.__version__}"}


def exif_of(command: str) -> Any:
    """Return the EXIF of another picture by which ``require_own_file`` knows it again."""
    from PIL import Image

    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = stamp_of(command)[_STAMP]
    return exif


def require_own_file(file: Path, what: str) -> None:
    """Refuse to replace a picture or archive that genimg did not write.

    Args:
        file: Absent, or a file that is to be replaced.
        what: It is, such as "the grid of output=made".

    Raises:
        ConfigError: Naming the file.
    """
    if not file.exists() or (file.is_file() and _written_by(file).startswith("genimg-")):
        return
    raise ConfigError(
        f"{what} would replace {file}, which genimg did not write: move that away, or choose another output", key="output"
    )


def require_own_export(file: Path) -> None:
    """Refuse to replace an exported network that genimg-export did not write.

    Raises:
        ConfigError: Naming the file.
    """
    if file.is_file() and file.stat().st_size:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"genimg_version") >= 0:  # of the record that all formats hold uncompressed
                return
        raise ConfigError(f"output={file} exists, and genimg-export did not write it: move it away, or choose another output")


def _written_by(file: Path) -> str:
    """The command that wrote a picture or archive; empty for others."""
    from genimg.utils.pillow import open_header

    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return str(parse_json(archive.comment)["made_by"])
        with open_header(file) as image:
            return str(image.info.get(_STAMP) or image.getexif().get(_EXIF_SOFTWARE, ""))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return ""


def _files(folder: Path) -> set[str]:
    """All files below a folder, relative to it, with ``/`` between their parts."""
    return {
        os.path.relpath(os.path.join(directory, name), folder).replace(os.sep, "/")
        for directory, _, names in os.walk(folder)
        for name in names
    }


def _write_mark(folder: Path, record: Record) -> None:
    temporary = folder / f"{MARK}.tmp"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / MARK)
