"""Output folders, written atomically: a command replaces its own folders, detects unfinished ones, and keeps all others."""

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
"""A file in every output folder that records the command, its inputs and the files that it wrote."""

_STAMP = "Software"  # key of a PNG's text, and the name of the EXIF tag 0x0131
_EXIF_SOFTWARE = 0x0131
_MOST_SHOWN = 3  # files named in a message

Record = dict[str, Any]  # values are primitives
_MOST_BYTES = 2**28  # of a folder's record, which holds the names of its files


def record_of(command: str, **about: Any) -> Record:
    """Return the record of a folder or archive: the command, genimg's version, and the primitives in ``about``."""
    return {"made_by": command, "genimg_version": genimg.__version__, **about}


def read_mark(folder: Path) -> Record | None:
    """Return the record of a folder; None if genimg did not write the folder."""
    try:
        found = parse_json(read_regular(folder / MARK, below=folder, most=_MOST_BYTES))
    except (OSError, ValueError, UnsafeFileError):
        return None
    is_mark = isinstance(found, dict) and isinstance(found.get("made_by"), str) and fits(found.get("files", []), list[str])
    return found if is_mark else None


def is_unfinished(folder: Path) -> bool:
    """Return whether a command was killed while it wrote this folder."""
    mark = read_mark(folder)
    return mark is not None and mark.get("complete") is not True


def require_finished(folder: Path) -> None:
    """Check that a folder was not left incomplete by a killed command.

    Raises:
        DataError: If it was left incomplete.
    """
    if is_unfinished(folder):
        mark = read_mark(folder) or {}
        raise DataError(
            f"{folder} is unfinished: {mark.get('made_by')} was killed while it wrote there, so files are "
            "missing: remove it, and run the command again"
        )


def require_own_folder(folder: Path, command: str) -> None:
    """Check that a folder has only files that this command wrote, so the command may replace the folder.

    Raises:
        ConfigError: If the folder has other files, or cannot be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output={folder} is a file: name a directory")
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if folder.is_mount():  # a mount point cannot be replaced
        raise ConfigError(f"output={folder} is a mount point: name a directory below it")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"output={folder} cannot be written, because {place} cannot: choose another output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    mark = read_mark(folder)
    if mark is None or mark["made_by"] != command:
        what = f"was written by {mark['made_by']}" if mark else f"holds files that {command} did not write (there is no {MARK})"
        raise ConfigError(f"output={folder} {what}: choose another output, or move it away")
    if mark.get("complete") is not True:  # unfinished, so all its files are the command's
        return
    own = {MARK, *mark.get("files", ())}
    others = sorted(_files(folder) - own)
    if others:
        more = f" and {len(others) - _MOST_SHOWN} more" if len(others) > _MOST_SHOWN else ""
        raise ConfigError(
            f"output={folder} would be replaced, but holds {', '.join(others[:_MOST_SHOWN])}{more}, not written by {command}: "
            "move that away, or choose another output"
        )


@contextlib.contextmanager
def own_folder(path: Path, record: Record) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces it and its content if the block succeeds.

    The old folder is kept until the new one is complete. A killed process leaves the temporary folder, for which
    ``is_unfinished`` is true; the next command with the same path removes it.

    Args:
        path: Absolute path that is absent, empty, or a folder that ``require_own_folder`` accepts.
        record: Record returned by ``record_of``.
    """
    with directory_atomically(path, replace=True) as folder:
        _write_mark(folder, {**record, "complete": False})
        yield folder
        _write_mark(folder, {**record, "complete": True, "files": sorted(_files(folder) - {MARK})})


def stamp_archive(file: Path, record: Record) -> None:
    """Write a record into a zip file's comment, so that ``require_own_file`` recognizes the file."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = json.dumps(record).encode()


def stamp_of(command: str) -> dict[str, str]:
    """Return the text to write into a PNG, so that ``require_own_file`` recognizes the file."""
    return {_STAMP: f"{command} {genimg.__version__}"}


def exif_of(command: str) -> Any:
    """Return the EXIF data to write into other picture formats, so that ``require_own_file`` recognizes the file."""
    from PIL import Image

    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = stamp_of(command)[_STAMP]
    return exif


def require_own_file(file: Path, what: str) -> None:
    """Check that a picture or archive to be replaced was written by genimg.

    Args:
        file: Path that is absent, or a file to be replaced.
        what: Description of the file, such as "the grid of output=made".

    Raises:
        ConfigError: If another program wrote it.
    """
    if not file.exists() or (file.is_file() and _written_by(file).startswith("genimg-")):
        return
    raise ConfigError(
        f"{what} would replace {file}, which genimg did not write: move that away, or choose another output", key="output"
    )


def require_own_export(file: Path) -> None:
    """Check that an exported network to be replaced was written by genimg-export.

    Raises:
        ConfigError: If another program wrote it.
    """
    if file.is_file() and file.stat().st_size:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"genimg_version") >= 0:  # from the record, which is uncompressed in all formats
                return
        raise ConfigError(f"output={file} exists, and genimg-export did not write it: move it away, or choose another output")


def _written_by(file: Path) -> str:
    """Return the command that wrote a picture or archive; empty if genimg did not."""
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
    """Return the relative paths of all files below a folder, with ``/`` as the separator."""
    return {
        os.path.relpath(os.path.join(directory, name), folder).replace(os.sep, "/")
        for directory, _, names in os.walk(folder)
        for name in names
    }


def _write_mark(folder: Path, record: Record) -> None:
    temporary = folder / f"{MARK}.tmp"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / MARK)
