"""Pictures embedded in the page: a selection of each run's sample grids, re-encoded to fit a budget."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from genimg.reporting.runs import Run
from genimg.reporting.text import thinned
from genimg.utils.pillow import open_header, open_image

MAX_STEPS = 24  # pictures per kind and run
BUDGET = 10_500_000  # bytes for all pictures; Base64 adds a third, and the rest of a page takes a few hundred kB
_MAX_PER_RUN = 96  # pictures per run; a run waits for them at its end, at most a second
_MAX_PICTURES = 480  # pictures of all runs
_MAX_PIXELS = 60_000_000  # pixels in the files of all pictures
_MAX_SIDE = 1200  # pixels on the longer side of a picture on the page
_LOSSLESS_PIXELS = 160_000
_QUALITY = 90


@dataclass(frozen=True)
class Picture:
    """One grid of samples.

    Attributes:
        images: Number of images that the model had seen.
        uri: ``data:`` URI of the encoded picture.
        width, height: Size in pixels.
        num_bytes: Size of the encoded picture, before Base64.
        reduced: Whether the picture is smaller than its file because of the largest side on a page.
    """

    images: int
    uri: str
    width: int
    height: int
    num_bytes: int
    reduced: bool


@dataclass(frozen=True)
class Gallery:
    """All pictures of a page.

    Attributes:
        kinds: Ordered pictures by kind and number of the run.
        notes: Sentences about omitted, reduced or unreadable pictures.
    """

    kinds: dict[str, dict[int, list[Picture]]]
    notes: list[str]


def gallery(runs: Sequence[Run], budget: int = BUDGET) -> Gallery:
    """Return evenly spaced pictures that fit into ``budget`` bytes, including the first and last of each kind.

    Unreadable files are omitted with a note.
    """
    sets = {(kind, number): run.pictures[kind] for number, run in enumerate(runs) for kind in run.pictures}
    if not sets:
        return Gallery({}, [])
    pixels = sum(_num_pixels(files[max(files)]) for files in sets.values())
    steps = min(MAX_STEPS, _MAX_PER_RUN * len(runs) // len(sets), _MAX_PICTURES // len(sets), _MAX_PIXELS // max(pixels, 1))
    steps, scale = max(2, steps), 1.0
    encoded: dict[tuple[Path, float], Picture | None] = {}

    def encode() -> tuple[dict[tuple[str, int], list[Picture]], int]:
        """Return the pictures for the current ``steps`` and ``scale``, and the bytes of all."""
        made: dict[tuple[str, int], list[Picture]] = {}
        for key, files in sets.items():
            ordered = sorted(files.items())
            for images, path in (ordered[place] for place in thinned(len(ordered), steps)):
                if (path, scale) not in encoded:
                    encoded[path, scale] = _encoded(images, path, scale)
                if (picture := encoded[path, scale]) is not None:
                    made.setdefault(key, []).append(picture)
        return made, sum(picture.num_bytes for pictures in made.values() for picture in pictures)

    made, size = encode()
    while size > budget and steps > 2:
        steps = max(2, min(steps - 1, int(steps * budget / size)))
        made, size = encode()
    while size > budget and scale > 0.05:
        scale *= max(0.4, min(0.9, math.sqrt(budget / size)))
        made, size = encode()
    kinds: dict[str, dict[int, list[Picture]]] = {}
    for (kind, number), pictures in made.items():
        kinds.setdefault(kind, {})[number] = pictures
    notes, most = [], max(map(len, sets.values()))
    if most > steps:
        notes.append(f"At most {steps} of up to {most} pictures of a kind are shown, evenly spaced; all are in samples/.")
    if scale < 1.0:
        notes.append(f"Pictures are reduced to {scale:.0%} of their size to keep this page small.")
    if any(picture.reduced for pictures in made.values() for picture in pictures):
        notes.append(f"Pictures of more than {_MAX_SIDE} pixels a side are reduced to that; the originals are in samples/.")
    unreadable = dict.fromkeys(path for (path, _), picture in encoded.items() if picture is None)
    notes += [f"{path.name} of {path.parent.parent.name} cannot be read." for path in unreadable]
    return Gallery(dict(sorted(kinds.items(), key=lambda each: _rank(*each))), notes)


def _rank(kind: str, pictures: dict[int, list[Picture]]) -> tuple[bool, bool, str]:
    """Return a sort key: samples first, then kinds that change over time, then kinds with a single picture."""
    return kind != "samples", all(len(each) == 1 for each in pictures.values()), kind


def _num_pixels(path: Path) -> int:
    try:
        with open_header(path) as opened:
            return opened.width * opened.height
    except OSError:
        return 0


def _encoded(images: int, path: Path, scale: float) -> Picture | None:
    """Return a file as WebP, lossless if it is small and unscaled; None if it cannot be read."""
    try:
        with open_image(path) as opened:
            image = opened.convert("RGB")
    except OSError:  # Pillow's errors are OSErrors, too
        return None
    factor = min(scale, _MAX_SIDE / max(image.size))
    if factor < 1.0:
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(size, Image.Resampling.BOX)
    target = io.BytesIO()
    if factor >= 1.0 and image.width * image.height <= _LOSSLESS_PIXELS:
        image.save(target, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(target, "WEBP", quality=_QUALITY, method=2)
    uri = f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"
    return Picture(images, uri, image.width, image.height, len(target.getvalue()), factor < scale)
