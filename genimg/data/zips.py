"""Images in a zip file, read without unpacking, by any number of threads and processes at once."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from genimg.errors import DataError
from genimg.utils.pillow import suffixes

_HEADER = struct.Struct("<4s22xHH")  # local file header: signature, lengths of the name and the extra field
_SIGNATURE = b"PK\x03\x04"
_MOST_BYTES = 2**29  # maximum size of a decompressed file; no decodable image is larger
_FROM_ANOTHER_SYSTEM = "__MACOSX/"


class ZipImages:
    """The image files in a zip file, stored or deflated.

    The directory is read once. Every image is then read through its own file handle, so nothing is shared.

    Args:
        path: Path of the zip file.

    Attributes:
        root: Path of the zip file.
        paths: Names of the images, sorted, without hidden files.
        digest: Hexadecimal SHA-256 of all names, sizes and checksums in the zip's directory.

    Raises:
        DataError: If it is not a zip file, or an image is encrypted, too large or neither stored nor deflated.
    """

    def __init__(self, path: Path) -> None:
        self.root = path
        extensions = suffixes()
        try:
            with zipfile.ZipFile(path) as archive:
                entries = {entry.filename: entry for entry in archive.infolist() if _is_shown(entry.filename)}
        except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
            raise DataError(
                f"the file {path} is not a complete zip file ({error}): create it again, or name a directory of images"
            ) from error
        images = {name: entry for name, entry in entries.items() if name.lower().endswith(extensions) and not entry.is_dir()}
        for name, entry in images.items():
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if entry.flag_bits & 1 else f"compressed with method {entry.compress_type}"
                raise DataError(
                    f"the zip file {path} holds {name} {how}: store or deflate the files, or unpack them into a directory"
                )
            if max(entry.file_size, entry.compress_size) > _MOST_BYTES:
                raise DataError(
                    f"the zip file {path} holds {name} of {entry.file_size:,} bytes, which is not an image: remove it"
                )
        self.paths = sorted(images)
        self._numbers = {name: number for number, name in enumerate(self.paths)}
        fields = [
            (e.header_offset, e.compress_size, e.file_size, e.CRC, e.compress_type == zipfile.ZIP_DEFLATED)
            for e in map(images.__getitem__, self.paths)
        ]
        self._fields = np.array(fields, dtype=np.int64).reshape(-1, 5)  # an object per file would take ten times the memory
        listed = hashlib.sha256()
        for name, (_, _, size, checksum, _) in zip(self.paths, fields, strict=True):
            listed.update(os.fsencode(f"{name}\0{size}\0{checksum}\n"))
        self.digest = listed.hexdigest()

    def open(self, path: str) -> io.BytesIO:
        """Return the content of an image file.

        Raises:
            OSError: If the file is damaged.
        """
        offset, stored, size, checksum, deflated = self._fields[self._numbers[path]].tolist()
        with open(self.root, "rb") as file:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_SIGNATURE):
                raise OSError("the zip file is damaged, or was replaced after it was opened")
            _, name_length, extra_length = _HEADER.unpack(header)
            file.seek(offset + _HEADER.size + name_length + extra_length)
            content = file.read(stored)
        if deflated:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error as error:
                raise OSError(f"it cannot be decompressed ({error})") from error
        if len(content) != size or zlib.crc32(content) != checksum:
            raise OSError("its checksum in the zip file does not match its content")
        return io.BytesIO(content)

    def read_text_file(self, name: str) -> bytes | None:
        """Return the content of another file at the top of the archive; None if it does not exist."""
        with zipfile.ZipFile(self.root) as archive:
            try:
                size = archive.getinfo(name).file_size
            except KeyError:
                return None
            if size > _MOST_BYTES:
                raise DataError(f"the zip file {self.root} holds {name} of {size:,} bytes, which is too large: remove it")
            return archive.read(name)


def _is_shown(name: str) -> bool:
    return not name.startswith(_FROM_ANOTHER_SYSTEM) and not any(part.startswith(".") for part in name.split("/"))
