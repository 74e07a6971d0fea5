"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genimg.errors import ConfigError, UserError
from genimg.utils.terminal import stop_signals

log = logging.getLogger(__name__)

_OLD = "genimg-old"  # ending of a directory that is being replaced; no name that a person gives to a copy


@contextlib.contextmanager
def atomically(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, which takes its place if the block ends well and is removed if not.

    Args:
        path: absent, the old file or the new one at every moment; missing parent directories are made.
        durable: whether the content shall survive a power cut too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)  # the rename itself
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def naming_full_disk(message: str) -> Iterator[None]:
    """A block in which a disk that becomes full ends in a ConfigError of these words."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(message) from error


def new_directory(path: str) -> str:
    """Make a directory that no other process has, and return its name: ``path``, or ``path-2`` and so on where it is taken.

    Where it cannot be made at all, ``path`` is returned; its first use then says why.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            name = path if number == 1 else f"{path}-{number}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(name)  # unlike a look at what is there, this succeeds in one process only
                return name
    except OSError:
        pass
    return path


class InUseError(UserError):
    """Another process holds what was asked for."""


@contextlib.contextmanager
def alone_in(path: Path, message: str, *, patience: float = 0.0) -> Iterator[None]:
    """A block that no other process is in at the same time; the system ends what a killed process held.

    Args:
        path: of the lock, a file that stays; missing parent directories are made.
        message: of the error.
        patience: seconds to wait for another process.

    Raises:
        InUseError: if another process is in such a block of the same path.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where nothing is locked
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        end = time.monotonic() + patience
        has_said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise InUseError(message) from error
                if not has_said:
                    log.info("waiting up to %.0f s for the process that uses %s", patience, path.parent)
                    has_said = True
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield


@contextlib.contextmanager
def directory_atomically(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory beside ``path`` that takes its place if the block ends well and is removed if not.

    The signals of ``terminal.stop_signals`` end the block as Ctrl-C does, with SystemExit.

    Args:
        path: absent or an empty directory; missing parent directories are made.
        replace: whether ``path`` may hold something, which stays until the new directory is complete and is then removed.
    """
    temporary, old = (path.with_name(f"{path.name}.{os.getpid()}.{end}") for end in ("tmp", _OLD))
    for each in (temporary, old):  # of a killed process with our number
        shutil.rmtree(each, ignore_errors=True)
    if replace:
        _finish_swap(path)
    numbers = [number for number in stop_signals() if number != signal.SIGINT]
    # So that the end below is reached.
    previous = {number: signal.signal(number, lambda received, _: sys.exit(128 + received)) for number in numbers}
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if replace and path.exists():
            path.rename(old)
        elif path.exists():  # and is empty
            path.rmdir()
        try:
            temporary.rename(path)
        except BaseException:  # also a signal between the two renames
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        shutil.rmtree(temporary, ignore_errors=True)


def _finish_swap(path: Path) -> None:
    """Bring back, or remove, what a process left of ``path`` that was killed between two renames or right after them."""
    for old in sorted(path.parent.glob(f"{glob.escape(path.name)}.*.{_OLD}")) if path.parent.is_dir() else ():
        if not re.fullmatch(rf"\.\d+\.{_OLD}", old.name.removeprefix(path.name)):
            continue
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def _sync(path: Path) -> None:
    """To the disk, where the system lets a file or directory be synced through a descriptor opened for reading."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_writable(key: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        ConfigError: Naming the key and the path.
    """
    if path.is_dir():
        raise ConfigError(f"{key}={path} is a directory: name a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key}={path} cannot be written ({folder}: {error.strerror}): choose another {key}") from error


def check_output_directory(output: Path) -> None:
    """Refuse an output that ``directory_atomically`` could not put in its place.

    Raises:
        ConfigError: Naming it.
    """
    if output.is_dir():
        if any(output.iterdir()):
            raise ConfigError(f"output={output} exists and is not empty: remove it, or choose another output")
        if output.is_mount():  # nothing can take its place
            raise ConfigError(f"output={output} is where a disk is mounted: name a directory on it")
    elif output.exists():
        raise ConfigError(f"output={output} is a file: name a directory that does not exist yet")
    else:
        check_writable("output", output)
