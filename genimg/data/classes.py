"""The classes of images, from subdirectories, a dataset.json beside them, or a label of each image.

StyleGAN's dataset tool writes images into numbered subdirectories and their labels into ``dataset.json``, as
``{"labels": [["00000/img00000000.png", 6], ...]}``, or ``{"labels": null}`` for images without labels.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genimg.errors import DataError
from genimg.utils.json_text import parse_json
from genimg.utils.mounting import in_config
from genimg.utils.pillow import suffixes

log = logging.getLogger(__name__)

LABELS_FILE = "dataset.json"
_MOST_CLASSES = 1_000_000  # because each class gets a name
_LONGEST_NAME = 200  # characters of a class name; longer text is not a name
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MOST_LOOKED_AT = 1000  # entries of a directory, because a message must not take long
_IGNORE = "or ignore the labels with labels=none"


@dataclass(frozen=True)
class Classes:
    """The labels of images and the class names.

    Attributes:
        labels: Labels, int64 [N]; None if there are none.
        names: Class names by label; empty if there are no labels.
    """

    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()


def classes_by_directory(paths: Sequence[str]) -> Classes:
    """Return the direct subdirectories as classes in alphabetical order, if there are several and every image is in one.

    Leading directories that all images share are skipped, because zip files are often made of a directory, not of its content.
    If images lie beside several subdirectories, log a warning that names them and return no classes.
    """
    start = length_of_shared(paths)
    found = [_directory(path, start) for path in paths]
    names = sorted({name for name in found if name is not None})
    if stray := stray_images(paths):
        log.warning(
            in_config("the %d subdirectories are not used as classes, because %s beside them: move %s away for labels, or set "
                      "labels=none"),
            len(names), stray, "it" if " and " not in stray else "them",
        )  # fmt: skip
    if len(names) < 2 or stray:
        return Classes()
    label_of = {name: label for label, name in enumerate(names)}
    return Classes(np.array([label_of[name] for name in found if name is not None], dtype=np.int64), tuple(names))


def stray_images(paths: Sequence[str]) -> str:
    """Return a phrase about images that lie beside several subdirectories of images; empty if there are none."""
    start = length_of_shared(paths)
    names = {path: _directory(path, start) for path in paths}
    stray = [path for path, name in names.items() if name is None]
    if not stray or len({*names.values()} - {None}) < 2:
        return ""
    return f"{stray[0]} lies" if len(stray) == 1 else f"{stray[0]} and {len(stray) - 1} more lie"


def length_of_shared(paths: Sequence[str]) -> int:
    """Return the length of the leading directories that all paths share, with the slash behind them."""
    length = 0
    # All paths lie between the first and the last one in alphabetical order, so they share what these two share.
    for number, (one, other) in enumerate(zip(min(paths, default=""), max(paths, default=""), strict=False), start=1):
        if one != other:
            break
        if one == "/":
            length = number
    return length


def _directory(path: str, start: int) -> str | None:
    """Return the name of the first directory of a path after its first ``start`` characters; None if there is none."""
    name, slash, _ = path[start:].partition("/")
    return name if slash else None


def classes_by_file(content: bytes, paths: Sequence[str], where: str) -> Classes | None:
    """Return the classes in a ``dataset.json`` of StyleGAN's dataset tool.

    Labels keep their numbers. A class name is the number of the class, followed by " - " and a name if
    the file has a list ``class_names``.

    Args:
        content: Content of the file.
        paths: Paths of all images, relative to the file's directory.
        where: Name of the file, for messages.

    Returns:
        The classes; None if the file has no entry about labels, because another program wrote it.

    Raises:
        DataError: If the file is damaged, an image has no label, or labels are not integers.
    """
    try:
        read = parse_json(content)
    except ValueError as error:
        raise _broken(f"the file {where} is not JSON ({error})", "write it again") from error
    if not isinstance(read, dict) or "labels" not in read:
        return None
    if read["labels"] is None:
        return Classes()
    label_of = _checked(read["labels"], where)
    missing = [path for path in paths if path not in label_of]
    if missing:
        raise _broken(
            f"the file {where} has no label for {len(missing)} of the {len(paths)} images; the first is {missing[0]}",
            "add them to the file",
        )
    if len(label_of) > len(paths):
        known = set(paths)
        absent = [name for name in label_of if name not in known]
        log.warning("%s names %d files that do not exist; the first is %s", where, len(absent), absent[0])
    labels = np.array([label_of[path] for path in paths], dtype=np.int64)
    return Classes(labels, _names(read.get("class_names"), int(labels.max()) + 1, where))


def classes_by_label(
    labels: Sequence[Any], images: Sequence[str], *, key: str, place: str, names: Sequence[str] | None = None
) -> Classes:
    """Return the classes of images that each have a number or a class name as their label.

    Whole numbers may also be written as text. If all labels are names, the distinct names are the classes, in alphabetical
    order.

    Args:
        labels: Label of each image; None where it is missing.
        images: Names of the images.
        key: Parameter that chooses the labels, for messages.
        place: Place of the labels, for messages, such as ``.cls``.
        names: Class names by label, which must then be a number; None if they are not known.

    Raises:
        DataError: If a label is missing, if it is neither an integer from 0 to the largest allowed one nor a name, or if there
            are both numbers and names.
    """
    found = list(labels if names is not None else map(as_number, labels))
    by_name = names is None and any(map(_is_class_name, found))
    most = _MOST_CLASSES if names is None else len(names)
    ignore = f"or ignore them with {key}=none"
    for image, label in zip(images, found, strict=True):
        if label is None:
            missing = sum(each is None for each in found)
            what = f"{missing} of the {len(found)} images have no label in {place}; the first is {image}"
            raise DataError(f"{key}: {what}", f"add them, or ignore the labels with {key}=none", key=key)
        if by_name and type(label) is int:
            other, name = next((o, n) for o, n in zip(images, found, strict=True) if _is_class_name(n))
            what = f"labels in {place} are both numbers and names, such as {label} of {image} and {name[:40]!r} of {other}"
            raise DataError(f"{key}: {what}", f"write either for all images, {ignore}", key=key)
        if not _is_class_name(label) if by_name else type(label) is not int or not 0 <= label < most:
            or_name = "" if names is not None else f" or a name of at most {_LONGEST_NAME} characters"
            raise DataError(
                f"{key}: the label of {image} in {place} is {str(label)[:40]!r}, not a whole number from 0 to {most - 1}"
                f"{or_name}",
                f"choose other labels, {ignore}",
                key=key,
            )
    if not by_name:
        numbers = np.array(found, dtype=np.int64)
        return Classes(numbers, tuple(names) if names is not None else tuple(map(str, range(int(numbers.max()) + 1))))
    found = [name.strip() for name in found]
    distinct = sorted(set(found))
    if len(distinct) > _MOST_CLASSES:
        raise DataError(f"{key}: the labels in {place} name {len(distinct):,} classes, more than {_MOST_CLASSES:,}",
                        f"choose other labels, {ignore}", key=key)  # fmt: skip
    label_of = {name: label for label, name in enumerate(distinct)}
    return Classes(np.array([label_of[name] for name in found], dtype=np.int64), tuple(distinct))


def as_number(value: Any) -> Any:
    """Return the integer in a text; any other value unchanged."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()) else value


def _is_class_name(value: Any) -> bool:
    """Return whether a label is a name: short printable text in one line that is not a number, such as ``1.5``."""
    text = value.strip() if isinstance(value, str) else ""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and _NUMBER.fullmatch(text) is None


def _checked(entries: Any, where: str) -> dict[str, int]:
    """Return the label of each file name."""
    form = 'entries must look like ["00000/img00000000.png", 6]'
    if not isinstance(entries, list):
        raise _broken(f"the file {where} has {type(entries).__name__} as labels, not a list: {form}")
    found: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise _broken(f"the file {where} has {str(entry)[:80]} as labels[{number}]: {form}")
        name, label = posixpath.normpath(entry[0].replace("\\", "/")), entry[1]
        if isinstance(label, list | float):
            raise _broken(
                f"the file {where} gives {name} the label {str(label)[:40]}, which is not a class number",
                "write one whole number per image",
            )
        if type(label) is not int or not 0 <= label < _MOST_CLASSES:
            raise _broken(
                f"the file {where} gives {name} the label {label!r}, not a whole number from 0 to {_MOST_CLASSES - 1}"
            )
        if found.setdefault(name, label) != label:
            raise _broken(f"the file {where} gives {name} the labels {found[name]} and {label}", "remove one of them")
    return found


def _broken(problem: str, fix: str = "correct the file") -> DataError:
    return DataError(problem, f"{fix}, {_IGNORE}", key="labels")


def _names(given: Any, count: int, where: str) -> tuple[str, ...]:
    if given is None:
        return tuple(map(str, range(count)))
    if not isinstance(given, list) or len(given) < count or not all(isinstance(name, str) for name in given):
        raise _broken(
            f"the file {where} must have a list of {count} names, one for each label from 0, as class_names",
            "correct or remove it",
        )
    return tuple(f"{label} - {name}" for label, name in enumerate(given))


def find_class_folders(root: Path, name: str, split: str) -> Path | None:
    """Return a directory with at least two subdirectories of image files, in one of the usual places; None if there is none.

    Args:
        root: Directory to search, without its deeper subdirectories.
        name: Name of the dataset, which may be the name of a directory.
        split: Name of the split, which may be the name of a directory, too.
    """
    for place in (root / name / split, root / split, root / name, root):
        try:
            folders = [entry for entry in sorted(islice(place.iterdir(), _MOST_LOOKED_AT)) if entry.is_dir()]
            if sum(_has_images(folder) for folder in folders) >= 2:
                return place
        except OSError:  # it does not exist, or cannot be read
            continue
    return None


def _has_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in suffixes() for entry in islice(folder.iterdir(), _MOST_LOOKED_AT))
