"""Lists that take long to make, saved in the cache with a checksum."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from genimg.errors import ConfigError
from genimg.utils.files import atomically
from genimg.utils.paths import cache_dir

log = logging.getLogger(__name__)

LEAST_SAVED = 10_000
"""Number of items from which a list is saved; shorter ones are made quickly."""


def index_file(root: Path, kind: str = "") -> Path | None:
    """Return the path of the saved list of a directory or file; None if there is no cache directory.

    Args:
        root: The directory or file, or a pattern.
        kind: Further text that distinguishes lists of the same root.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(root) + (f"\0{kind}" if kind else ""))).hexdigest()[:32]
    try:
        return cache_dir() / "index" / name
    except ConfigError:
        return None


def read_index(file: Path | None) -> bytes | None:
    """Return what ``write_index`` wrote; None, with a warning, if it cannot be read or is damaged."""
    try:
        content = b"" if file is None else file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the file list %s cannot be read (%s) and is rebuilt", file, error.strerror)
        return None
    if file is None:
        return None
    checksum, _, content = content.partition(b"\n")
    if checksum.decode("ascii", "replace") != hashlib.sha256(content).hexdigest():
        log.warning("the file list %s is damaged and is rebuilt", file)
        return None
    return content


def write_index(file: Path | None, content: bytes) -> None:
    """Save a list and its checksum atomically. If the cache cannot be written, only log a warning."""
    if file is None:
        return
    try:
        with atomically(file) as temporary:
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        log.warning(
            "the file list cannot be saved in %s (%s): set GENIMG_CACHE to a writable directory", file.parent, error.strerror
        )
