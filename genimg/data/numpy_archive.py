"""Safe reading of .npz files: plain arrays only, of a size plausible for their file, with verified checksums.

``numpy.load`` allocates the memory that an array's header requests before it reads a value, decompresses without a limit,
and does not compare the checksum if an array is shorter than its record.
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

MOST_HEADER = 2**14  # maximum bytes before the values of an array; NumPy reads 10,000
_MOST_INFLATED = 2**29  # maximum bytes of an array whose compression ratio is not checked
_MOST_RATIO = 100  # compression ratio of larger arrays; images and features rarely exceed 10


@dataclass(frozen=True)
class Header:
    """The shape and type of an array, known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class NumpyArchive:
    """An open .npz file.

    Args:
        file: Path of the file.
        what: Name of the file in messages, such as ``path=images.npz``.

    Attributes:
        headers: Header of every array by name, in the archive's order.

    Raises:
        DataError: If the file is not an archive of arrays, or is damaged.
        OSError: If the file cannot be opened.
    """

    def __init__(self, file: Path, what: str) -> None:
        self._what = what
        self._file = open(file, "rb")  # noqa: SIM115 - closed with the archive
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._members = {entry.filename.removesuffix(".npy"): entry for entry in self._zip.infolist()}
            if not 0 < len(self._members) == len(self._zip.infolist()):
                raise ValueError("it is empty, or two arrays have the same name")
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
        """Return an array after comparing its CRC-32.

        Raises:
            DataError: If it is damaged, contains Python objects, or is compressed more than allowed.
        """
        entry = self._members[name]
        try:
            header, start = self._header(entry)
            if header.dtype.hasobject or header.dtype.itemsize == 0:
                raise ValueError(f"{name} holds {header.dtype}")
            num_bytes = math.prod(header.shape) * header.dtype.itemsize
            # The CRC-32 is compared when the record's last byte is read, so the array must end there.
            if start + num_bytes != entry.file_size:
                raise ValueError(f"{name} is {header}, but its record has {entry.file_size} bytes")
            self._require_moderate(name, entry)
            with self._zip.open(entry) as member:
                return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
        except (MemoryError, DataError):
            raise
        except Exception as error:
            raise self._refused(error) from error

    def _header(self, entry: zipfile.ZipInfo) -> tuple[Header, int]:
        """Return an array's header and the offset of its values in the record."""
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} uses a compression that NumPy does not write")
        with self._zip.open(entry) as member:
            file = io.BytesIO(member.read(MOST_HEADER))
        version = np.lib.format.read_magic(file)
        # Versions 2 and 3 differ only in the encoding of field names, which no array here has.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return Header(shape, dtype), file.tell()

    def _require_moderate(self, name: str, entry: zipfile.ZipInfo) -> None:
        """Reject a record that needs far more memory than its size in the file.

        Raises:
            DataError: If the compression ratio is too high.
            ValueError: If the archive contradicts itself.
        """
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.file_size != entry.compress_size:
                raise ValueError(f"{name} is stored in {entry.compress_size} bytes, but has {entry.file_size}")
        elif entry.file_size > max(_MOST_INFLATED, _MOST_RATIO * entry.compress_size):
            raise DataError(
                f"{self._what} holds {name} of {entry.file_size:,} bytes, compressed to {entry.compress_size:,}",
                "if you trust the file, save it again with numpy.savez: an array compressed more than "
                f"{_MOST_RATIO}:1 may have at most {_MOST_INFLATED:,} bytes",
            )

    def _refused(self, error: Exception) -> DataError:
        """Return the error for an exception raised while reading."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return DataError(
            f"{self._what} is not an .npz archive of plain arrays: it is damaged, or holds Python objects ({reason})",
            "copy it again, or create it again",
        )
