"""Hugging Face datasets: saved with ``save_to_disk``, or in the local cache of the package ``datasets``.

Encoded images are read from memory-mapped Arrow files and decoded by genimg like any other image file. No code of a dataset
runs: the package loads Arrow, Parquet and image files alone since version 4.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genimg.data.classes import Classes, classes_by_label
from genimg.data.contents import digest_of_bytes, digest_of_items
from genimg.data.datasets.builtin import FileDataset, digest
from genimg.data.datasets.caption_files import LazyCaptions, complete
from genimg.data.depth import pixel_format, requested_format
from genimg.data.forms import is_saved_by_huggingface
from genimg.errors import ConfigError, DataError, first_line
from genimg.utils.machine_local import MayDownload
from genimg.utils.regular_files import read_regular

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CAPTIONS = ("text", "caption")
_MOST_BYTES = 2**29  # of an encoded image; no decodable image is larger


class RowImages:
    """The encoded images in a column of a Hugging Face dataset; see ``ImageFiles``.

    Args:
        root: Directory of the dataset, or a path that shows its name, for messages.
        data: The dataset.
        column: Name of the column of images.
        may_name_files: Whether a row may hold the path of an image instead of the image, as in the cache of datasets that are
            published as image files. Those of other people's directories may not choose which files are opened.
    """

    def __init__(self, root: Path, data: Dataset, column: str, *, may_name_files: bool) -> None:
        from datasets import Image

        self.root = root
        self._column = column
        self._may_name_files = may_name_files
        self._data = data.select_columns([column]).with_format(None).cast_column(column, Image(decode=False))
        self.paths = [f"row {number}" for number in range(len(data))]
        self.digest = digest("rows", len(data), digest_of_items(self.paths, self._digest_of, str(root)))

    def open(self, path: str) -> BytesIO:
        """Return the content of an image.

        Raises:
            OSError: If the dataset does not contain it.
        """
        return BytesIO(self._content(path))

    def _content(self, path: str) -> bytes:
        value = self._data[int(path.removeprefix("row "))][self._column] or {"bytes": None, "path": None}
        content: bytes | None = value["bytes"]
        if content is None and value["path"] is None:
            raise OSError("it is empty")
        if content is None and not self._may_name_files:
            raise OSError(f"the dataset holds only the path of its file, {value['path']}: save it again with its images")
        if content is None:
            return read_regular(Path(value["path"]), most=_MOST_BYTES)
        if len(content) > _MOST_BYTES:
            raise OSError(f"its {len(content):,} bytes are too many for an image")
        return content

    def _digest_of(self, path: str) -> bytes:
        try:
            return digest_of_bytes(self._content(path))
        except (OSError, ValueError):  # reading the image will report the error
            return b"unreadable"


def huggingface(
    *,
    image_size: int | Sequence[int] | None,
    channels: int | None,
    fit: str,
    root: str | None = None,
    hub: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str = "auto",
    caption_column: str | None = "auto",
    range: Sequence[float] | None = None,
    may_download: MayDownload = False,
    name: str = "huggingface",
) -> FileDataset:
    """Open a Hugging Face dataset.

    Args:
        image_size, channels, fit: See ``folder``.
        root: Directory that ``save_to_disk`` of a Dataset or DatasetDict wrote; None for a dataset of the hub.
        hub: Id of a dataset of the hub, such as ``ylecun/mnist``, which is read from the local cache of the package.
        subset: Name of the hub dataset's configuration, if it has several.
        split: Name of the split; None uses the only one, or ``train``.
        image_column: Column of the images; None uses the only column with the feature Image.
        label_column: Column of the labels, with the feature ClassLabel, with whole numbers, or with names (see
            ``classes_by_label``); ``auto`` uses the only column with the feature ClassLabel, if there is one, ``none`` ignores
            labels.
        caption_column: Column of the captions; ``auto`` uses a text column named text or caption, if there is one, None ignores
            captions.
        range: See ``folder``.
        may_download: Whether a dataset of the hub is downloaded if it is not in the cache.
        name: Name for messages.

    Raises:
        ConfigError: If a parameter is invalid, the package is not installed, or columns are missing or ambiguous.
        DataError: If there is no such dataset, or it is damaged, empty, or has invalid labels.
    """
    requested = requested_format(image_size, channels, fit, range)
    if root is None and hub is None:
        raise ConfigError(
            "root or hub is required: give root=DIR, a directory that save_to_disk wrote, or hub=ID, a dataset in the local "
            "cache, such as hub=ylecun/mnist",
            key="root",
        )
    if root is not None and hub is not None:
        raise ConfigError(f"root={root} and hub={hub} name two datasets: remove one of them", key="root")
    if root is not None:
        if subset is not None or may_download:
            given = "may_download=true" if subset is None else f"subset={subset}"
            raise ConfigError(f"{given} has no effect on a dataset in a directory: remove it, or give hub=ID instead of root")
        data, where = _saved_to_disk(Path(root).expanduser(), root, split), root
    else:
        data, where = _of_hub(str(hub), subset, split, may_download), str(hub)
    if len(data) == 0:
        raise DataError(f"{_key(root)}={where} is empty: choose another dataset or split", key=_key(root))
    files = RowImages(Path(where).expanduser(), data, _image_column(data, image_column), may_name_files=root is None)
    labels, captions = _label_column(data, label_column), _caption_column(data, caption_column)
    return FileDataset(
        name,
        files,
        pixel_format(files, requested, range),
        Classes() if labels is None else _classes(data, labels, files.paths),
        None if captions is None else LazyCaptions(partial(_captions, data, captions, files.paths, where)),
    )


def _key(root: str | None) -> str:
    return "hub" if root is None else "root"


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"this needs the package datasets ({error}): pip install 'genimg[huggingface]'") from error
    return datasets


@contextlib.contextmanager
def _offline(package: Any) -> Iterator[None]:
    """Forbid network connections of the package in the block."""
    import huggingface_hub.constants as constants

    before = package.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    package.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        package.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _saved_to_disk(folder: Path, root: str, split: str | None) -> Dataset:
    """Open a directory that ``save_to_disk`` wrote."""
    if not is_saved_by_huggingface(folder):
        what = (
            "does not exist" if not folder.exists() else "holds neither dataset_dict.json nor dataset_info.json and state.json"
        )
        raise DataError(f"root={root} {what}: give a directory that save_to_disk of Hugging Face's package datasets wrote")
    package = _package()
    with _offline(package), _naming("root", root):
        found = package.load_from_disk(str(folder))
    return _of_split(found, split, f"root={root}")


def _of_hub(hub: str, subset: str | None, split: str | None, may_download: bool) -> Dataset:
    """Open a dataset of the hub from the local cache, or download it if ``may_download``."""
    if not _HUB_ID.fullmatch(hub):
        raise ConfigError(f"hub={hub} is not the id of a dataset, such as ylecun/mnist; a directory is given as root=DIR")
    if os.path.exists(hub):
        raise ConfigError(f"hub={hub} is also a file or directory here, which would be read instead: give root=DIR to use it")
    package = _package()
    with contextlib.nullcontext() if may_download else _offline(package):
        try:
            found = package.load_dataset(hub, subset)
        except Exception as error:  # many types, which differ between versions
            if isinstance(error, MemoryError):
                raise
            fix = "check its name" if may_download else "check its name, or download it with may_download=true"
            if subset is None:
                fix += "; if it has several configurations, choose one with subset=NAME"
            what = "cannot be loaded" if may_download else "is not in the local cache"
            raise DataError(f"hub={hub} {what} ({first_line(error)})", fix) from error
    return _of_split(found, split, f"hub={hub}")


@contextlib.contextmanager
def _naming(key: str, value: str) -> Iterator[None]:
    """Convert any exception of the package, which raises many types for damaged files."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{key}={value} is damaged or incomplete ({first_line(error)}): copy it again") from error


def _of_split(found: Any, split: str | None, where: str) -> Dataset:
    if not isinstance(found, dict):
        if split is not None:
            raise ConfigError(f"split={split} has no effect, because {where} has no splits: remove it")
        return found
    name = split or ("train" if "train" in found or len(found) != 1 else next(iter(found)))
    if name not in found:
        shown = "null" if split is None else split
        raise ConfigError(f"split={shown} does not select a split of {where}, which has {', '.join(map(str, found)) or 'none'}")
    return found[name]


def _image_column(data: Dataset, given: str | None) -> str:
    from datasets import Image

    found = [name for name, feature in data.features.items() if isinstance(feature, Image)]
    if given is not None:
        if given not in found:
            raise ConfigError(f"image_column={given} is not a column of images: {_listed(found, 'Image', data)}")
        return given
    if len(found) != 1:
        raise ConfigError(
            f"image_column=null is ambiguous: {_listed(found, 'Image', data)}",
            f"choose one, such as image_column={found[0]}" if found else "choose another dataset, or cast a column to Image",
        )
    return found[0]


def _label_column(data: Dataset, given: str) -> str | None:
    from datasets import ClassLabel, Value

    if given == "none":
        return None
    found = [name for name, feature in data.features.items() if isinstance(feature, ClassLabel)]
    if given != "auto":
        feature = data.features.get(given)
        if given not in found and not (isinstance(feature, Value) and re.match("u?int|string|large_string", feature.dtype)):
            raise ConfigError(
                f"label_column={given} is not a column of classes, integers or names: {_listed(found, 'ClassLabel', data)}"
            )
        return given
    if len(found) > 1:
        raise ConfigError(
            f"label_column=auto is ambiguous: {_listed(found, 'ClassLabel', data)}",
            f"choose one, such as label_column={found[0]}, or none",
        )
    return found[0] if found else None


def _caption_column(data: Dataset, given: str | None) -> str | None:
    from datasets import Value

    texts = [name for name, f in data.features.items() if isinstance(f, Value) and f.dtype in ("string", "large_string")]
    if given is None or given == "auto":
        return next((name for name in _CAPTIONS if name in texts), None) if given else None
    if given not in texts:
        raise ConfigError(f"caption_column={given} is not a column of texts: {_listed(texts, 'string', data)}")
    return given


def _listed(found: Sequence[str], kind: str, data: Dataset) -> str:
    if not found:
        return f"no column has the feature {kind}; the columns are {', '.join(data.column_names)}"
    return f"the columns with the feature {kind} are {', '.join(found)}"


def _values(data: Dataset, column: str) -> list[Any]:
    """Return all values of a column, without reading the others."""
    values: list[Any] = data.select_columns([column]).with_format(None)[:][column]
    return values


def _classes(data: Dataset, column: str, rows: Sequence[str]) -> Classes:
    feature = data.features[column]
    names = getattr(feature, "names", None)
    labels = _values(data, column)
    return classes_by_label(labels, rows, key="label_column", place=f"the column {column}", names=names)


def _captions(data: Dataset, column: str, rows: Sequence[str], where: str) -> list[str]:
    return complete(_values(data, column), rows, where, f"text in the column {column}", key="caption_column")
