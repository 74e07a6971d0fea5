"""Pictures embedded in the page: a selection of each run's sample grids, re-encoded to fit a budget."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from genimg.reporting.runs import Run
from genimg.reporting.text import thinned
from genimg.utils.pillow import open_header, open_image

MAX_STEPS = 24  # maximum number of pictures per kind and run
BUDGET = 10_500_000  # bytes for all pictures; Base64 adds a third, and the rest of a page takes a few hundred kB
_MAX_PER_RUN = 96  # maximum number of pictures per run; encoding them takes at most a second at the end of a run
_MAX_PICTURES = 480  # maximum number of pictures of all runs
_MAX_PIXELS = 60_000_000  # maximum number of pixels in the files of all pictures
_MAX_SIDE = 1200  # maximum number of pixels on the longer side of a picture
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
        reduced: Whether the picture is smaller than its file because the page limits the side length.
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
        kinds: Pictures in order of images seen, by kind and number of the run.
        notes: Sentences about omitted, reduced or unreadable pictures.
    """

    kinds: dict[str, dict[int, list[Picture]]]
    notes: list[str]


def gallery(runs: Sequence[Run], budget: int = BUDGET) -> Gallery:
    """Return evenly spaced pictures that fit into ``budget`` bytes, including the first and last of each kind.

    Unreadable files are omitted with a note.
    """
    sets = [(kind, number, files) for number, run in enumerate(runs) for kind, files in run.pictures.items()]
    if not sets:
        return Gallery({}, [])
    pixels = sum(_num_pixels(files[max(files)]) for _, _, files in sets)
    steps = min(MAX_STEPS, _MAX_PER_RUN * len(runs) // len(sets), _MAX_PICTURES // len(sets), _MAX_PIXELS // max(pixels, 1))
    steps, scale = max(2, steps), 1.0
    encoded = cache(_encoded)
    unreadable: dict[Path, None] = {}
    while True:
        kinds: dict[str, dict[int, list[Picture]]] = {}
        for kind, number, files in sets:
            for images in (sorted(files)[place] for place in thinned(len(files), steps)):
                if picture := encoded(images, files[images], scale):
                    kinds.setdefault(kind, {}).setdefault(number, []).append(picture)
                else:
                    unreadable[files[images]] = None
        shown = [picture for of_kind in kinds.values() for pictures in of_kind.values() for picture in pictures]
        size = sum(picture.num_bytes for picture in shown)
        if size > budget and steps > 2:
            steps = max(2, min(steps - 1, int(steps * budget / size)))
        elif size > budget and scale > 0.05:
            scale *= max(0.4, min(0.9, math.sqrt(budget / size)))
        else:
            break
    notes, most = [], max(len(files) for _, _, files in sets)
    if most > steps:
        notes.append(f"At most {steps} of up to {most} pictures of a kind are shown, evenly spaced; all are in samples/.")
    if scale < 1.0:
        notes.append(f"Pictures are reduced to {scale:.0%} of their size to keep this page small.")
    if any(picture.reduced for picture in shown):
        notes.append(f"Pictures of more than {_MAX_SIDE} pixels a side are reduced to that; the originals are in samples/.")
    notes += [f"{path.name} of {path.parent.parent.name} cannot be read." for path in unreadable]
    # Samples first, then kinds that change over time, then those with a single picture.
    order = sorted(kinds, key=lambda kind: (kind != "samples", all(len(each) == 1 for each in kinds[kind].values()), kind))
    return Gallery({kind: kinds[kind] for kind in order}, notes)


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
    except OSError:  # Pillow's errors are also OSErrors
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
