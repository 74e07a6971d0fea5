"""Load torch.save files after verifying that they hold only tensors and primitives and that every byte is intact.

``torch.load`` does not check the CRC-32 of the archive's records. Even with ``weights_only=True`` it accepts more than tensors
and primitives: it builds other classes of torch, ``bytearray`` of any length, containers of unlimited depth, and views with
more elements than the file has bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from genimg.errors import UserError
from genimg.utils.regular_files import open_regular

_GLOBALS = {
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",  # for a tensor's hooks, which are empty
    *(
        f"torch {kind}Storage"
        for kind in ["Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double"]
    ),
}
_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINUNICODE", "BINFLOAT",
    "BININT", "BININT1", "BININT2", "LONG1", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}  # fmt: skip
_MOST_PICKLED = 2**26  # bytes of the pickle that describes the tensors
_MOST_RECORDS = 10**6
_MOST_OVERHEAD = 2**10  # bytes of a record's headers and alignment; torch.save needs about 200
_DEEPEST = 64  # nesting depth of containers
_MOST_VALUES = 10**7  # shared containers count each time they are reached
_MOST_BITS = 128  # bits of an integer
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and the lengths of the name and of the extra field
_THREADS = 2  # threads that compare checksums
_PIECE = 2**20  # bytes read at a time


class DamagedFileError(UserError, ValueError):
    """A damaged file, or a file that holds something other than tensors and primitives."""


def load_verified(path: Path, *, below: Path | None = None) -> Any:
    """Load a ``torch.save`` file of tensors and primitives onto the CPU.

    Args:
        path, below: See ``open_regular``.

    Returns:
        The saved object: ``None``, ``bool``, ``int``, ``float``, ``str``, dense tensors, and ``dict``, ``list`` and ``tuple``
        of these.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not a regular file.
        DamagedFileError: If it is truncated or damaged, or holds anything else.
    """
    with open_regular(path, below=below) as file:
        return _load(path, file, partial(_open_again, path, file))


def load_with_digest(path: Path, *, below: Path | None = None) -> tuple[Any, str]:
    """Load a file as ``load_verified`` does, and return the SHA-256 digest of the bytes that were loaded.

    The file is read once, into memory, so the digest is that of the returned object even if another process changes the file
    in the meantime.

    Args:
        path, below: See ``open_regular``.

    Returns:
        The saved object, and the digest in hexadecimal.

    Raises:
        FileNotFoundError, UnsafeFileError, DamagedFileError: See ``load_verified``.
    """
    with open_regular(path, below=below) as file:
        with _named(path):
            _records_of(file)  # before a file of another kind, or larger than its tensors, is read into memory
        file.seek(0)
        content = file.read()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(lambda: hashlib.sha256(content).hexdigest())
        return _load(path, io.BytesIO(content), lambda: io.BytesIO(content)), digest.result()


def _load(path: Path, file: BinaryIO, open_again: Callable[[], BinaryIO]) -> Any:
    """Load an open file.

    Args:
        path: Its path, for messages.
        file: The file.
        open_again: Function that returns the same content as a file with its own position, for another thread.
    """
    with _named(path), ThreadPoolExecutor(_THREADS) as pool:
        records = _records_of(file)
        _require_plain_pickle(_description(file, records))
        # In parallel with loading, because checking afterwards would double the total time.
        checks = [pool.submit(_damage_of_copy, open_again, records[i::_THREADS]) for i in range(_THREADS)]
        file.seek(0)
        value = _read(file)
        if problem := next((found for check in checks if (found := check.result())), ""):
            raise DamagedFileError(problem)
        _require_plain(value)
    return value


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path of the file to the messages of the block."""
    try:
        yield
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} {error.problem}", error.fix) from error


def _read(file: BinaryIO) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about storage types that torch will remove
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # an invalid pickle makes the unpickler raise almost any type
            raise DamagedFileError("is damaged, or holds something other than tensors and primitives") from error


def _records_of(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Return the records of an archive, after checking that it has the layout that torch writes.

    No record is compressed, so none is larger than the file. There is only one list of records, so PyTorch reads the
    same one.

    Raises:
        DamagedFileError: If the layout differs.
    """
    size = file.seek(0, 2)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise DamagedFileError(f"({size:,} bytes) is truncated, or was not written by torch.save") from error
    records = archive.infolist()
    is_torchs = (
        0 < len(records) == len({record.orig_filename for record in records}) <= _MOST_RECORDS
        and records[0].header_offset == 0
        and not archive.comment
        and all(record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size for record in records)
        and 0 <= size - sum(record.file_size for record in records) <= _MOST_OVERHEAD * (len(records) + 1)
    )
    if not is_torchs:
        raise DamagedFileError("is damaged, or was not written by torch.save")
    return records


def _description(file: BinaryIO, records: list[zipfile.ZipInfo]) -> bytes:
    """Return the pickle record that describes the tensors.

    Raises:
        DamagedFileError: If it is missing, damaged, or larger than in any file of genimg.
    """
    pickles = [record for record in records if record.orig_filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > _MOST_PICKLED:
        raise DamagedFileError("was not written by genimg: the description of its tensors is missing or too large")
    if problem := _damage(file, pickles):
        raise DamagedFileError(problem)
    file.seek(_start_of(file, pickles[0]))
    return file.read(pickles[0].file_size)


def _damage_of_copy(open_again: Callable[[], BinaryIO], records: list[zipfile.ZipInfo]) -> str:
    """Call ``_damage`` with a file of its own, because threads share the position of a file."""
    with open_again() as same:
        return _damage(same, records)


def _open_again(path: Path, file: BinaryIO) -> BinaryIO:
    """Return a new descriptor of an open file.

    Raises:
        DamagedFileError: If the path is another file by now.
    """
    same = open_regular(path)
    if not os.path.sameopenfile(file.fileno(), same.fileno()):
        same.close()
        raise DamagedFileError("was replaced while it was read: try again")
    return same


def _damage(file: BinaryIO, records: list[zipfile.ZipInfo]) -> str:
    """Compare every record with its CRC-32; return a description of the first error, or an empty text."""
    buffer = memoryview(bytearray(_PIECE))
    for record in records:
        try:
            file.seek(_start_of(file, record))
        except (struct.error, ValueError):
            return f"is damaged: its record {record.filename} starts at the wrong offset"
        left, crc = record.file_size, 0
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
            if not count:
                return "is truncated"
            crc = zlib.crc32(buffer[:count], crc)
            left -= count
        if crc != record.CRC:
            return f"is damaged: its record {record.filename} has changed since it was written"
    return ""


def _start_of(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Return the offset of a record's content in the file, read from its local header as in PyTorch."""
    file.seek(record.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise ValueError("no header")
    return int(record.header_offset + _LOCAL_HEADER.size + name + extra)


def _require_plain_pickle(pickled: bytes) -> None:
    """Check, before unpickling, that a pickle builds only tensors and primitives.

    Raises:
        DamagedFileError: If it builds anything else.
    """
    for opcode, argument in _operations(pickled):
        if opcode.name == "GLOBAL" and argument not in _GLOBALS:
            raise DamagedFileError(f"holds {str(argument).replace(' ', '.')}, not only tensors and primitives")
        if opcode.name not in _OPCODES:
            raise DamagedFileError(f"holds something other than tensors and primitives ({opcode.name})")


def _operations(pickled: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            yield opcode, argument
    except (ValueError, UnicodeDecodeError, struct.error) as error:
        raise DamagedFileError("is damaged, or was not written by torch.save") from error


def _require_plain(value: Any) -> None:
    """Check that a loaded value has the types, depth and size of a genimg file.

    Raises:
        DamagedFileError: If it does not.
    """
    size, _ = _extent(value, 0, {})
    if size > _MOST_VALUES:
        raise DamagedFileError(f"holds more than {_MOST_VALUES:,} values")


def _extent(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values in a container, including itself, and their nesting depth.

    Args:
        value: The container, or a single value.
        depth: Number of containers around it.
        known: Results for containers that may be shared, by id.
    """
    kind = type(value)
    if kind is str or kind is float or kind is bool or value is None:
        return 1, 0
    if kind is int:
        if value.bit_length() > _MOST_BITS:
            raise DamagedFileError(f"holds an integer of {value.bit_length()} bits")
        return 1, 0
    if kind is Tensor:
        if value.layout is not torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise DamagedFileError("holds a tensor with more elements than the file contains")
        return 1, 0
    if kind not in (dict, list, tuple):
        raise DamagedFileError(f"holds a {kind.__name__}, not only tensors and primitives")
    if id(value) not in known:
        if depth == _DEEPEST:
            raise DamagedFileError(f"holds containers nested more than {_DEEPEST} deep")
        if kind is dict:
            for key in value:
                if type(key) is not str and type(key) is not int:
                    raise DamagedFileError(f"holds a key that is a {type(key).__name__}, not text or an integer")
        size, height = 1, 0
        for item in value.values() if kind is dict else value:
            more, below = _extent(item, depth + 1, known)
            size, height = size + more, max(height, below)
        known[id(value)] = size, height + 1
    if depth + known[id(value)][1] > _DEEPEST:
        raise DamagedFileError(f"holds containers nested more than {_DEEPEST} deep")
    return known[id(value)]
