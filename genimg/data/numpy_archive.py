"""The arrays of an .npz, read only if they are plain, no larger than their file suggests, and as they were written.

``numpy.load`` takes the memory that an array's header asks for before it reads a value, inflates whatever it finds, and
compares no checksum where an array is shorter than the record that holds it.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from genimg.errors import DataError

MOST_HEADER = 2**14  # bytes before the values of an array; NumPy reads 10,000
_MOST_INFLATED = 2**29  # bytes of an array, whatever its ratio of compression
_MOST_RATIO = 100  # of larger arrays; images and features are seldom compressed to less than a tenth


@dataclass(frozen=True)
class Header:
    """What an archive says about an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class NumpyArchive:
    """An .npz, opened.

    Args:
        file: The file.
        what: What messages call it, such as ``path=images.npz``.

    Attributes:
        headers: Of every array by its name, in the archive's order.

    Raises:
        DataError: If it is no archive of arrays, or is damaged.
        OSError: If it cannot be opened.
    """

    def __init__(self, file: Path, what: str) -> None:
        self._what = what
        self._file = open(file, "rb")  # noqa: SIM115 - closed with the archive
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._members = {entry.filename.removesuffix(".npy"): entry for entry in self._zip.infolist()}
            if not 0 < len(self._members) == len(self._zip.infolist()):
                raise ValueError("it is empty, or two arrays have one name")
            self.headers = {name: self._header(entry)[0] for name, entry in self._members.items()}
        except (MemoryError, DataError):
            self._file.close()
            raise
        except Exception as error:  # damaged archives make zipfile, zlib and NumPy raise nearly anything
            self._file.close()
            raise self._refused(error) from error

    def __enter__(self) -> NumpyArchive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()
        self._file.close()

    def read(self, name: str) -> NDArray[np.generic]:
        """Return an array, whose every byte has been compared with its CRC-32.

        Raises:
            DataError: If it is damaged, holds Python objects, or takes far more memory than its file.
        """
        entry = self._members[name]
        try:
            header, start = self._header(entry)
            if header.dtype.hasobject or header.dtype.itemsize == 0:
                raise ValueError(f"{name} holds {header.dtype}")
            num_bytes = math.prod(header.shape) * header.dtype.itemsize
            # The record's CRC-32 is compared when its last byte is read, which must be that of the array.
            if start + num_bytes != entry.file_size:
                raise ValueError(f"{name} is {header}, and its record has {entry.file_size} bytes")
            self._require_moderate(name, entry)
            with self._zip.open(entry) as member:
                return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
        except (MemoryError, DataError):
            raise
        except Exception as error:
            raise self._refused(error) from error

    def _header(self, entry: zipfile.ZipInfo) -> tuple[Header, int]:
        """Return an array's header and where its values begin in the record."""
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is compressed in another way than NumPy's")
        with self._zip.open(entry) as member:
            file = io.BytesIO(member.read(MOST_HEADER))
        version = np.lib.format.read_magic(file)
        # Versions 2 and 3 differ in the encoding of names of fields, which no array here has.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return Header(shape, dtype), file.tell()

    def _require_moderate(self, name: str, entry: zipfile.ZipInfo) -> None:
        """Refuse a record that asks for far more memory than its file has bytes.

        Raises:
            DataError: Saying how much.
            ValueError: If the archive contradicts itself.
        """
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.file_size != entry.compress_size:
                raise ValueError(f"{name} is stored in {entry.compress_size} bytes, and has {entry.file_size}")
        elif entry.file_size > max(_MOST_INFLATED, _MOST_RATIO * entry.compress_size):
            raise DataError(
                f"{self._what} holds {name} of {entry.file_size:,} bytes in {entry.compress_size:,} of the file",
                "if you trust the file, save it again with numpy.savez: an array that is compressed more than "
                f"{_MOST_RATIO}:1 is read up to {_MOST_INFLATED:,} bytes",
            )

    def _refused(self, error: Exception) -> DataError:
        """Return the error about what reading has raised."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return DataError(
            f"{self._what} is not an .npz archive of plain arrays: it is damaged, or holds Python objects ({reason})",
            "copy or make it again",
        )
