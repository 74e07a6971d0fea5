"""The samples in tar shards in WebDataset's layout: images, and the values of their labels and captions.

The files of a sample lie in the same shard and have the same name up to the first dot of the base name: ``000001.jpg``,
``000001.cls`` and ``000001.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from genimg.data.tars import Listing
from genimg.errors import ConfigError, DataError
from genimg.utils.json_text import parse_json
from genimg.utils.pillow import suffixes
from genimg.utils.progress import Progress

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key and extension of a sample's file
_TEXTS = ("cls", "txt", "caption", "text", "json")  # last parts of the extensions of files with labels and captions
_MOST_IMAGE = 2**29  # bytes of an image file; no decodable image is larger
_MOST_TEXT = 2**20  # bytes of a file with a label or a caption
_LOOKED_AT = 100  # samples whose JSON is read to find a key
_MOST_SHOWN = 5  # extensions in a message


@dataclass(frozen=True)
class Samples:
    """The samples that have an image, in the order of their shards.

    Attributes:
        listings: Files of each shard that has samples.
        sizes: Number of samples in each of these shards, int64 [S].
        names: Name of each sample's image, ``SHARD/KEY.EXTENSION``.
        places: Offset and size in bytes of each image in its shard, int64 [N, 2].
        texts: Number of each sample's text file in its shard, int64 [N], by extension; -1 where a sample has none.
        without_image: Name of the first sample that has no image, and the number of all such samples.
    """

    listings: list[Listing]
    sizes: NDArray[np.int64]
    names: list[str]
    places: NDArray[np.int64]
    texts: dict[str, NDArray[np.int64]]
    without_image: tuple[str, int]

    def read(self, extension: str) -> Iterator[str | None]:
        """Yield the content of each sample's text file; None where it is missing.

        Raises:
            DataError: If a file is too large, cut off or not UTF-8.
        """
        numbers, start = self.texts[extension], 0
        with Progress(total=len(numbers), desc=f"reading .{extension}", unit="file", delay=1.0, leave=False) as progress:
            for listing, size in zip(self.listings, self.sizes.tolist(), strict=True):
                with listing.archive.open() as file:
                    for number in numbers[start : start + size].tolist():
                        yield None if number < 0 else _text(listing, number, file)
                start += size
                progress.update(size)


@dataclass(frozen=True)
class Column:
    """The place of one value of each sample: a text file, or a key of a JSON file.

    Attributes:
        extension: Extension of the file.
        key: Key of the value in the JSON object; None for the whole text.
    """

    extension: str
    key: str | None

    def __str__(self) -> str:
        return f".{self.extension}" + ("" if self.key is None else f" ({self.key})")

    def values(self, samples: Samples) -> Iterator[Any]:
        """Yield the value of each sample; None where it is missing.

        Raises:
            DataError: If a file is damaged; see ``Samples.read``.
        """
        for name, text in zip(samples.names, samples.read(self.extension), strict=True):
            if text is None:
                yield None
            elif self.key is not None:
                yield _object(text, name, self.extension).get(self.key)
            else:
                yield text


def find_samples(listings: Sequence[Listing], image: str | None, also: Sequence[str]) -> Samples:
    """Group the files of shards into samples.

    Args:
        listings: Files of each shard.
        image: Extension of the images; None uses the only image of each sample.
        also: Extensions of text files that are kept besides the usual ones.

    Raises:
        ConfigError: If a sample has several images, and ``image`` is None.
        DataError: If two files of a sample have the same extension, or an image is too large.
    """
    kinds = {suffix.removeprefix(".") for suffix in suffixes()}
    used, sizes, names, places = [], [], [], []
    texts: list[dict[str, NDArray[np.int64]]] = []
    missing, num_missing = "", 0
    for listing in listings:
        of_shard: dict[str, list[int]] = {}
        chosen: list[int] = []
        for key, files in _grouped(listing).items():
            extension = _image_of(listing, key, files, image, kinds)
            if extension is None:
                missing, num_missing = missing or f"{listing.archive.name}/{key}", num_missing + 1
                continue
            for other, number in files.items():
                if other.rpartition(".")[2] in _TEXTS or other in also:
                    column = of_shard.setdefault(other, [])
                    column += [-1] * (len(chosen) - len(column)) + [number]
            names.append(f"{listing.archive.name}/{listing.names[files[extension]].removeprefix('./')}")
            chosen.append(files[extension])
        if chosen:
            used.append(listing)
            sizes.append(len(chosen))
            places.append(listing.places[chosen])
            texts.append({name: np.array(c + [-1] * (len(chosen) - len(c)), dtype=np.int64) for name, c in of_shard.items()})
    extensions = dict.fromkeys(name for each in texts for name in each)
    joined = {
        name: np.concatenate([each.get(name, np.full(size, -1)) for each, size in zip(texts, sizes, strict=True)])
        for name in extensions
    }
    found = np.concatenate(places) if places else np.empty((0, 2), dtype=np.int64)
    _refuse_large(names, found)
    return Samples(used, np.array(sizes, dtype=np.int64), names, found, joined, (missing, num_missing))


def choose_column(parameter: str, given: str, samples: Samples, usual: Sequence[str], kind: type) -> Column | None:
    """Return the column that a parameter names.

    Args:
        parameter: Name of the parameter, for messages.
        given: ``auto``, ``none``, an extension, or ``EXTENSION.KEY`` for a key of JSON files.
        samples: The samples.
        usual: Columns that ``auto`` looks for, in this order; a key must have a value of type ``kind`` in one of the first
            samples.
        kind: Type of the values.

    Returns:
        The column; None for ``none``, or if ``auto`` finds none.

    Raises:
        ConfigError: If there are no such files.
    """
    if given == "none":
        return None
    if given != "auto":
        column = _resolved(given.removeprefix("."), samples)
        if column is None:
            there = ", ".join(list(samples.texts)[:_MOST_SHOWN]) or "none"
            raise ConfigError(
                f"{parameter}={given} is neither the extension of a file in the samples (text files are: {there}) nor "
                "EXTENSION.KEY for a key of JSON files, such as json.caption"
            )
        return column
    for name in usual:
        column = _resolved(name, samples)
        if column is not None and (
            column.key is None or any(type(v) is kind for v in islice(column.values(samples), _LOOKED_AT))
        ):
            return column
    return None


def _resolved(name: str, samples: Samples) -> Column | None:
    if name in samples.texts:
        return Column(name, None)
    for extension in sorted(samples.texts, key=len, reverse=True):
        if extension.endswith("json") and name.startswith(f"{extension}."):
            return Column(extension, name.removeprefix(f"{extension}."))
    return None


def _grouped(listing: Listing) -> dict[str, dict[str, int]]:
    """Return the numbers of the files of each sample by key and extension; hidden files belong to no sample."""
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(listing.names):
        match = _NAME.fullmatch(name.removeprefix("./"))
        if match is None:
            continue
        files, extension = found.setdefault(match[1], {}), match[2].lower()
        if extension in files:
            raise DataError(f"the archive {listing.archive.path} holds two files {match[1]}.{extension}: remove one of them")
        files[extension] = number
    return found


def _image_of(listing: Listing, key: str, files: dict[str, int], image: str | None, kinds: set[str]) -> str | None:
    """Return the extension of a sample's image; None if it has none."""
    if image is not None:
        wanted = image.removeprefix(".").lower()
        return wanted if wanted in files else None
    found = [extension for extension in files if extension.rpartition(".")[2] in kinds]
    if len(found) > 1:
        raise ConfigError(
            f"image=null is ambiguous, because the sample {key} of {listing.archive.path} has {len(found)} images: "
            f"{', '.join(found[:_MOST_SHOWN])} (the files of a sample have the same name up to the first dot)",
            f"choose one, such as image={found[0]}",
        )
    return found[0] if found else None


def _refuse_large(names: Sequence[str], places: NDArray[np.int64]) -> None:
    large = np.flatnonzero(places[:, 1] > _MOST_IMAGE)
    if len(large):
        first = int(large[0])
        raise DataError(f"the file {names[first]} has {int(places[first, 1]):,} bytes, which is not an image: remove it")


def _text(listing: Listing, number: int, file: BinaryIO) -> str:
    name, (offset, size) = f"{listing.archive.path}/{listing.names[number]}", listing.places[number].tolist()
    if size > _MOST_TEXT:
        raise DataError(f"the file {name} has {size:,} bytes, but may have at most {_MOST_TEXT:,}: shorten it")
    try:
        return listing.archive.read(file, offset, size).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file {name} cannot be read as UTF-8 ({error}): write the shard again") from error


def _object(text: str, name: str, extension: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"the file .{extension} of the sample {name} is not JSON ({error}): write the shard again") from error
    if not isinstance(content, dict):
        raise DataError(f"the file .{extension} of the sample {name} is not a JSON object: write the shard again")
    return content
