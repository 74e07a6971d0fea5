"""Reading files that may come from elsewhere, such as those of a downloaded run directory.

A link in a directory that somebody else has packed may lead to any file of this machine, and a FIFO or device may never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from genimg.errors import UserError

_OTHER_PROGRAMS = ("wandb",)  # directories in which these keep links of their own
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnsafeFileError(UserError, ValueError):
    """A link, FIFO, device or socket where a file or directory of a run is expected, or a file that is too large to be one."""


def open_regular(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file for reading; never waits for another process.

    Args:
        path: Of the file.
        below: A directory that ``path`` lies in: no component of ``path`` after it may be a link. None where the user has named
            the file itself, which may then be a link to one.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not a regular file, or is reached by a link.
    """
    if below is not None:
        refuse_links(path, below=below)
    _require_regular(path, os.stat(path).st_mode)  # before it is opened: opening a device may have effects
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
        most: Bytes that such a file can have; a larger one is refused before it is read.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not a regular file, is reached by a link, or is larger.
    """
    with open_regular(path, below=below) as file:
        require_at_most(path, file, most)
        return file.read(most + 1)


def require_at_most(path: Path, file: BinaryIO, most: int) -> None:
    """Refuse an open file that is larger than such a file can be.

    Args:
        path: Of the file, for the message.
        file: The file.
        most: Bytes.

    Raises:
        UnsafeFileError: If it is larger.
    """
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise UnsafeFileError(f"{path} has {size:,} bytes, but such a file has at most {most:,}", "remove it")


def refuse_links(path: Path, *, below: Path) -> None:
    """Refuse a path that leaves a directory, or could.

    Args:
        path: Of a file or directory in ``below``, which need not exist.
        below: The directory; it may be a link itself, and what it lies in, too.

    Raises:
        UnsafeFileError: If ``path`` does not lie in it, or a component after it is a link.
    """
    parts = path.relative_to(below).parts if path.is_relative_to(below) else ("..",)
    if ".." in parts or "\0" in str(path):
        raise UnsafeFileError(f"{path} is outside {below}", "name it on the command line, if you trust it")
    place = below
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise UnsafeFileError(
                f"{place} is a link, and a run directory never decides which other files are opened",
                "replace it by what it leads to, if you trust it",
            )


def require_plain(folder: Path, names: Iterable[str]) -> None:
    """Refuse a directory to write to in which something else than files and directories has the place of one of these.

    Args:
        folder: The directory; it may be absent, or a link.
        names: Of files and directories in it; all that is in such a directory is looked at, too.

    Raises:
        UnsafeFileError: For the first link, FIFO, socket or device.
    """
    for name in names:
        _require_plain(folder / name, inside=name not in _OTHER_PROGRAMS)


def _require_plain(path: Path, *, inside: bool = True) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing is there, or what is wrong will be said when it is used
        return
    if stat.S_ISDIR(mode):
        with os.scandir(path) as entries:
            for entry in entries:
                if inside and not entry.is_file(follow_symlinks=False):
                    _require_plain(path / entry.name)
    elif not stat.S_ISREG(mode):
        raise UnsafeFileError(
            f"{path} is {_kind(mode)}, and nothing is written through one", "remove it, or choose another directory"
        )


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UnsafeFileError(f"{path} is {_kind(mode)}, not a file", "remove it, or name another file")


def _kind(mode: int) -> str:
    return next((words for test, words in _KINDS if test(mode)), "not a file")
