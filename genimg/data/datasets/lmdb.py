"""Encoded images in an LMDB database, the form in which LSUN is published (Yu et al. 2015)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from genimg.data.classes import Classes
from genimg.data.contents import digest_of_bytes, digest_of_items
from genimg.data.datasets.builtin import FileDataset, digest
from genimg.data.depth import pixel_format, requested_format
from genimg.data.saved_index import LEAST_SAVED, index_file, read_index, write_index
from genimg.errors import ConfigError, DataError
from genimg.utils.progress import Progress

_FILE = "data.mdb"
_NOT_IMAGES = ("length", "num-samples", "__len__", "__keys__")  # counts and lists of keys that some programs store beside them
_MOST_BYTES = 2**29  # of an encoded image; no decodable image is larger
_FORMAT = 1

_lock = threading.Lock()
_opened: dict[str, tuple[int, Any]] = {}  # real path -> process that opened it, environment


class LmdbImages:
    """The images of a database by their keys; see ``ImageFiles``.

    Every process opens the database for itself, read-only and without a lock file.

    Args:
        path: Directory of the database, or its file.
        prefix: Start of the keys of the images.
        refresh: Whether to ignore the saved list of keys.

    Raises:
        DataError: If it is not a complete database.
    """

    def __init__(self, path: Path, prefix: str, *, refresh: bool) -> None:
        self.root = path
        keys, listed = self._list(prefix, refresh)
        self.paths = keys
        self.digest = digest(listed, digest_of_items(keys, self._digest_of, str(path)))

    def open(self, path: str) -> BytesIO:
        """Return the content of an image.

        Raises:
            OSError: If the database no longer has it, or cannot be read.
        """
        return BytesIO(self._content(path))

    def _content(self, key: str) -> bytes:
        import lmdb

        try:
            with _environment(self.root).begin(buffers=True) as transaction:
                value = transaction.get(os.fsencode(key))
                if value is None or len(value) > _MOST_BYTES:
                    raise OSError("the database no longer has it" if value is None else "it is too large for an image")
                return bytes(value)
        except lmdb.Error as error:
            raise OSError(f"the database cannot be read ({error})") from error

    def _digest_of(self, path: str) -> bytes:
        try:
            return digest_of_bytes(self._content(path))
        except OSError:  # reading the image will report the error
            return b"unreadable"

    def _list(self, prefix: str, refresh: bool) -> tuple[list[str], str]:
        """Return the keys of the images, and a digest of keys and sizes; long lists are saved."""
        found = os.stat(_data_file(self.root))
        state = [_FORMAT, found.st_size, found.st_mtime_ns]
        saved = index_file(self.root, f"lmdb\0{prefix}")
        head, _, rest = (b"" if refresh else read_index(saved) or b"").partition(b"\n")
        if head and (header := json.loads(head))["state"] == state:
            return os.fsdecode(rest).split("\0"), header["digest"]
        keys, sizes = self._walk(prefix)
        listed = digest(*(f"{key}\0{size}" for key, size in zip(keys, sizes, strict=True)))
        if len(keys) >= LEAST_SAVED:
            write_index(saved, json.dumps({"state": state, "digest": listed}).encode() + b"\n" + os.fsencode("\0".join(keys)))
        return keys, listed

    def _walk(self, prefix: str) -> tuple[list[str], list[int]]:
        import lmdb

        keys: list[str] = []
        sizes: list[int] = []
        start = os.fsencode(prefix)
        try:
            with _environment(self.root).begin(buffers=True) as transaction, transaction.cursor() as cursor:
                is_found = cursor.set_range(start) if start else cursor.first()
                entries = cursor.iternext(keys=True, values=True) if is_found else ()
                for key, value in Progress(entries, desc=f"listing {self.root}", unit="image", delay=1.0, leave=False):
                    name = bytes(key)
                    if not name.startswith(start):
                        break
                    if b"\0" in name:
                        raise DataError(f"root={self.root} has the key {name!r}, which contains a zero byte: rename it")
                    if os.fsdecode(name) not in _NOT_IMAGES:
                        keys.append(os.fsdecode(name))
                        sizes.append(len(value))
        except lmdb.Error as error:
            raise DataError(f"root={self.root} is damaged ({error}): copy it again") from error
        return keys, sizes


def lmdb(
    *,
    root: str,
    image_size: int | Sequence[int] | None,
    channels: int | None,
    fit: str,
    prefix: str = "",
    range: Sequence[float] | None = None,
    refresh_index: bool = False,
    name: str = "lmdb",
) -> FileDataset:
    """List the images of an LMDB database whose values are encoded images.

    Args:
        root: Directory that holds data.mdb, or the file of a database without a directory.
        image_size, channels, fit: See ``folder``.
        prefix: Start of the keys of the images, for a database that also holds other values.
        range: See ``folder``.
        refresh_index: Whether to ignore the saved list of keys.
        name: Name for messages.

    Raises:
        ConfigError: If a parameter is invalid, or the package is not installed.
        DataError: If there is no such database, it is damaged, or holds no such keys.
    """
    requested = requested_format(image_size, channels, fit, range)
    path = Path(root).expanduser()
    if not _data_file(path).is_file():
        what = "does not exist" if not path.exists() else f"holds no {_FILE}"
        raise DataError(f"root={root} {what}: give the directory of an LMDB database, such as bedroom_train_lmdb of LSUN")
    _require_package()
    files = LmdbImages(path, prefix, refresh=refresh_index)
    if not files.paths:
        what = f"no keys that start with {prefix}" if prefix else "no images"
        raise DataError(f"root={root} holds {what}: give another database" + (" or prefix" if prefix else ""))
    return FileDataset(name, files, pixel_format(files, requested, range), Classes(), None)


def _environment(path: Path) -> Any:
    """Return the database at ``path``, opened by this process and shared by its threads.

    Raises:
        DataError: If it is not a complete database.
    """
    import lmdb as package

    real = os.path.realpath(path)
    with _lock:
        process, found = _opened.get(real, (0, None))
        if process != os.getpid():
            if found is not None:
                found.close()  # only this process's copy of one that was opened before a fork
            found = _open(package, path)
            _opened[real] = (os.getpid(), found)
        return found


def _open(package: Any, path: Path) -> Any:
    try:
        found = package.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_spare_txns=64)
    except package.Error as error:
        raise DataError(f"root={path} is not an LMDB database ({error}): copy it again, or give another one") from error
    needed = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
    if (size := os.stat(_data_file(path)).st_size) < needed:  # reading behind the end of the file would kill the process
        found.close()
        raise DataError(f"root={path} is incomplete: {_data_file(path)} has {size:,} of {needed:,} bytes: copy it again")
    return found


def _data_file(path: Path) -> Path:
    return path / _FILE if path.is_dir() else path


def _require_package() -> None:
    try:
        import lmdb  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"this needs the package lmdb ({error}): pip install 'genimg[lmdb]'") from error
