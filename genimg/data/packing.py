"""Decodes a dataset once and writes its pixels as the files that genimg.data.packed_files describes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import genimg
from genimg.data.corrupt import none_decodable, too_many
from genimg.data.datasets.builtin import CorruptImageError, ImageDataset
from genimg.data.packed_files import CAPTIONS, CHECKSUMS, LABELS, Description, Shard
from genimg.utils.environment import num_cores

CORRUPT = "corrupt.txt"
_PIECE_BYTES = 2**23  # of decoded images that a thread hands over at a time
_PIECE_IMAGES = 64
_PIECES_AHEAD = 4  # a thread, so that none waits for another's large file


@dataclass(frozen=True)
class _Piece:
    """A run of consecutive images.

    Attributes:
        images: those that can be decoded, uint8 [N, C, H, W].
        indices: in the source, int64 [N].
        problems: path and reason of each of the others.
    """

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    problems: list[str]


class _ShardWriter:
    """Images one after the other into files of ``per_shard`` each.

    Written as a stream: a full disk is then an error, where writing through a memory map would end the process.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], per_shard: int) -> None:
        self.folder, self.shape, self.per_shard = folder, shape, per_shard
        self.shards: list[Shard] = []
        self.checksums: list[int] = []
        self._file: io.BufferedRandom | None = None
        self._count = 0

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._file is not None:
            self._finish(self._file)
        elif self._file is not None:
            self._file.raw.close()  # without the rest of the buffer, for which a full disk has no room

    def write(self, images: NDArray[np.uint8]) -> None:
        """Images uint8 [N, C, H, W]."""
        while len(images):
            if self._file is None:
                self._file = open(self._path(), "w+b")  # noqa: SIM115 - several calls write to it
                self._file.write(_header((self.per_shard, *self.shape)))
                self._count = 0
            part, images = images[: self.per_shard - self._count], images[self.per_shard - self._count :]
            part = np.ascontiguousarray(part)
            self._file.write(part.data)
            self.checksums += map(zlib.crc32, part)
            self._count += len(part)
            if self._count == self.per_shard:
                self._finish(self._file)

    def _path(self) -> Path:
        return self.folder / f"shard-{len(self.shards):05d}.npy"

    def _finish(self, file: io.BufferedRandom) -> None:
        file.seek(0)
        file.write(_header((self._count, *self.shape)))  # of the same length: NumPy leaves room for the number to grow
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = file.tell()
        file.close()
        self._file = None
        self.shards.append(Shard(self._path().name, self._count, num_bytes, sha256))


def pack(
    source: ImageDataset,
    folder: Path,
    *,
    shard_size: int,
    num_threads: int | None,
    max_corrupt: int | None,
    provenance: dict[str, Any],
) -> tuple[Description, int]:
    """Write all images that can be decoded, in order; ``corrupt.txt`` names the others.

    Args:
        source: the images.
        folder: an empty directory.
        shard_size: bytes of images in a file, at most; one image's or more.
        num_threads: that decode; None takes one a core.
        max_corrupt: undecodable images after which to stop; None goes on.
        provenance: more about the source, in primitives.

    Returns:
        What was written, and the number of corrupt images.

    Raises:
        DataError: If there are too many corrupt images, or no others.
        OSError: if a file cannot be written.
    """
    per_shard = max(1, shard_size // image_bytes(source))
    # First, because what is wrong with them shall not be found out after hours of decoding.
    captions = source.captions(np.arange(len(source), dtype=np.int64)) if source.captioned else None
    with _ShardWriter(folder, source.shape, per_shard) as writer:
        kept, problems = _write_images(source, writer, num_threads or num_cores(), max_corrupt)
    if len(kept) == 0:
        raise none_decodable(source, problems[0])
    digests = {CHECKSUMS: _write(folder / CHECKSUMS, _npy(np.array(writer.checksums, dtype=np.uint32)))}
    if source.labels is not None:
        digests[LABELS] = _write(folder / LABELS, _npy(source.labels[kept]))
    if captions is not None:
        lines = (json.dumps(captions[index]) + "\n" for index in kept.tolist())  # null stands for an image without
        digests[CAPTIONS] = _write(folder / CAPTIONS, "".join(lines).encode("ascii"))
    if problems:
        (folder / CORRUPT).write_text("\n".join(problems) + "\n", encoding="utf-8", errors="surrogateescape")
    description = Description(
        num_images=len(kept),
        shape=source.shape,
        class_names=source.class_names,
        labelled=source.labels is not None,
        captioned=captions is not None,
        shards=tuple(writer.shards),
        source={"name": source.name, "fingerprint": source.fingerprint, "num_images": len(source), **provenance},
        genimg_version=genimg.__version__,
        digests=digests,
    )
    description.write(folder)  # last: without it the directory is none
    return description, len(problems)


def _write_images(
    source: ImageDataset, writer: _ShardWriter, num_threads: int, max_corrupt: int | None
) -> tuple[NDArray[np.int64], list[str]]:
    """The indices of the images that were written, and what was corrupt."""
    kept, problems = [np.empty(0, dtype=np.int64)], []
    with (
        contextlib.closing(_decoded(source, num_threads)) as pieces,
        tqdm(total=len(source), desc=f"packing {source.name}", unit="image", disable=None) as progress,
    ):
        for piece in pieces:
            problems += piece.problems
            if max_corrupt is not None and len(problems) > max_corrupt:
                raise too_many(problems, max_corrupt)
            writer.write(piece.images)
            kept.append(piece.indices)
            progress.update(len(piece.indices) + len(piece.problems))
    return np.concatenate(kept), problems


def image_bytes(source: ImageDataset) -> int:
    """Of one decoded image."""
    return int(np.prod(source.shape))


def _decoded(source: ImageDataset, num_threads: int) -> Generator[_Piece, None, None]:
    """All images in order, a few pieces ahead of whoever takes them. Pillow decodes without the interpreter's lock."""
    size = max(1, min(_PIECE_IMAGES, _PIECE_BYTES // image_bytes(source)))
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[_Piece]] = deque()
    try:
        for start in range(0, len(source), size):
            waiting.append(pool.submit(_decode, source, start, min(start + size, len(source))))
            if len(waiting) > _PIECES_AHEAD * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(source: ImageDataset, start: int, stop: int) -> _Piece:
    indices = np.arange(start, stop, dtype=np.int64)
    try:
        return _Piece(source.read_many(indices), indices, [])
    except CorruptImageError:  # rare: only now is it worth going through them one by one
        images = np.empty((len(indices), *source.shape), dtype=np.uint8)
    kept: list[int] = []
    problems: list[str] = []
    for index in indices.tolist():
        try:
            images[len(kept)] = source.read(index)
            kept.append(index)
        except CorruptImageError as error:
            problems.append(" ".join(str(error).split("\n")))
    return _Piece(images[: len(kept)], np.array(kept, dtype=np.int64), problems)


def _write(path: Path, content: bytes) -> str:
    """Write a file and return its SHA-256."""
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _npy(array: NDArray[Any]) -> bytes:
    """An .npy file. np.save itself does not say so when the disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _header(shape: tuple[int, ...]) -> bytes:
    """Of an .npy file of uint8 values."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
