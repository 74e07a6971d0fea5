"""All images below a directory, listed once and remembered, because a million names take long to gather from a disk.

A remembered list is valid while every directory has the modification time that it had, which adding, removing or renaming a
file changes, and while the files that its digest reads hold what they held: see genimg.data.contents.

What genimg itself writes is never data: run directories, sweeps and folders of samples below the root are left out.
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
from typing import Any

from tqdm import tqdm

from genimg.data.contents import digest_of_contents
from genimg.errors import DataError
from genimg.utils.files import atomically, is_temporary
from genimg.utils.outputs import MARK, is_unfinished, read_mark, require_finished
from genimg.utils.paths import cache_dir
from genimg.utils.pillow import suffixes

log = logging.getLogger(__name__)

_FORMAT = 2
_LEAST_CACHED = 10_000  # files; fewer are listed in no time
_MOST_SHOWN = 3  # of the directories that were left out, in a message
_OF_HYDRA = {".hydra", "config.yaml"}  # of a run; other programs have these names, too
_OF_A_RUN = {"checkpoints", "metrics.jsonl", "summary.json", "train.log"}  # beside one of those
_MODELS = ("genimg-sample", "genimg-translate")  # commands whose folders hold what a model made
_MARKS = _OF_HYDRA | _OF_A_RUN | {MARK}  # names that say without another look at the disk what a directory is
_SAID: set[tuple[str, tuple[str, ...]]] = set()  # which directories were left out of which root
# File systems record times in steps of up to two seconds (FAT): in a directory that was changed so shortly before it was
# listed, a later change could leave the same time behind.
_RECENT_NS = 2_000_000_000


@dataclass(frozen=True)
class Index:
    """The image files below a directory.

    Attributes:
        paths: relative to it, sorted, with ``/`` between their parts.
        digest: sha256 of all paths and sizes, and of the files' contents as ``digest_of_contents`` reads them, in
            hexadecimal. Times are no part of it, so a copy elsewhere has the same.
        skipped: directories that hold what genimg wrote, relative to the root.
        root: the directory.
    """

    paths: list[str]
    digest: str
    skipped: tuple[str, ...] = ()
    root: Path = field(default=Path(), compare=False)

    def open(self, path: str) -> Path:
        """What Pillow opens one of the paths by."""
        return self.root / path


@dataclass
class _Listing:
    """What a walk gathers.

    Attributes:
        files: (path, bytes); the size of a link that leads nowhere is -1.
        directories: path -> modification time in nanoseconds, inode.
        skipped: directories that hold what genimg wrote.
        samples: those of them that hold images which a model made.
        complete: whether everything could be read, so that nothing appears later in a directory that does not change.
        started: when the walk began, in nanoseconds.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    directories: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    complete: bool = True
    started: int = field(default_factory=time.time_ns)

    def names(self) -> tuple[list[str], str]:
        """The paths in order, and the digest of paths and sizes."""
        grids = {f"{path}.png" for path in self.samples}  # the picture beside such a folder
        self.files = sorted(file for file in self.files if file[0] not in grids) if grids else sorted(self.files)
        files = hashlib.sha256()
        for path, size in self.files:
            files.update(os.fsencode(f"{path}\0{size}\n"))
        return [path for path, _ in self.files], files.hexdigest()

    def worth_remembering(self) -> bool:
        """Whether it took long, and will certainly be seen to be out of date when it is."""
        settled = all(modified < self.started - _RECENT_NS for modified, _ in self.directories.values())
        return len(self.files) >= _LEAST_CACHED and self.complete and settled


def list_images(root: Path, *, refresh: bool) -> Index:
    """List every file below ``root`` whose extension Pillow reads; hidden names are skipped, links are followed.

    Args:
        root: A directory. From 10,000 files on, its list is kept below the cache directory.
        refresh: Whether to list it again even where a list is kept.

    Raises:
        DataError: If the root is itself a run directory.
    """
    extensions = suffixes()
    file = _cache_file(root)
    known = None if file is None or refresh else _read(file, root, extensions)
    if known is not None:
        log.info("%d files of %s, as listed before (refresh_index=true lists them again)", len(known.paths), root)
        _say_what_was_skipped(root, known.skipped)
        return known
    listing = _walk(root, extensions)
    paths, names = listing.names()
    contents = digest_of_contents(root, paths)
    index = Index(paths, _combined(names, contents), tuple(sorted(listing.skipped)), root)
    if file is not None and listing.worth_remembering():
        _write(file, index, {"names": names, "contents": contents, "directories": listing.directories}, extensions)
    _say_what_was_skipped(root, index.skipped)
    return index


def _combined(names: str, contents: str) -> str:
    return hashlib.sha256(f"{names}\n{contents}".encode()).hexdigest()


def _say_what_was_skipped(root: Path, skipped: tuple[str, ...]) -> None:
    """Once for each root, because a training and its evaluation list it in turn."""
    if not skipped or (key := (os.path.realpath(root), skipped)) in _SAID:
        return
    _SAID.add(key)
    more = f" and {len(skipped) - _MOST_SHOWN} more" if len(skipped) > _MOST_SHOWN else ""
    log.warning(
        "%s holds what genimg wrote, which is left out of the data: %s%s; to use such a folder, name it itself",
        root, ", ".join(skipped[:_MOST_SHOWN]), more,
    )  # fmt: skip


def _written_by_genimg(marks: set[str]) -> str | None:
    """Return the name by which a directory is known as one that genimg wrote, of those in ``_MARKS``; None if it is another."""
    return min(marks & _OF_A_RUN) if marks & _OF_HYDRA and marks & _OF_A_RUN else None


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
                if is_temporary(entry.name):
                    listing.skipped.append(path)
                elif _is_directory(entry):
                    linked = entry.is_symlink()
                    found.append((path, os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)))
                elif entry.name.lower().endswith(extensions):
                    listing.files.append((path, _size(entry, listing)))
                    if len(listing.files) % 1000 == 0:
                        progress.update(1000)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    listing.complete = False  # it may lead to a directory, once that is mounted
            waiting += sorted(found, reverse=True)
    return listing


def _entries(root: Path, directory: str, listing: _Listing) -> Iterator[os.DirEntry[str]]:
    """What a directory holds without hidden names; nothing where it cannot be read, with a warning, or genimg wrote it.

    Raises:
        DataError: If genimg wrote the root itself.
    """
    path = os.path.join(root, directory) if directory else str(root)
    try:
        # Its time first: a change between the two calls then makes the list invalid instead of going unnoticed.
        state = os.stat(path)
        found, marks = [], set()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name in _MARKS:
                    marks.add(entry.name)
                if not entry.name.startswith("."):
                    found.append(entry)
    except OSError as error:
        log.warning("%s cannot be listed (%s): its images are left out", path, error.strerror)
        listing.complete = False
        return
    if MARK in marks and is_unfinished(Path(path)):
        if not directory:
            require_finished(root)
        listing.skipped.append(directory)
        return
    if MARK in marks and directory and (read_mark(Path(path)) or {}).get("made_by") in _MODELS:  # named itself, it is data
        listing.skipped.append(directory)
        listing.samples.append(directory)
        return
    if mark := _written_by_genimg(marks):
        if not directory:
            raise DataError(
                f"the directory {path} is itself that of a run or a sweep (it holds {mark}), whose pictures are not data: name "
                "the directory of the images, or choose another run_dir"
            )
        listing.skipped.append(directory)
        return
    listing.directories[directory] = (state.st_mtime_ns, state.st_ino)
    yield from found


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _size(entry: os.DirEntry[str], listing: _Listing) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # its decoding will fail and name it
        listing.complete = False
        return -1


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
    paths = os.fsdecode(names).split("\0")
    if digest_of_contents(root, paths) != header["contents"]:
        log.info("files of %s were rewritten in place: the list is made again", root)
        return None
    return Index(paths, _combined(header["names"], header["contents"]), tuple(header["skipped"]), root)


def _state(root: Path, directory: str) -> tuple[int, int] | None:
    try:
        state = os.stat(os.path.join(root, directory) if directory else root)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino


def _write(file: Path, index: Index, about: dict[str, Any], extensions: tuple[str, ...]) -> None:
    """Checksum, header and names, one after the other: names may hold every byte but a zero, and are not always UTF-8.

    A cache that cannot be written costs time, not the run.
    """
    header = {"format": _FORMAT, "extensions": extensions, "skipped": index.skipped, **about}
    content = json.dumps(header).encode() + b"\n" + os.fsencode("\0".join(index.paths))
    try:
        with atomically(file) as temporary:
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        log.warning(
            "the list of files cannot be kept in %s (%s): set GENIMG_CACHE to a writable directory", file.parent, error.strerror
        )
