"""Captions beside the images of a folder: one JSON Lines file, or a text file for each image."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from genimg.data.subsets import fixed_subset
from genimg.errors import DataError
from genimg.utils.json_text import parse_json
from genimg.utils.progress import Progress
from genimg.utils.regular_files import read_regular

log = logging.getLogger(__name__)

_NAMES = ("metadata.jsonl", "captions.jsonl")  # the first is the name that Hugging Face's imagefolder uses
_KEYS = ("text", "caption")
_MOST_BYTES = 2**20  # maximum size of a caption file
_MISSING_SHARE = 0.01  # share of the images that may lack a caption
_SAMPLED = 100  # images that are checked for caption files
_IGNORE = "or ignore captions with captions=null"


class Captions(Protocol):
    """The captions of a dataset's images."""

    @property
    def texts(self) -> Sequence[str]:
        """The caption of each image; empty where it is missing.

        Raises:
            DataError: If captions are damaged, or too many are missing.
        """


class LazyCaptions:
    """Captions that are read at first use, because few models need them.

    Args:
        read: Function that returns all captions.
    """

    def __init__(self, read: Callable[[], list[str]]) -> None:
        self._read = read

    @cached_property
    def texts(self) -> list[str]:
        return self._read()


class FolderCaptions:
    """The captions of a folder's images, read at first use, because few models need them.

    Args:
        root: Folder of the images.
        paths: Paths of the images, relative to ``root``.
        file: JSON Lines file of ``{"file_name": ..., "text": ...}``; None for a .txt file beside each image.
    """

    def __init__(self, root: Path, paths: Sequence[str], file: Path | None) -> None:
        self.root = root
        self.paths = paths
        self.file = file

    @cached_property
    def texts(self) -> list[str]:
        """The caption of each path; empty where it is missing.

        Raises:
            DataError: If a file is damaged or names an unknown image, or more than one image in a hundred has no caption.
        """
        found = dict(self._beside_images() if self.file is None else self._of_lines(self.file))
        where = ".txt beside it" if self.file is None else f"line in {self.file}"
        return complete([found.get(path) for path in self.paths], self.paths, str(self.root), where)

    def _beside_images(self) -> Iterator[tuple[str, str]]:
        for path in Progress(self.paths, desc="reading captions", unit="file", delay=1.0, leave=False):
            file = _text_file(self.root, path)
            try:
                yield path, read_regular(file, most=_MOST_BYTES).decode("utf-8-sig").strip()
            except FileNotFoundError:
                continue
            except UnicodeDecodeError as error:
                raise _broken(f"the file {file} is not UTF-8 ({error.reason})", "save it as UTF-8") from error

    def _of_lines(self, file: Path) -> Iterator[tuple[str, str]]:
        known = set(self.paths)
        lines: dict[str, int] = {}
        strange: list[tuple[int, str]] = []
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            name, text = _entry(line, f"line {number} of the file {file}")
            if name not in known:
                strange.append((number, name))
            elif name in lines:
                raise _broken(
                    f"the file {file} has a second caption for {name} in line {number}, after line {lines[name]}",
                    "remove one of them",
                )
            else:
                lines[name] = number
                yield name, text
        if strange:
            number, name = strange[0]
            raise _broken(
                f"the file {file} names {len(strange)} file{'s' * (len(strange) > 1)} that "
                f"{'are not images' if len(strange) > 1 else 'is not an image'} of {self.root}; the first is {name} in line "
                f"{number}",
                f"give names relative to that directory, such as {self.paths[0]}",
            )


def find_captions(root: Path, paths: Sequence[str], wanted: str | None) -> FolderCaptions | None:
    """Find the captions of a folder; return None if there are none.

    Args:
        root: Folder of the images.
        paths: Paths of the images, relative to ``root``; at least one.
        wanted: None ignores captions. A path relative to ``root`` names the file. ``auto`` uses metadata.jsonl or
            captions.jsonl if one exists, or else the .txt files beside the images if any of a hundred random images has one.

    Raises:
        DataError: If the file is missing.
    """
    if wanted is None:
        return None
    if wanted != "auto":
        file = root / Path(wanted).expanduser()
        if not file.is_file():
            raise DataError(
                f"captions={wanted} is not a file: there is no {file}; give a path relative to the directory of the images, an "
                "absolute one, auto, or null to ignore captions"
            )
        return FolderCaptions(root, paths, file)
    for name in _NAMES:
        if (root / name).is_file() and _has_text(root / name):
            return FolderCaptions(root, paths, root / name)
    # The first image may be one of the few without a caption, and checking all would be slow for a million images.
    sampled = [paths[i] for i in fixed_subset(min(_SAMPLED, len(paths)), len(paths))]
    return FolderCaptions(root, paths, None) if any(_text_file(root, path).is_file() for path in sampled) else None


def complete(texts: Sequence[str | None], names: Sequence[str], where: str, place: str, *, key: str = "captions") -> list[str]:
    """Return captions with empty ones where they are missing, and log a warning if there are such images.

    Args:
        texts: Caption of each image; None where it is missing.
        names: Names of the images.
        where: Name of the data, for messages.
        place: Place where a caption is expected, for messages, such as ``line in captions.jsonl``.
        key: Parameter that chooses the captions, for messages.

    Raises:
        DataError: If more than one image in a hundred has no caption.
    """
    missing = [name for name, text in zip(names, texts, strict=True) if text is None]
    if missing:
        what = f"{len(missing)} of the {len(names)} images of {where} have no caption"
        if len(missing) > _MISSING_SHARE * len(names):
            raise DataError(
                f"{what}; the first is {missing[0]}, which has no {place}",
                f"write it, or ignore captions with {key}=null",
                key=key,
            )
        log.warning("%s and get an empty one; the first is %s, which has no %s", what, missing[0], place)
    return [text or "" for text in texts]


def _broken(problem: str, fix: str) -> DataError:
    return DataError(problem, f"{fix}, {_IGNORE}", key="captions")


def _text_file(root: Path, path: str) -> Path:
    return root / PurePosixPath(path).with_suffix(".txt")


def _has_text(file: Path) -> bool:
    """Return whether the first line has a caption, because files of these names may contain other metadata."""
    try:
        content = parse_json(next((line for line in _lines(file) if line.strip()), ""))
    except ValueError:
        return True  # reading the captions will report the error
    if isinstance(content, dict) and not any(key in content for key in _KEYS):
        log.info("%s holds no captions: its first line has neither %s", file, " nor ".join(_KEYS))
        return False
    return True


def _lines(file: Path) -> Iterator[str]:
    try:
        with open(file, encoding="utf-8-sig", newline="\n") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise _broken(f"the file {file} is not UTF-8 ({error.reason})", "save it as UTF-8") from error


def _entry(line: str, where: str) -> tuple[str, str]:
    """Return the image's name and its caption; ``where`` names the line in messages."""
    form = 'write each line as {"file_name": "a/1.png", "text": "a red circle"}'
    try:
        content = parse_json(line)
    except ValueError as error:
        raise _broken(f"{where} is not JSON ({error})", form) from error
    if not isinstance(content, dict):
        raise _broken(f"{where} is not a JSON object", form)
    name, text = content.get("file_name"), next((content[key] for key in _KEYS if key in content), None)
    if not isinstance(name, str) or not isinstance(text, str):
        lacking = "file_name" if not isinstance(name, str) else "text"
        raise _broken(f"{where} has no {lacking} that is a string", form)
    return posixpath.normpath(name), text.strip()
