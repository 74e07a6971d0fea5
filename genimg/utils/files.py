"""Atomic writing of files and directories."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from genimg.errors import ConfigError, UserError
from genimg.utils.regular_files import UnsafeFileError, open_regular
from genimg.utils.terminal import stop_signals

log = logging.getLogger(__name__)

_TEMPORARY = ".genimg-{}.tmp"  # suffix of a file or directory that is being written
_OLD = ".genimg-{}.old"  # suffix of a directory that is being replaced
_TOKEN = re.compile(r"\.genimg-[0-9a-f]{16}\.(tmp|old)")
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # from file systems without fsync
_ATTEMPTS = 100  # attempts to create a file in a directory that another process removes
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_IN_WORDS = ("No space left on device", "Disk quota exceeded", "inline_container", "PytorchStreamWriter failed")


@contextlib.contextmanager
def atomically(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds and is removed otherwise.

    The temporary file is in a new directory beside ``path`` with an unpredictable name, so no existing link is followed. If a
    killed process leaves such a directory, the next write to the same path removes it.

    Args:
        path: Path to write, which always holds either the old file, if any, or the complete new one. Missing parent
            directories are created. A link is replaced, not followed.
        durable: Whether the content must also survive a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    with _locked_directory(path) as folder:
        temporary = folder / path.name
        try:
            with _naming_what_was_written(path):
                yield temporary
            if durable:
                _sync(temporary)
            temporary.replace(path)
            if durable:
                _sync(path.parent)  # the rename itself
        finally:
            _remove(folder)


@contextlib.contextmanager
def _locked_directory(path: Path) -> Iterator[Path]:
    """Create a temporary directory beside ``path``, locked during the block to protect it from ``remove_leftovers``."""
    while True:
        folder = path.with_name(path.name + _TEMPORARY.format(secrets.token_hex(8)))
        folder.mkdir()  # fails if anything of this name exists
        descriptor = _lock(folder)
        if descriptor is None or folder.is_dir():
            break
        os.close(descriptor)  # another process removed the directory before it was locked
    try:
        yield folder
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a directory, which is usually empty; best effort."""
    try:
        folder.rmdir()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """Lock a directory and return its descriptor; None if the system has no locks or another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove incomplete files that killed processes left in a directory; best effort.

    Files that a running process has locked are kept. On a system without locks, all files are kept.

    Args:
        folder: The directory; it may be absent.
        name: Name of the file or directory that was being written; empty for all of them.
    """
    try:
        found = [
            Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(".tmp") and entry.name.startswith(name)
        ]
    except OSError:
        return
    for leftover in found:
        if not is_temporary(leftover.name) or (name and _TOKEN.sub("", leftover.name) != name):
            continue
        descriptor = _lock(leftover)
        if descriptor is not None:
            log.info("removing %s, which a killed command left half-written", leftover)
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a temporary file or directory of ``atomically`` or ``directory_atomically``."""
    token = _TOKEN.search(name)
    return token is not None and token.end() == len(name)


@contextlib.contextmanager
def _naming_what_was_written(path: Path) -> Iterator[None]:
    """Convert any full-disk error in the block to an OSError that names ``path``."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # The native writers of PyTorch and safetensors wrap the system's error in their own types.
        is_hidden = not isinstance(error, OSError | UserError) and any(words in str(error) for words in _FULL_IN_WORDS)
        if number not in _FULL and not is_hidden:
            raise
        raise OSError(number or errno.ENOSPC, os.strerror(number or errno.ENOSPC), str(path)) from error


@contextlib.contextmanager
def naming_full_disk(message: str) -> Iterator[None]:
    """Convert a full-disk error in the block to a ConfigError with this message."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ConfigError(message) from error


def new_directory(path: str) -> str:
    """Create a directory that no other process has, and return its name: ``path``, or ``path-2`` and so on if it exists.

    If no directory can be created, return ``path``; its first use then reports the reason.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            name = path if number == 1 else f"{path}-{number}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(name)  # unlike a check for existence, this succeeds in one process only
                return name
    except OSError:
        pass
    return path


class InUseError(UserError):
    """Another process holds the requested lock."""


@contextlib.contextmanager
def alone_in(path: Path, message: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock during the block; the system releases the lock of a killed process.

    Args:
        path: Path of the lock file, which is not removed; missing parent directories are created.
        message: Message of the error.
        patience: Seconds to wait for another process.

    Raises:
        InUseError: If another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no locks
        yield
        return
    end = time.monotonic() + patience
    has_said = False
    while True:
        with _opened_to_lock(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(path, file):  # removed by the process that held it; others may lock a new file
                    continue
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise InUseError(message) from error
                if not has_said:
                    log.info("waiting up to %.0f s for the process that uses %s", patience, path.parent)
                    has_said = True
                time.sleep(0.2)
                continue
            except OSError:  # a file system without locks
                pass
            yield
            return


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock of ``alone_in``; no file is created or changed.

    Args:
        path: Path of the lock file.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no locks
        return False
    try:
        file = open_regular(path)
    except (OSError, UnsafeFileError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


def _opened_to_lock(path: Path) -> IO[str]:
    """Open or create a file for locking, without following a link or waiting for the reader of a pipe."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process has just removed the directory
            return os.fdopen(os.open(path, flags, 0o666), "a")
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _is_at(path: Path, file: IO[str]) -> bool:
    """Return whether a path still refers to this open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def directory_atomically(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that replaces it if the block succeeds and is removed otherwise.

    The signals of ``terminal.stop_signals`` end the block with SystemExit.

    Args:
        path: Path that is absent or an empty directory; missing parent directories are created.
        replace: Whether ``path`` may have content, which stays until the new directory is complete and is then removed.
    """
    old = path.with_name(path.name + _OLD.format(secrets.token_hex(8)))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    if replace:
        _finish_swap(path)
    numbers = [number for number in stop_signals() if number != signal.SIGINT]
    # Exit by an exception, which runs the cleanup below.
    previous = {number: signal.signal(number, lambda received, _: sys.exit(128 + received)) for number in numbers}
    try:
        with _locked_directory(path) as temporary:
            try:
                with _naming_what_was_written(path):
                    yield temporary
                _swap(temporary, path, old if replace and path.exists() else None)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _swap(new: Path, path: Path, old: Path | None) -> None:
    """Move ``path`` to ``old``, then ``new`` to ``path``; if ``old`` is None, ``path`` must be absent or an empty directory."""
    if old is not None:
        path.rename(old)
    elif path.exists():
        path.rmdir()
    try:
        new.rename(path)
    except BaseException:  # also a signal between the two renames
        if old is not None and old.exists() and not path.exists():
            old.rename(path)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _finish_swap(path: Path) -> None:
    """Restore or remove the old content of ``path`` after a process was killed during or right after ``_swap``."""
    for old in sorted(path.parent.glob(f"{glob.escape(path.name)}.*.old")):
        if not _TOKEN.fullmatch(old.name.removeprefix(path.name)):
            continue
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def _sync(path: Path) -> None:
    """Flush a file or directory to disk, if the system and the file system support it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # the file is written; without fsync, the file system decides when it is durable
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_writable(key: str, path: Path) -> None:
    """Check that a file can be written before computing its content.

    Raises:
        ConfigError: If it cannot be written.
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
    """Check that ``directory_atomically`` can create an output directory.

    Raises:
        ConfigError: If it cannot.
    """
    if output.is_dir():
        if any(output.iterdir()):
            raise ConfigError(f"output={output} exists and is not empty: remove it, or choose another output")
        if output.is_mount():  # a mount point cannot be replaced
            raise ConfigError(f"output={output} is a mount point: name a directory below it")
    elif output.exists():
        raise ConfigError(f"output={output} is a file: name a directory that does not exist yet")
    else:
        check_writable("output", output)
