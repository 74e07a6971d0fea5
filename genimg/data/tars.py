"""Files in uncompressed tar archives, read in place by any number of threads and processes at once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from genimg.data.contents import digest_of_region
from genimg.data.saved_index import LEAST_SAVED, index_file, read_index, write_index
from genimg.errors import DataError
from genimg.utils.progress import Progress
from genimg.utils.regular_files import open_regular

_FORMAT = 1
_MOST_HEADER = 2**20  # bytes of a header with its extensions; a long name takes less than 5,000
_RECENT_NS = 2_000_000_000  # a file changed within the resolution of its time could change again unnoticed
_BLOCK = 512
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard", b"\x04\x22\x4d\x18": "LZ4",
}  # first bytes of compressed files  # fmt: skip


@dataclass(frozen=True)
class TarArchive:
    """A tar archive.

    Attributes:
        path: Its path.
        name: Its path relative to the directory of all archives.
        state: Its size in bytes, and its modification time in nanoseconds.
    """

    path: Path
    name: str
    state: tuple[int, int]

    def open(self) -> BinaryIO:
        """Open the archive.

        Raises:
            OSError: If it cannot be opened, or was changed after its files were listed.
        """
        file = open(self.path, "rb")  # noqa: SIM115 - the caller closes it
        if _state(os.fstat(file.fileno())) != self.state:
            file.close()
            raise OSError(f"the archive {self.name} was changed after it was opened")
        return file

    def read(self, file: BinaryIO, offset: int, size: int) -> bytes:
        """Return the ``size`` bytes from ``offset`` on of the open archive.

        Raises:
            OSError: If the archive ends before.
        """
        file.seek(offset)
        content = file.read(size)
        if len(content) != size:
            raise OSError(f"the archive {self.name} ends within it")
        return content

    def digest(self, offset: int, size: int) -> bytes:
        """Return the digest of a file in the archive for ``digest_of_items``."""
        try:
            with self.open() as file:
                return digest_of_region(file.fileno(), offset, size)
        except OSError:  # reading the file will report the error
            return b"unreadable"

    def read_ahead(self) -> None:
        """Ask the system to read the whole archive from the disk, from its beginning to its end; best effort."""
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            with self.open() as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:  # reading its files will report the error
            return


@dataclass(frozen=True)
class Listing:
    """The regular files in a tar archive, in their order.

    Attributes:
        archive: The archive.
        names: Names of the files.
        places: Offset and size in bytes of each file's content, int64 [M, 2].
    """

    archive: TarArchive
    names: list[str]
    places: NDArray[np.int64]


def open_archives(root: Path, names: Sequence[str], *, key: str, refresh: bool) -> list[Listing]:
    """List the files in tar archives; lists of 10,000 files or more are saved and used as long as an archive is unchanged.

    Args:
        root: Directory of the archives.
        names: Their paths, relative to ``root``.
        key: Name of the saved list: the directory or pattern that the user gave.
        refresh: Whether to ignore the saved list.

    Raises:
        DataError: If an archive is missing, compressed or damaged.
    """
    saved = index_file(Path(key), "tar archives")
    known = {} if refresh else _read(saved, root)
    started, listings, is_new = time.time_ns(), [], False
    for name in Progress(names, desc=f"listing {root}", unit="archive", delay=1.0, leave=False):
        archive = TarArchive(root / name, name, _state_of(root / name))
        found = known.get(name)
        if found is None or found.archive.state != archive.state:
            is_new, found = True, Listing(archive, *_members(archive.path))
        listings.append(Listing(archive, found.names, found.places))
    is_stable = all(each.archive.state[1] < started - _RECENT_NS for each in listings)
    if is_new and is_stable and sum(len(each.names) for each in listings) >= LEAST_SAVED:
        write_index(saved, _content(listings))
    return listings


def state_of(listings: Sequence[Listing]) -> str:
    """Return a digest of the names, sizes and modification times of archives."""
    states = [(each.archive.name, each.archive.state) for each in listings]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _state_of(path: Path) -> tuple[int, int]:
    try:
        return _state(os.stat(path))
    except OSError as error:
        raise DataError(
            f"the archive {path} cannot be read ({error.strerror}): copy it again, or name other archives"
        ) from error


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _members(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read the headers of an archive, and return the names and places of its regular files."""
    names: list[str] = []
    places: list[tuple[int, int]] = []
    with open_regular(path) as file:
        _refuse_compressed(path, file.read(_BLOCK))
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it keeps an object of a kilobyte for each
                    if member.sparse is not None or "\0" in member.name:
                        raise tarfile.ReadError(f"{member.name!r} is stored in a form that is not supported")
                    if member.isreg():
                        names.append(member.name)
                        places.append((member.offset_data, member.size))
                end = archive.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise DataError(f"the archive {path} is damaged or incomplete ({error}): copy it again") from error
        file.seek(end)
        if file.read(_BLOCK).strip(b"\0"):  # tarfile stops at a damaged header as it does at the end
            raise DataError(f"the archive {path} is damaged: it has no valid header at byte {end:,}: copy it again")
    return names, np.array(places, dtype=np.int64).reshape(-1, 2)


def _refuse_compressed(path: Path, head: bytes) -> None:
    for start, name in _COMPRESSED.items():
        if head.startswith(start):
            raise DataError(
                f"the archive {path} is compressed with {name}, so single images cannot be read from it: decompress it (images "
                "in it are already compressed)"
            )


class _Headers(io.RawIOBase):
    """An archive from which only headers are read, because the size of a header's extensions is written in the file itself."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _content(listings: Sequence[Listing]) -> bytes:
    """Return a header, the places, and the names, separated by zeros."""
    archives = [(each.archive.name, each.archive.state, len(each.names)) for each in listings]
    places = b"".join(each.places.astype("<i8").tobytes() for each in listings)
    names = os.fsencode("\0".join(name for each in listings for name in each.names))
    return json.dumps({"format": _FORMAT, "archives": archives}).encode() + b"\n" + places + names


def _read(file: Path | None, root: Path) -> dict[str, Listing]:
    """Return the saved lists by the names of their archives; empty if there are none."""
    content = read_index(file)
    if content is None:
        return {}
    head, _, rest = content.partition(b"\n")
    header = json.loads(head)
    if header["format"] != _FORMAT:
        return {}
    total = sum(count for _, _, count in header["archives"])
    places = np.frombuffer(rest, dtype="<i8", count=2 * total).astype(np.int64).reshape(-1, 2)
    names = os.fsdecode(rest[16 * total :]).split("\0")
    found: dict[str, Listing] = {}
    start = 0
    for name, state, count in header["archives"]:
        part = slice(start, start + count)
        found[name] = Listing(TarArchive(root / name, name, (state[0], state[1])), names[part], places[part])
        start += count
    return found
