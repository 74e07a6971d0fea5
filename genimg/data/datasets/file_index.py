"""A cached list of all images below a directory, because listing a million files takes long.

A cached list is valid while the modification times of all directories and the contents that its digest covers are unchanged:
see genimg.data.contents. Adding, removing or renaming a file changes the modification time of its directory.

Output of genimg is never data: run directories, sweeps and folders of samples below the root are skipped.
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

from genimg.data.contents import digest_of_contents
from genimg.data.saved_index import LEAST_SAVED, index_file, read_index, write_index
from genimg.errors import DataError
from genimg.utils.files import is_temporary
from genimg.utils.mounting import in_config
from genimg.utils.outputs import MARK, is_unfinished, read_mark, require_finished
from genimg.utils.pillow import suffixes
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)

_FORMAT = 2
_MOST_SHOWN = 3  # skipped directories named in a message
_OF_HYDRA = {".hydra", "config.yaml"}  # names in a run directory that other programs also use
_OF_A_RUN = {"checkpoints", "metrics.jsonl", "summary.json", "train.log"}  # names beside them that only a run directory has
_MODELS = ("genimg-sample", "genimg-latents", "genimg-translate")  # commands whose folders contain generated images
_MARKS = _OF_HYDRA | _OF_A_RUN | {MARK}  # names that identify a directory of genimg
_SAID: set[tuple[str, tuple[str, ...]]] = set()  # (root, skipped directories) already logged
# File systems record times in steps of up to two seconds (FAT). If a directory was listed within such a step after a change,
# a later change could leave the same time.
_RECENT_NS = 2_000_000_000


@dataclass(frozen=True)
class Index:
    """The image files below a directory.

    Attributes:
        paths: Paths relative to the directory, sorted, with ``/`` as separator.
        digest: Hexadecimal SHA-256 of all paths and sizes, and of the contents that ``digest_of_contents`` reads. It does not
            include times, so a copy elsewhere has the same digest.
        skipped: Skipped directories that genimg wrote, relative to the root.
        root: The directory.
    """

    paths: list[str]
    digest: str
    skipped: tuple[str, ...] = ()
    root: Path = field(default=Path(), compare=False)

    def open(self, path: str) -> Path:
        """Return the file of one of the paths, for Pillow."""
        return self.root / path


@dataclass
class _Listing:
    """The result of a directory walk.

    Attributes:
        files: (path, bytes) of each file; the size of a broken link is -1.
        directories: Path -> modification time in nanoseconds, inode.
        skipped: Skipped directories that genimg wrote.
        samples: Skipped directories of generated images.
        complete: Whether everything could be read, so no file can appear later in an unchanged directory.
        started: Start time of the walk, in nanoseconds.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    directories: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    complete: bool = True
    started: int = field(default_factory=time.time_ns)

    def names(self) -> tuple[list[str], str]:
        """Return the paths in order, and the digest of paths and sizes."""
        grids = {f"{path}.png" for path in self.samples}  # the grid beside such a folder
        self.files = sorted(file for file in self.files if file[0] not in grids) if grids else sorted(self.files)
        files = hashlib.sha256()
        for path, size in self.files:
            files.update(os.fsencode(f"{path}\0{size}\n"))
        return [path for path, _ in self.files], files.hexdigest()

    def worth_remembering(self) -> bool:
        """Return whether the walk took long and any later change will be detected."""
        is_stable = all(modified < self.started - _RECENT_NS for modified, _ in self.directories.values())
        return len(self.files) >= LEAST_SAVED and self.complete and is_stable


def list_images(root: Path, *, refresh: bool) -> Index:
    """List every file below ``root`` whose extension Pillow supports; skip hidden names and follow links.

    Args:
        root: Directory to list. The list is cached if it has at least 10,000 files.
        refresh: Whether to ignore a cached list.

    Raises:
        DataError: If the root itself is a run directory.
    """
    extensions = suffixes()
    file = index_file(root)
    known = None if refresh else _read(file, root, extensions)
    if known is not None:
        text = in_config("%d files of %s, from the saved file list (refresh_index=true lists them again)")
        log.info(text, len(known.paths), root)
        _say_what_was_skipped(root, known.skipped)
        return known
    listing = _walk(root, extensions)
    paths, names = listing.names()
    contents = digest_of_contents(root, paths)
    index = Index(paths, _combined(names, contents), tuple(sorted(listing.skipped)), root)
    if listing.worth_remembering():
        about = {"names": names, "contents": contents, "directories": listing.directories}
        write_index(file, _content(index, about, extensions))
    _say_what_was_skipped(root, index.skipped)
    return index


def _combined(names: str, contents: str) -> str:
    return hashlib.sha256(f"{names}\n{contents}".encode()).hexdigest()


def _say_what_was_skipped(root: Path, skipped: tuple[str, ...]) -> None:
    """Warn of skipped directories, once for each root, because training and evaluation both list it."""
    if not skipped or (key := (os.path.realpath(root), skipped)) in _SAID:
        return
    _SAID.add(key)
    more = f" and {len(skipped) - _MOST_SHOWN} more" if len(skipped) > _MOST_SHOWN else ""
    log.warning(
        "%s holds output of genimg, which is excluded from the data: %s%s; to use such a folder, name it directly",
        root, ", ".join(skipped[:_MOST_SHOWN]), more,
    )  # fmt: skip


def _written_by_genimg(marks: set[str]) -> str | None:
    """Return the name that identifies a directory as a run or sweep; None if it is neither."""
    return min(marks & _OF_A_RUN) if marks & _OF_HYDRA and marks & _OF_A_RUN else None


def _walk(root: Path, extensions: tuple[str, ...]) -> _Listing:
    listing = _Listing()
    visited: set[str] = set()  # a link to a parent directory would repeat everything
    waiting = [("", os.path.realpath(root))]
    with Progress(desc=f"listing {root}", unit="file", delay=1.0, leave=False) as progress:
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
                    listing.complete = False  # its target may be a directory that is not mounted now
            waiting += sorted(found, reverse=True)
    return listing


def _entries(root: Path, directory: str, listing: _Listing) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory without hidden names; none if genimg wrote it or if it is unreadable (with a warning).

    Raises:
        DataError: If genimg wrote the root itself.
    """
    path = os.path.join(root, directory) if directory else str(root)
    try:
        # Read the time first, so a change between the two calls makes the list invalid.
        state = os.stat(path)
        found, marks = [], set()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name in _MARKS:
                    marks.add(entry.name)
                if not entry.name.startswith("."):
                    found.append(entry)
    except OSError as error:
        log.warning("%s cannot be listed (%s): its images are skipped", path, error.strerror)
        listing.complete = False
        return
    if MARK in marks and is_unfinished(Path(path)):
        if not directory:
            require_finished(root)
        listing.skipped.append(directory)
        return
    if MARK in marks and directory and (read_mark(Path(path)) or {}).get("made_by") in _MODELS:  # the root itself is data
        listing.skipped.append(directory)
        listing.samples.append(directory)
        return
    if mark := _written_by_genimg(marks):
        if not directory:
            raise DataError(
                f"the directory {path} belongs to a run or a sweep (it holds {mark}), whose pictures are not data: name "
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
    except OSError:  # decoding it will fail and name it
        listing.complete = False
        return -1


def _read(file: Path | None, root: Path, extensions: tuple[str, ...]) -> Index | None:
    """Read a cached list; return None if there is no valid one or something has changed."""
    content = read_index(file)
    if content is None:
        return None
    head, _, names = content.partition(b"\n")
    header = json.loads(head)
    if header["format"] != _FORMAT or header["extensions"] != list(extensions):
        return None
    if any(_state(root, path) != tuple(state) for path, state in header["directories"].items()):
        return None
    paths = os.fsdecode(names).split("\0")
    if digest_of_contents(root, paths) != header["contents"]:
        log.info("files of %s were rewritten in place: the file list is rebuilt", root)
        return None
    return Index(paths, _combined(header["names"], header["contents"]), tuple(header["skipped"]), root)


def _state(root: Path, directory: str) -> tuple[int, int] | None:
    try:
        state = os.stat(os.path.join(root, directory) if directory else root)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino


def _content(index: Index, about: dict[str, Any], extensions: tuple[str, ...]) -> bytes:
    """Return a header and the names, which are separated by zeros because they may contain any other byte."""
    header = {"format": _FORMAT, "extensions": extensions, "skipped": index.skipped, **about}
    return json.dumps(header).encode() + b"\n" + os.fsencode("\0".join(index.paths))
