"""WebDataset's tar shards, read in place and in large pieces (Aizman et al. 2019)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genimg.data.classes import Classes, as_number, classes_by_label
from genimg.data.contents import digest_of_items
from genimg.data.datasets.builtin import FileDataset, digest
from genimg.data.datasets.caption_files import LazyCaptions, complete
from genimg.data.decode import PixelFormat
from genimg.data.depth import pixel_format, requested_format
from genimg.data.image_files import require_decoders
from genimg.data.locality import Locality
from genimg.data.saved_index import LEAST_SAVED, index_file, read_index, write_index
from genimg.data.tar_samples import Column, Samples, choose_column, find_samples
from genimg.data.tars import open_archives, state_of
from genimg.errors import ConfigError, DataError
from genimg.utils.mounting import in_config

log = logging.getLogger(__name__)

_COMPRESSED = re.compile(r".*\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_LABELS = ("cls", "json.cls", "json.label")
_CAPTIONS = ("txt", "caption", "text", "json.caption", "json.text")
_Saved = Callable[[str, Callable[[], Any]], Any]


class TarImages:
    """The images of samples in tar shards; see ``ImageFiles``.

    Args:
        root: Directory of the shards.
        samples: The samples.
        saved: Function that returns a saved value, or saves and returns that of a function.
    """

    def __init__(self, root: Path, samples: Samples, saved: _Saved) -> None:
        self.root = root
        self.paths = samples.names
        self.archives = [listing.archive for listing in samples.listings]
        self.shard_of = np.repeat(np.arange(len(samples.sizes), dtype=np.int64), samples.sizes)
        self._numbers = {name: number for number, name in enumerate(samples.names)}
        self._places = samples.places
        sizes = zip(samples.names, samples.places[:, 1].tolist(), strict=True)
        listed = digest(*(f"{name}\0{size}" for name, size in sizes))
        contents = saved(f"contents\0{listed}", lambda: digest_of_items(self.paths, self._digest_of, str(root)))
        self.digest = digest(listed, contents)

    def open(self, path: str) -> BytesIO:
        """Return the content of an image.

        Raises:
            OSError: If the shard was changed, or ends within the image.
        """
        number = self._numbers[path]
        archive, (offset, size) = self.archives[self.shard_of[number]], self._places[number].tolist()
        with archive.open() as file:
            return BytesIO(archive.read(file, offset, size))

    def _digest_of(self, path: str) -> bytes:
        number = self._numbers[path]
        return self.archives[self.shard_of[number]].digest(*self._places[number].tolist())


class WebDataset(FileDataset):
    """Images in tar shards, each of which is read ahead as a whole when training begins to use it."""

    locality: Locality

    def __init__(
        self,
        name: str,
        files: TarImages,
        pixels: PixelFormat,
        classes: Classes,
        captions: LazyCaptions | None,
        locality: Locality,
    ) -> None:
        super().__init__(name, files, pixels, classes, captions)
        self.locality = locality
        self._tars = files
        self._ahead: dict[int, int] = {}  # shard -> number of its images, in the order of reading

    def expect(self, indices: NDArray[np.int64]) -> None:
        for shard in np.unique(self._tars.shard_of[indices]).tolist():
            if shard not in self._ahead:
                self._tars.archives[shard].read_ahead()
                self._ahead[shard] = int(self.locality.sizes[shard])
        # The current group and the one before are remembered; the system may have dropped earlier shards from its cache.
        while len(self._ahead) > 2 and sum(self._ahead.values()) > 2 * self.locality.buffer:
            del self._ahead[next(iter(self._ahead))]


def webdataset(
    *,
    root: str,
    image_size: int | Sequence[int] | None,
    channels: int | None,
    fit: str,
    image: str | None = None,
    labels: str = "auto",
    captions: str | None = "auto",
    shuffle_buffer: int = 10_000,
    range: Sequence[float] | None = None,
    refresh_index: bool = False,
    name: str = "webdataset",
) -> WebDataset:
    """List the samples in tar shards.

    Args:
        root: A directory of .tar files, one such file, or a pattern such as ``shards/train-{000..009}.tar``.
        image_size, channels, fit: See ``folder``.
        image: Extension of the images; None uses the only image of each sample.
        labels: ``auto``, ``none``, the extension of files with a label, or ``EXTENSION.KEY`` for a key of JSON files. Labels
            are whole numbers or names (see ``classes_by_label``); ``auto`` uses only keys with numbers.
        captions: ``auto``, an extension or ``EXTENSION.KEY`` as for ``labels``, or None for no captions.
        shuffle_buffer: Number of images that are shuffled together: see ``Locality``.
        range: See ``folder``.
        refresh_index: Whether to ignore the saved lists of files.
        name: Name for messages.

    Raises:
        ConfigError: If a parameter is invalid, or a sample has several images and ``image`` is None.
        DataError: If shards are missing, compressed or damaged, hold no images, or labels are missing or invalid.
    """
    requested = requested_format(image_size, channels, fit, range)
    if shuffle_buffer < 1:
        raise ConfigError(f"shuffle_buffer={shuffle_buffer} must be 1 or more images")
    directory, names = _find_shards(root)
    listings = open_archives(directory, names, key=root, refresh=refresh_index)
    samples = find_samples(listings, image, [labels, captions or ""])
    if not samples.names:
        what = "images" if image is None else f"samples with a file .{image}"
        raise DataError(f"root={root} holds no {what}: expected files such as 000001.jpg in its {len(names)} .tar files")
    require_decoders(samples.names, root)
    state = digest(state_of(listings), image)  # image decides which samples there are, too
    saved = partial(_saved_or_made, root, state, worth=len(samples.names) >= LEAST_SAVED, refresh=refresh_index)
    files = TarImages(directory, samples, saved)
    of_labels = choose_column("labels", labels, samples, _LABELS, int)
    of_captions = None if captions is None else choose_column("captions", captions, samples, _CAPTIONS, str)
    _say_what_was_found(root, samples, of_labels, of_captions)
    classes = Classes() if of_labels is None else _classes(samples, of_labels, saved)
    locality = Locality(samples.sizes, shuffle_buffer)
    _warn_of_sorted_shards(classes, locality)
    texts = None if of_captions is None else LazyCaptions(partial(_captions, samples, of_captions, saved))
    return WebDataset(name, files, pixel_format(files, requested, range), classes, texts, locality)


def _find_shards(root: str) -> tuple[Path, list[str]]:
    """Return the directory of the shards that ``root`` names, and their paths relative to it.

    Raises:
        DataError: If there are none, or an archive is compressed.
    """
    given = Path(root).expanduser()
    if given.is_dir():
        names = sorted(entry.name for entry in given.iterdir() if not entry.name.startswith("."))
        found = [given / name for name in names if name.endswith(".tar") or _COMPRESSED.fullmatch(name)]
    else:
        found = [Path(path) for path in _expand_braces(str(given))]
    compressed = next((path for path in found if _COMPRESSED.fullmatch(path.name)), None)
    if compressed is not None:
        raise DataError(
            f"root={root}: {compressed} is compressed, so single images cannot be read from it: decompress it (images are "
            "already compressed)"
        )
    if not found or not (given.is_dir() or any(path.is_file() for path in found)):
        what = "holds no .tar files" if given.is_dir() else "does not exist"
        raise DataError(
            f"root={root} {what}: give a directory of WebDataset's shards, one .tar file, or a pattern such as "
            "shards/train-{000000..000009}.tar"
        )
    folder = found[0].parent
    if any(path.parent != folder for path in found):
        raise DataError(f"root={root} names archives in several directories: give a pattern of files of one directory")
    return folder, [path.name for path in found]


def _expand_braces(pattern: str) -> list[str]:
    """Expand ``{a,b}`` and ``{000..009}`` like a shell; the numbers have at least as many digits as the first one.

    Raises:
        DataError: If the pattern names too many files.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if number % 2 == 0 else _alternatives(part) for number, part in enumerate(parts)]
    if np.prod([float(len(each)) for each in choices]) > _MOST_SHARDS:
        raise DataError(f"root={pattern} names more than {_MOST_SHARDS:,} files: give a smaller range")
    return ["".join(each) for each in product(*choices)]


def _alternatives(braces: str) -> list[str]:
    numbers = _RANGE.fullmatch(braces)
    if numbers is None:
        return braces.split(",") if "," in braces else [f"{{{braces}}}"]
    first, last = int(numbers[1]), int(numbers[2])
    if last - first >= _MOST_SHARDS:
        raise DataError(f"root: the range {braces} has more than {_MOST_SHARDS:,} numbers: give a smaller one")
    return [f"{number:0{len(numbers[1])}d}" for number in np.arange(first, last + 1).tolist()]


def _classes(samples: Samples, column: Column, saved: _Saved) -> Classes:
    values = saved(f"labels\0{column}", lambda: list(map(as_number, column.values(samples))))
    return classes_by_label(values, samples.names, key="labels", place=str(column))


def _captions(samples: Samples, column: Column, saved: _Saved) -> list[str]:
    texts = saved(f"captions\0{column}", lambda: list(column.values(samples)))
    wrong = next((name for name, text in zip(samples.names, texts, strict=True) if not isinstance(text, str | None)), None)
    if wrong is not None:
        raise DataError(f"captions: {column} of the sample {wrong} is not text: name another key, or set captions=null")
    return complete(texts, samples.names, "the shards", str(column))


def _saved_or_made(root: str, state: str, name: str, make: Callable[[], Any], *, worth: bool, refresh: bool) -> Any:
    """Return a value of primitives that belongs to the shards in this state, saved unless it is made quickly.

    Args:
        root: Directory or pattern of the shards.
        state: Digest of the shards' state.
        name: Name of the value.
        make: Function that returns the value.
        worth: Whether to save the value.
        refresh: Whether to ignore a saved value.
    """
    if not worth:
        return make()
    file = index_file(Path(root), f"tar samples\0{name}")
    head, _, rest = (b"" if refresh else read_index(file) or b"").partition(b"\n")
    if head.decode("ascii", "replace") == state:
        return json.loads(rest)
    value = make()
    write_index(file, state.encode() + b"\n" + json.dumps(value).encode())
    return value


def _warn_of_sorted_shards(classes: Classes, locality: Locality) -> None:
    """Warn if most shards hold a single class, because batches would then hold the classes of few shards."""
    if classes.labels is None or len(classes.labels) <= locality.buffer:
        return
    starts = np.cumsum(locality.sizes) - locality.sizes
    lowest, highest = (function.reduceat(classes.labels, starts) for function in (np.minimum, np.maximum))
    count = int((lowest == highest).sum())
    if count > len(starts) / 2 and lowest.min() < highest.max():
        log.warning(
            in_config("shuffle_buffer=%d mixes the images of few shards, but %d of the %d shards hold a single class, so "
                      "consecutive batches will hold few classes: set a larger shuffle_buffer, or write the samples in random "
                      "order"),
            locality.buffer, count, len(starts),
        )  # fmt: skip


def _say_what_was_found(root: str, samples: Samples, labels: Column | None, captions: Column | None) -> None:
    log.info(
        "%s: %d images in %d shards; labels from %s; captions from %s",
        root, len(samples.names), len(samples.sizes), labels or "no file", captions or "no file",
    )  # fmt: skip
    name, count = samples.without_image
    if count:
        log.warning("%d samples of %s have no image and are not used; the first is %s", count, root, name)
