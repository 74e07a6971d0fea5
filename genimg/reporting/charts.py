"""Charts as SVG. Without JavaScript, the page shows these; its script redraws them at the available width."""

from __future__ import annotations

from collections.abc import Callable

from genimg.reporting.curves import Chart, Series
from genimg.reporting.markup import Raw, escape, join, tag
from genimg.reporting.scales import images_in_words, nice_ticks, number_in_words

WIDTH, HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 34
_COLOURS, _DASHES = 8, 6

Place = Callable[[float], float]


def look(number: int) -> str:
    """Return the CSS classes of a run's colour and dashes; pairs repeat after 16 runs."""
    return f"c{number % _COLOURS} d{(number + number // _COLOURS) % _DASHES}"


def chart_svg(chart: Chart, labels: list[str]) -> Raw:
    """Return a chart of fixed size, with a text description for screen readers.

    Args:
        chart: The chart.
        labels: Labels of all runs.
    """
    extent = [number for each in chart.series for number in each.extent]
    ticks = nice_ticks(min(extent), max(extent))
    last = max(x for each in chart.series for x in each.x)
    x_ticks = [tick for tick in nice_ticks(0, last or 1, 6) if tick <= (last or 1) * 1.0001]

    def x_of(images: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * images / (last or 1)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    grid = [
        *(tag("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_r(y_of(t)), y2=_r(y_of(t))) for t in ticks),
        *(tag("text", number_in_words(t), class_="tick y", x=_LEFT - 8, y=_r(y_of(t) + 4)) for t in ticks),
        *(tag("text", images_in_words(t), class_="tick x", x=_r(x_of(t)), y=HEIGHT - _BOTTOM + 18) for t in x_ticks),
        tag("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=HEIGHT - _BOTTOM, y2=HEIGHT - _BOTTOM),
    ]
    lines = (_series(each, chart.has_points, x_of, y_of) for each in chart.series)
    return tag(
        "svg", *grid, *lines, class_="plot", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=described(chart, labels)
    )


def described(chart: Chart, labels: list[str]) -> str:
    """Describe a chart in words: the first and last value of each curve."""
    shown = chart.series[:8]
    parts = [f"{labels[each.run]} from {number_in_words(each.y[0])} to {number_in_words(each.y[-1])}" for each in shown]
    more = f", and {len(chart.series) - len(shown)} more runs" if len(chart.series) > len(shown) else ""
    return f"{chart.name} over images seen: {'; '.join(parts)}{more}"


def _series(series: Series, has_points: bool, x_of: Place, y_of: Place) -> Raw:
    parts: list[Raw] = []
    bounds = [
        (x_of(x), y_of(low), y_of(high))
        for x, low, high in zip(series.x, series.low, series.high, strict=False)
        if low is not None and high is not None
    ]
    if len(bounds) > 1:
        upper = " ".join(f"{_r(x)},{_r(high)}" for x, _, high in bounds)
        lower = " ".join(f"{_r(x)},{_r(low)}" for x, low, _ in reversed(bounds))
        parts.append(tag("polygon", class_="band", points=f"{upper} {lower}"))
    elif bounds:
        x, low, high = bounds[0]
        parts.append(tag("line", class_="bar", x1=_r(x), x2=_r(x), y1=_r(low), y2=_r(high)))
    points = [(x_of(x), y_of(y)) for x, y in zip(series.x, series.y, strict=True)]
    parts.append(tag("polyline", class_="line", points=" ".join(f"{_r(x)},{_r(y)}" for x, y in points)))
    if has_points or len(points) == 1:
        parts += [tag("circle", class_="dot", cx=_r(x), cy=_r(y), r="2.6") for x, y in points]
    if series.best is not None:
        x, y = points[series.best]
        parts.append(tag("circle", class_="best", cx=_r(x), cy=_r(y), r="6.5"))
    return tag("g", *parts, class_=f"run {look(series.run)}")


def swatch(number: int) -> Raw:
    """Return a short sample of a run's line."""
    line = tag("line", class_="line", x1="1", x2="25", y1="5", y2="5")
    return tag("svg", line, class_=f"swatch {look(number)}", viewBox="0 0 26 10", width="26", height="10", aria_hidden="true")


def named(number: int, label: str) -> Raw:
    """Return a run's name with a sample of its line."""
    return tag("span", swatch(number), join(" ", escape(label)), class_="named")


def _r(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
