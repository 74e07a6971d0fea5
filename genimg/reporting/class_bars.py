"""A picture of one value for each class: a horizontal bar with the class's name and the value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from genimg.utils.files import atomically

_ROW, _BAR, _SIDE = 26, 16, 16  # height of a row and of its bar, and the margin, in pixels
_NAMES, _WIDTH, _NUMBERS = 160, 420, 80  # width of the names, of the longest bar, and of the numbers
_LONGEST = 24  # characters of a name
_INK, _BLUE = "#1a1a1a", "#0b62c4"


def write_class_bars(path: Path, title: str, values: Sequence[tuple[str, float]], text: Mapping[str, str]) -> None:
    """Write the picture atomically, as a PNG.

    Args:
        path: The file.
        title: What the values are.
        values: Names and values, 0 or more, from top to bottom.
        text: Text in the header of the file.
    """
    size = (_NAMES + _WIDTH + _NUMBERS + 2 * _SIDE, (len(values) + 1) * _ROW + 2 * _SIDE)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    draw.text((_SIDE, _SIDE), title, fill=_INK, font=font)
    largest = max((value for _, value in values), default=0.0)
    for number, (name, value) in enumerate(values, start=1):
        top = _SIDE + number * _ROW
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        draw.text((_SIDE + _NAMES - 8, top + _BAR / 2), shown, fill=_INK, font=font, anchor="rm")
        length = round(_WIDTH * value / largest) if largest > 0 else 0
        if length:
            draw.rectangle((_SIDE + _NAMES, top, _SIDE + _NAMES + length - 1, top + _BAR - 1), fill=_BLUE)
        draw.text((_SIDE + _NAMES + length + 8, top + _BAR / 2), f"{value:.4g}", fill=_INK, font=font, anchor="lm")
    header = PngInfo()
    for key, entry in text.items():
        header.add_text(key, entry)
    with atomically(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=header)
