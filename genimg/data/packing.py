"""Decode a dataset once and write its pixels in the format of genimg.data.packed_files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import genimg
from genimg.data.corrupt import none_decodable, too_many
from genimg.data.datasets.builtin import CorruptImageError, ImageDataset
from genimg.data.packed_files import CAPTIONS, CHECKSUMS, LABELS, LATENT_CHECKSUMS, Description, Shard
from genimg.data.packed_latents import LATENTS, LatentSource
from genimg.utils.environment import num_cores
from genimg.utils.progress import Progress
from genimg.utils.threads import map_in_order

CORRUPT = "corrupt.txt"
_PIECE_BYTES = 2**23  # bytes of decoded images per task of a thread
_PIECE_IMAGES = 64


@dataclass(frozen=True)
class _Piece:
    """Consecutive images.

    Attributes:
        images: Decodable images, uint8 [N, C, H, W].
        indices: Their indices in the dataset, int64 [N].
        problems: Path and reason of each corrupt image.
    """

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    problems: list[str]


class _ShardWriter:
    """Writes a stream of images into files of ``per_shard`` images each.

    A full disk raises an error here. If the files were written through a memory map, it would kill the process.
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
            self._file.raw.close()  # discards the buffer, for which a full disk has no space

    def write(self, images: NDArray[np.uint8]) -> None:
        """Append images, uint8 [N, C, H, W]."""
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
        file.write(_header((self._count, *self.shape)))  # same length, because NumPy pads the header for larger numbers
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = file.tell()
        file.close()
        self._file = None
        self.shards.append(Shard(self._path().name, self._count, num_bytes, sha256))


class _LatentWriter:
    """Writes the latents of a stream of images into one file."""

    def __init__(self, file: io.BufferedRandom, source: LatentSource, most: int) -> None:
        self.file, self.source = file, source
        self.checksums: list[int] = []
        file.write(_header((most, *source.latents.shape), "<f2"))

    def write(self, images: NDArray[np.uint8], indices: NDArray[np.int64]) -> None:
        """Append the latents of images, uint8 [N, C, H, W], with these indices in the dataset, int64 [N]."""
        if len(images):
            latents = np.ascontiguousarray(self.source.latents_of(images, indices))
            self.file.write(latents.data)
            self.checksums += map(zlib.crc32, latents)

    def finish(self) -> None:
        """Write the final header, which is as long as the first one."""
        self.file.seek(0)
        self.file.write(_header((len(self.checksums), *self.source.latents.shape), "<f2"))


def pack(
    source: ImageDataset,
    folder: Path,
    *,
    shard_size: int,
    num_threads: int | None,
    max_corrupt: int | None,
    provenance: dict[str, Any],
    latent_source: LatentSource | None = None,
    batch_size: int | None = None,
) -> tuple[Description, int]:
    """Write all decodable images, in order; list the others in ``corrupt.txt``.

    Args:
        source: Dataset to pack.
        folder: Empty directory.
        shard_size: Maximum bytes of images in a file; a file has at least one image.
        num_threads: Number of decoding threads; None uses one per core, and 0 the calling thread.
        max_corrupt: Number of corrupt images to skip before an error; None skips all.
        provenance: Further information about the origin of the images, as primitives.
        latent_source: Source of latents that are written, too; None writes no latents.
        batch_size: Number of images that are read at once; None limits it by their number and size.

    Returns:
        The description of the files, and the number of corrupt images.

    Raises:
        DataError: If too many images are corrupt, or all of them are.
        OSError: If a file cannot be written.
    """
    per_shard = max(1, shard_size // image_bytes(source))
    # Read first, so that errors in captions appear before hours of decoding.
    captions = source.captions(np.arange(len(source), dtype=np.int64)) if source.captioned else None
    with _ShardWriter(folder, source.shape, per_shard) as writer, contextlib.ExitStack() as stack:
        latents = None
        if latent_source is not None:
            latents = _LatentWriter(stack.enter_context(open(folder / LATENTS, "w+b")), latent_source, len(source))
        with contextlib.closing(_decoded(source, num_cores() if num_threads is None else num_threads, batch_size)) as pieces:
            kept, problems = _write_images(source, pieces, writer, max_corrupt, latents)
        if latents is not None:
            latents.finish()
    if len(kept) == 0:
        raise none_decodable(source, problems[0])
    digests = {CHECKSUMS: _write(folder / CHECKSUMS, _npy(np.array(writer.checksums, dtype=np.uint32)))}
    if source.labels is not None:
        digests[LABELS] = _write(folder / LABELS, _npy(source.labels[kept]))
    if captions is not None:
        lines = (json.dumps(captions[index]) + "\n" for index in kept.tolist())  # null for an image without a caption
        digests[CAPTIONS] = _write(folder / CAPTIONS, "".join(lines).encode("ascii"))
    if latents is not None:
        digests[LATENT_CHECKSUMS] = _write(folder / LATENT_CHECKSUMS, _npy(np.array(latents.checksums, dtype=np.uint32)))
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
        latents=None if latent_source is None else latent_source.latents,
    )
    description.write(folder)  # last, because it marks the directory as complete
    return description, len(problems)


def _write_images(
    source: ImageDataset,
    pieces: Iterable[_Piece],
    writer: _ShardWriter,
    max_corrupt: int | None,
    latents: _LatentWriter | None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Write all images; return the indices of the written ones and the errors of corrupt ones."""
    kept, problems = [np.empty(0, dtype=np.int64)], []
    with Progress(total=len(source), desc=f"packing {source.name}", unit="image") as progress:
        for piece in pieces:
            problems += piece.problems
            if max_corrupt is not None and len(problems) > max_corrupt:
                raise too_many(problems, max_corrupt)
            writer.write(piece.images)
            if latents is not None:
                latents.write(piece.images, piece.indices)
            kept.append(piece.indices)
            progress.update(len(piece.indices) + len(piece.problems))
    return np.concatenate(kept), problems


def image_bytes(source: ImageDataset) -> int:
    """Return the bytes of one decoded image."""
    return int(np.prod(source.shape))


def _decoded(source: ImageDataset, num_threads: int, batch_size: int | None) -> Generator[_Piece, None, None]:
    """Return all images in order, decoded ahead in threads, because Pillow releases the GIL, or in the calling thread."""
    size = batch_size or max(1, min(_PIECE_IMAGES, _PIECE_BYTES // image_bytes(source)))
    pieces = (np.arange(start, min(start + size, len(source)), dtype=np.int64) for start in range(0, len(source), size))
    if num_threads == 0:
        return (_decode(source, indices) for indices in pieces)
    return map_in_order(partial(_decode, source), pieces, num_threads=num_threads)


def _decode(source: ImageDataset, indices: NDArray[np.int64]) -> _Piece:
    try:
        return _Piece(source.read_many(indices), indices, [])
    except CorruptImageError:  # rare, so images are read one by one only now
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
    """Return the bytes of an .npy file; writing with np.save itself would not report a full disk."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """Return the header of an .npy file whose values have a given type, uint8 by default."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
