"""A digest of file contents at a bounded cost: small files are read whole, large ones in three pieces."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

from genimg.utils.progress import Progress

MOST_FILES = 10_000
"""Maximum number of files to read; if there are more, those whose names have the smallest hashes are read."""

_PIECE = 16 * 2**10  # bytes at the head, middle and tail of a file; files of up to three pieces are read whole
_THREADS = 8  # most of the time is spent waiting for the disk
_BATCH = 256  # files per task of a thread
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a named pipe must not block


def digest_of_contents(root: Path, paths: Sequence[str]) -> str:
    """Return the SHA-256 of file contents, in hexadecimal; see ``digest_of_items``.

    Args:
        root: Directory of the files.
        paths: Paths of the files, relative to ``root``, in a fixed order.
    """
    return digest_of_items(paths, partial(_digest, root), str(root))


def digest_of_items(names: Sequence[str], digest_of: Callable[[str], bytes], where: str) -> str:
    """Return the SHA-256 of the contents of files, or of members of an archive, in hexadecimal.

    Items of up to 48 KiB are read whole; of larger ones, the size and 16 KiB at the head, middle and tail are used.
    If there are more than ``MOST_FILES`` items, only a sample is read, which depends on the names alone. A change of one item
    in a thousand in a folder of a million is then detected with a probability of 99.996 %.

    Args:
        names: Names of the items, in a fixed order.
        digest_of: Function that returns an item's digest, from ``digest_of_region`` or ``digest_of_bytes``.
        where: Name of the folder or archive, for the progress bar.
    """
    chosen = _sample(names)
    whole = hashlib.sha256()
    bounds = [*range(0, len(chosen), _BATCH), len(chosen)]
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        Progress(total=len(chosen), desc=f"reading {where}", unit="file", delay=2.0, leave=False) as progress,
    ):
        for digests in pool.map(lambda part: [digest_of(name) for name in part],
                                [chosen[start:stop] for start, stop in pairwise(bounds)]):  # fmt: skip
            for each in digests:
                whole.update(each)
            progress.update(len(digests))
    return whole.hexdigest()


def digest_of_region(file: int, start: int, size: int) -> bytes:
    """Return the digest of ``size`` bytes of an open file's descriptor, from ``start`` on."""
    content = hashlib.sha256(f"{size}\0".encode())
    for offset, length in _pieces(size):
        os.lseek(file, start + offset, os.SEEK_SET)
        content.update(os.read(file, length))
    return content.digest()


def digest_of_bytes(value: bytes | memoryview) -> bytes:
    """Return the digest of an item in memory, the same as that of a file with this content."""
    content = hashlib.sha256(f"{len(value)}\0".encode())
    for offset, length in _pieces(len(value)):
        content.update(value[offset : offset + length])
    return content.digest()


def _pieces(size: int) -> list[tuple[int, int]]:
    """Return the offset and length of each piece of an item that is read."""
    if size <= 3 * _PIECE:
        return [(0, size)]
    return [(start, _PIECE) for start in (0, (size - _PIECE) // 2, size - _PIECE)]


def _sample(paths: Sequence[str]) -> Sequence[str]:
    """Return at most ``MOST_FILES`` of the paths, in order; chosen by hash, because sorted names may be periodic."""
    if len(paths) <= MOST_FILES:
        return paths
    keys = [hashlib.blake2b(os.fsencode(path), digest_size=8).digest() for path in paths]
    return [paths[i] for i in sorted(heapq.nsmallest(MOST_FILES, range(len(paths)), key=lambda i: (keys[i], i)))]


def _digest(root: Path, path: str) -> bytes:
    """Return the digest of a file's size and content; an unreadable file counts as "unreadable", and decoding reports why."""
    try:
        file = os.open(os.path.join(root, path), _FLAGS)
        try:
            return digest_of_region(file, 0, os.fstat(file).st_size)
        finally:
            os.close(file)
    except OSError:
        return hashlib.sha256(b"unreadable").digest()
