"""The picture of an operating surface: quality against each cost, with the Pareto front, for the page and as a PNG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from genimg.reporting.curves import nice_ticks
from genimg.reporting.surface import COSTS, Surface, described

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 46  # margins in the same units
_WIDE = 4.0  # an axis is logarithmic if its largest number is at least this many times its smallest
_SCALE = 2  # pixels of the PNG per unit
_FINE = 2  # pixels drawn per pixel of the PNG, for smooth edges
_LABEL_WIDTH, _LABEL_HEIGHT = 150, 14  # space that a label needs in the PNG
_INK, _GREY, _GRID, _FRONT = "#1a1a1a", "#8a8f98", "#e3e5e8", "#0b62c4"


@dataclass(frozen=True)
class Axis:
    """Maps numbers to [0, 1].

    Attributes:
        low, high: Numbers at 0 and 1.
        is_logarithmic: Whether the logarithm is mapped.
        ticks: Numbers with a label.
    """

    low: float
    high: float
    is_logarithmic: bool
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Axis:
        """Return an axis that includes all numbers; it is logarithmic if these are positive and differ by a large factor."""
        low, high = min(numbers), max(numbers)
        if low > 0 and high / low >= _WIDE:
            exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            marks = sorted(factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5))
            first = max(mark for mark in marks if mark <= low * 1.0001)
            last = min((mark for mark in marks if mark >= high * 0.9999), default=high)
            return cls(first, last, True, tuple(mark for mark in marks if first <= mark <= last))
        ticks = nice_ticks(low, high)
        return cls(ticks[0], ticks[-1], False, tuple(ticks))

    def place(self, number: float) -> float:
        """Return the place of a number in [0, 1]."""
        if self.is_logarithmic:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Dot:
    """A point in a panel, in units from the upper left.

    Attributes:
        x, y: Place.
        low, high: Places of its interval's bounds; equal to ``y`` without an interval.
        is_optimal: Whether it is on the Pareto front.
        setting: Its setting in words.
        value: Its value as text.
    """

    x: float
    y: float
    low: float
    high: float
    is_optimal: bool
    setting: str
    value: str


@dataclass(frozen=True)
class Panel:
    """A chart of the metric against one cost.

    Attributes:
        metric: Title of the y axis.
        cost: Title of the x axis.
        better: ``lower`` or ``higher``.
        dots: All points with a known cost.
        front: Places of the Pareto front's points, from the cheapest to the best.
        x_ticks, y_ticks: Places and labels.
    """

    metric: str
    cost: str
    better: str
    dots: list[Dot]
    front: list[tuple[float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def panels(surface: Surface) -> list[Panel]:
    """Return the charts of a surface, one for each known cost."""
    return [panel for cost in COSTS if (panel := _panel(surface, cost)) is not None]


def _panel(surface: Surface, cost: str) -> Panel | None:
    known = [(price, point) for point in surface.points if (price := point.cost(cost)) is not None]
    if not known:
        return None
    bounds = {id(point): point.intervals.get(surface.metric, (surface.value(point),) * 2) for _, point in known}
    x_axis = Axis.of([price for price, _ in known])
    y_axis = Axis.of([number for _, point in known for number in (*bounds[id(point)], surface.value(point))])

    def x(number: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x_axis.place(number), 1)

    def y(number: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y_axis.place(number), 1)

    front = surface.front(cost)
    dots = [
        Dot(x(price), y(surface.value(point)), y(bounds[id(point)][0]), y(bounds[id(point)][1]), point in front,
            described(point.setting), f"{surface.value(point):.5g}")
        for price, point in known
    ]  # fmt: skip
    places = {id(point): (dot.x, dot.y) for (_, point), dot in zip(known, dots, strict=True)}
    return Panel(
        surface.metric, COSTS[cost], "higher" if surface.higher_is_better else "lower", dots,
        [places[id(point)] for point in front],
        [(x(tick), f"{tick:.4g}") for tick in _apart(x_axis)], [(y(tick), f"{tick:.4g}") for tick in y_axis.ticks],
    )  # fmt: skip


def _apart(axis: Axis) -> list[float]:
    """Return the ticks of a horizontal axis whose labels do not overlap."""
    shown: list[float] = []
    for tick in axis.ticks:
        if not shown or axis.place(tick) - axis.place(shown[-1]) >= 0.07:
            shown.append(tick)
    return shown


def write_picture(surface: Surface, path: Path, stamp: dict[str, str]) -> None:
    """Write the panels side by side as a PNG.

    Args:
        surface: Surface with one or more points.
        path: File to write.
        stamp: Text chunks of the PNG, by key.
    """
    found = panels(surface)
    factor = _SCALE * _FINE
    picture = Image.new("RGB", (WIDTH * factor * len(found), HEIGHT * factor), "white")
    for number, panel in enumerate(found):
        tile = Image.new("RGB", (WIDTH * factor, HEIGHT * factor), "white")
        _draw(panel, ImageDraw.Draw(tile), factor)
        picture.paste(tile, (number * WIDTH * factor, 0))
    info = PngInfo()
    for key, text in stamp.items():
        info.add_text(key, text)
    picture.resize((picture.width // _FINE, picture.height // _FINE), Image.Resampling.LANCZOS).save(path, "PNG", pnginfo=info)


def _draw(panel: Panel, draw: ImageDraw.ImageDraw, factor: int) -> None:
    font = ImageFont.load_default(11 * factor)
    end = HEIGHT - BOTTOM

    def line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1.0) -> None:
        draw.line([x0 * factor, y0 * factor, x1 * factor, y1 * factor], fill=colour, width=round(width * factor))

    def text(x: float, y: float, words: str, anchor: str, colour: str = _INK) -> None:
        draw.text((x * factor, y * factor), words, fill=colour, font=font, anchor=anchor)

    for y, label in panel.y_ticks:
        line(LEFT, y, WIDTH - RIGHT, y, _GRID)
        text(LEFT - 6, y, label, "rm")
    for x, label in panel.x_ticks:
        line(x, end, x, end + 4, _INK)
        text(x, end + 7, label, "mt")
    line(LEFT, end, WIDTH - RIGHT, end, _INK)
    text(LEFT, 8, f"{panel.metric} ({panel.better} is better)", "lt")
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, panel.cost, "mb")
    for (x0, y0), (x1, y1) in itertools.pairwise(panel.front):
        line(x0, y0, x1, y1, _FRONT, 1.5)
    for dot in sorted(panel.dots, key=lambda each: each.is_optimal):
        colour = _FRONT if dot.is_optimal else _GREY
        line(dot.x, dot.low, dot.x, dot.high, colour)
        radius = 3.5
        box = [(dot.x - radius) * factor, (dot.y - radius) * factor, (dot.x + radius) * factor, (dot.y + radius) * factor]
        draw.ellipse(box, fill=colour)
    labelled: list[Dot] = []
    for dot in (each for each in panel.dots if each.is_optimal):
        if any(abs(dot.x - x.x) < _LABEL_WIDTH and abs(dot.y - x.y) < _LABEL_HEIGHT for x in labelled):
            continue
        labelled.append(dot)
        is_right = dot.x > WIDTH / 2
        text(dot.x + (-6 if is_right else 6), dot.y - 4, dot.setting, "rb" if is_right else "lb", _FRONT)
