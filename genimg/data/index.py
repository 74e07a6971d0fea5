"""All images below a directory, listed once and remembered, because a million names take long to gather from a disk.

A remembered list is valid while every directory has the modification time that it had, which adding, removing or renaming a
file changes. Rewriting a file in place changes nothing of its directory and is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from genimg.files import atomically
from genimg.paths import cache_dir

log = logging.getLogger(__name__)

# Formats that Pillow registers and cannot decode: it only writes them, or knows no more than their names.
_NOT_READABLE = ("PDF", "PALM", "HDF5", "BUFR", "GRIB", "MPEG")
_FORMAT = 1
_LEAST_CACHED = 10_000  # files; fewer are listed in no time
# File systems record times in steps of up to two seconds (FAT): in a directory that was changed so shortly before it was
# listed, a later change could leave the same time behind.
_RECENT_NS = 2_000_000_000


@dataclass(frozen=True)
class Index:
    """The image files below a directory.

    Attributes:
        paths: relative to it, sorted, with ``/`` between their parts.
        digest: sha256 of all paths, sizes and modification times, in hexadecimal.
    """

    paths: list[str]
    digest: str


@dataclass
class _Listing:
    """What a walk gathers.

    Attributes:
        files: (path, bytes, modification time in nanoseconds); the size of a link that leads nowhere is -1.
        directories: path -> modification time in nanoseconds, inode.
        complete: whether everything could be read, so that nothing appears later in a directory that does not change.
        started: when the walk began, in nanoseconds.
    """

    files: list[tuple[str, int, int]] = field(default_factory=list)
    directories: dict[str, tuple[int, int]] = field(default_factory=dict)
    complete: bool = True
    started: int = field(default_factory=time.time_ns)

    def index(self) -> Index:
        self.files.sort()
        files = hashlib.sha256()
        for path, size, modified in self.files:
            files.update(os.fsencode(f"{path}\0{size}\0{modified}\n"))
        return Index([path for path, _, _ in self.files], files.hexdigest())

    def worth_remembering(self) -> bool:
        """Whether it took long, and will certainly be seen to be out of date when it is."""
        settled = all(modified < self.started - _RECENT_NS for modified, _ in self.directories.values())
        return len(self.files) >= _LEAST_CACHED and self.complete and settled


def list_images(root: Path, *, refresh: bool) -> Index:
    """Every file below ``root`` whose extension Pillow reads; hidden names are skipped, links are followed.

    Args:
        root: a directory. From 10,000 files on, its list is kept below the cache directory.
        refresh: list it anew even where a list is kept.
    """
    Image.init()
    extensions = tuple(sorted(end for end, kind in Image.registered_extensions().items() if kind not in _NOT_READABLE))
    file = _cache_file(root)
    if file is not None and not refresh:
        known = _read(file, root, extensions)
        if known is not None:
            log.info("%d files of %s, as listed before (data.refresh_index=true lists them anew)", len(known.paths), root)
            return known
    listing = _walk(root, extensions)
    index = listing.index()
    if file is not None and listing.worth_remembering():
        _write(file, index, listing.directories, extensions)
    return index


def _walk(root: Path, extensions: tuple[str, ...]) -> _Listing:
    listing = _Listing()
    visited: set[str] = set()  # a link to a directory above would otherwise repeat everything
    waiting = [("", os.path.realpath(root))]
    with tqdm(desc=f"listing {root}", unit="file", delay=1.0, leave=False, disable=None) as progress:
        while waiting:
            directory, real = waiting.pop()
            if real in visited:
                continue
            visited.add(real)
            found = []
            for entry in _entries(root, directory, listing):
                path = f"{directory}/{entry.name}" if directory else entry.name
                if _is_directory(entry):
                    linked = entry.is_symlink()
                    found.append((path, os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)))
                elif entry.name.lower().endswith(extensions):
                    listing.files.append((path, *_size_and_time(entry, listing)))
                    if len(listing.files) % 1000 == 0:
                        progress.update(1000)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    listing.complete = False  # it may lead to a directory, once that is mounted
            waiting += sorted(found, reverse=True)
    return listing


def _entries(root: Path, directory: str, listing: _Listing) -> Iterator[os.DirEntry[str]]:
    """What a directory holds without hidden names; nothing, with a warning, where it cannot be read."""
    path = os.path.join(root, directory) if directory else str(root)
    try:
        # Its time first: a change between the two calls then makes the list invalid instead of going unnoticed.
        state = os.stat(path)
        with os.scandir(path) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        log.warning("%s cannot be listed (%s): its images are left out", path, error.strerror)
        listing.complete = False
        return
    listing.directories[directory] = (state.st_mtime_ns, state.st_ino)
    yield from found


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _size_and_time(entry: os.DirEntry[str], listing: _Listing) -> tuple[int, int]:
    try:
        state = entry.stat()
    except OSError:  # its decoding will fail and name it
        listing.complete = False
        return -1, 0
    return state.st_size, state.st_mtime_ns


def _cache_file(root: Path) -> Path | None:
    """None where there is no place for a cache."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    try:
        return cache_dir() / "index" / name
    except RuntimeError:
        return None


def _read(file: Path, root: Path, extensions: tuple[str, ...]) -> Index | None:
    """None where there is nothing usable, or something has changed."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the list of files %s cannot be read (%s) and is made again", file, error.strerror)
        return None
    checksum, _, content = content.partition(b"\n")
    if checksum.decode("ascii", "replace") != hashlib.sha256(content).hexdigest():
        log.warning("the list of files %s is damaged and is made again", file)
        return None
    head, _, names = content.partition(b"\n")
    header = json.loads(head)
    if header["format"] != _FORMAT or header["extensions"] != list(extensions):
        return None
    if any(_state(root, path) != tuple(state) for path, state in header["directories"].items()):
        return None
    return Index(os.fsdecode(names).split("\0"), header["digest"])


def _state(root: Path, directory: str) -> tuple[int, int] | None:
    try:
        state = os.stat(os.path.join(root, directory) if directory else root)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino


def _write(file: Path, index: Index, directories: dict[str, tuple[int, int]], extensions: tuple[str, ...]) -> None:
    """Checksum, header and names, one after the other: names may hold every byte but a zero, and are not always UTF-8.

    A cache that cannot be written costs time, not the run.
    """
    header = {"format": _FORMAT, "extensions": extensions, "digest": index.digest, "directories": directories}
    content = json.dumps(header).encode() + b"\n" + os.fsencode("\0".join(index.paths))
    try:
        with atomically(file) as temporary:
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        log.warning(
            "the list of files cannot be kept in %s (%s): set GENIMG_CACHE to a writable directory", file.parent, error.strerror
        )
