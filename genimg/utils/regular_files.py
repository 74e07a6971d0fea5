"""Safe reading of files of unknown origin, such as those of a downloaded run directory.

A link in a directory packed by someone else may point to any file on this machine, and reading a FIFO or device may never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from genimg.errors import UserError

_OTHER_PROGRAMS = ("wandb",)  # directories in which these programs keep their own links
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnsafeFileError(UserError, ValueError):
    """A link, FIFO, device or socket in place of a file or directory of a run, or a file that is too large."""


def open_regular(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for another process.

    Args:
        path: Path of the file.
        below: Directory that contains ``path``; no component of ``path`` after it may be a link. None if the user gave the
            path, which may then be a link.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not a regular file, or is reached through a link.
    """
    if below is not None:
        refuse_links(path, below=below)
    _require_regular(path, os.stat(path).st_mode)  # checked before opening, because opening a device may have effects
    no_follow = getattr(os, "O_NOFOLLOW", 0) if below is not None else 0
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | no_follow)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, *, below: Path | None = None, most: int) -> bytes:
    """Return the content of a regular file; see ``open_regular``.

    Args:
        path, below: See ``open_regular``.
        most: Largest allowed size in bytes; a larger file is rejected before it is read.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not a regular file, is reached through a link, or is too large.
    """
    with open_regular(path, below=below) as file:
        require_at_most(path, file, most)
        return file.read(most + 1)


def require_at_most(path: Path, file: BinaryIO, most: int) -> None:
    """Check the size of an open file.

    Args:
        path: Path of the file, for the message.
        file: The file.
        most: Largest allowed size in bytes.

    Raises:
        UnsafeFileError: If it is larger.
    """
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise UnsafeFileError(f"{path} has {size:,} bytes, but may have at most {most:,}", "remove it")


def refuse_links(path: Path, *, below: Path) -> None:
    """Check that a path cannot leave a directory.

    Args:
        path: Path of a file or directory in ``below``, which need not exist.
        below: The directory; it and its parents may be links.

    Raises:
        UnsafeFileError: If ``path`` is not in the directory, or a component after it is a link.
    """
    parts = path.relative_to(below).parts if path.is_relative_to(below) else ("..",)
    if ".." in parts or "\0" in str(path):
        raise UnsafeFileError(f"{path} is outside {below}", "if you trust it, give its path on the command line")
    place = below
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise UnsafeFileError(
                f"{place} is a link, and links in a run directory are not followed",
                "replace it with its target, if you trust it",
            )


def require_plain(folder: Path, names: Iterable[str]) -> None:
    """Check that the named entries of an output directory are plain files and directories.

    Args:
        folder: The directory; it may be absent, or a link.
        names: Names of files and directories in it; the contents of these directories are checked too.

    Raises:
        UnsafeFileError: For the first link, FIFO, socket or device.
    """
    for name in names:
        _require_plain(folder / name, inside=name not in _OTHER_PROGRAMS)


def _require_plain(path: Path, *, inside: bool = True) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # it is absent, or its use will report the error
        return
    if stat.S_ISDIR(mode):
        with os.scandir(path) as entries:
            for entry in entries:
                if inside and not entry.is_file(follow_symlinks=False):
                    _require_plain(path / entry.name)
    elif not stat.S_ISREG(mode):
        raise UnsafeFileError(
            f"{path} is {_kind(mode)}, which genimg does not write to", "remove it, or choose another directory"
        )


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UnsafeFileError(f"{path} is {_kind(mode)}, not a file", "remove it, or name another file")


def _kind(mode: int) -> str:
    return next((words for test, words in _KINDS if test(mode)), "not a file")
