"""Parallel coordinates: one line per job, across one axis per setting to its value of the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from genimg.reporting.markup import Raw, escape, tag
from genimg.reporting.ranking import Ranking, Standing
from genimg.reporting.scales import log_ticks, nice_ticks, number_in_words, spans_a_decade
from genimg.reporting.settings import Setting, in_words, is_number

_HEIGHT, _TOP, _BOTTOM = 350, 46, 22
_WIDEST, _LEAST_GAP, _MOST_GAP = 1150, 170, 330
_MOST_TICKS = 8
_MOST_CHARACTERS = 20


def parallel_coordinates(ranking: Ranking, swept: Mapping[str, Sequence[Setting]]) -> Raw | None:
    """Draw the jobs that have a value; return None if fewer than two have one, or their settings are the same.

    Numeric axes are logarithmic if their values span a decade. On other axes, settings are evenly spaced in the order of
    their mean metric. The better values of the metric are on top.
    """
    standings = [each for each in ranking.standings if each.value is not None]
    keys = [key for key, settings in swept.items() if len({repr(settings[each.number]) for each in standings}) > 1]
    if len(standings) < 2 or not keys or ranking.metric is None:
        return None
    values = [each.value.number for each in standings if each.value is not None]
    places: list[list[float]] = []
    axes: list[tuple[str, list[tuple[str, float]]]] = []
    for key in keys:
        settings = [swept[key][each.number] for each in standings]
        axis, ticks = _axis(settings, values, higher=bool(ranking.higher_is_better))
        places.append([axis(setting) for setting in settings])
        axes.append((key, ticks))
    of_metric, ticks = _metric_axis(values, higher=bool(ranking.higher_is_better))
    places.append([of_metric(value) for value in values])
    axes.append((ranking.metric, ticks))
    left, right = 26 + _room(axes[0]), 26 + _room(axes[-1])
    gap = max(_LEAST_GAP, min(_MOST_GAP, (_WIDEST - left - right) / len(keys)))
    width = round(left + right + gap * len(keys))
    middles = [left + gap * number for number in range(len(axes))]
    quality = _qualities(values, higher=bool(ranking.higher_is_better))
    lines = [
        _line(
            each,
            [(x, column[row]) for x, column in zip(middles, places, strict=True)],
            quality[row],
            keys,
            swept,
            ranking.metric,
        )
        for row, each in reversed(list(enumerate(standings)))  # draws the best line last, on top
    ]
    label = f"{len(standings)} jobs across {', '.join(keys)}, ending at {ranking.metric}"
    drawn = [_drawn_axis(x, *axis, is_metric=x == middles[-1]) for x, axis in zip(middles, axes, strict=True)]
    return tag(
        "svg", tag("g", *lines, class_="lines"), *drawn, class_="parallel", viewBox=f"0 0 {width} {_HEIGHT}", role="group",
        aria_label=label, style=f"min-width:{round(0.62 * width)}px;max-width:{width}px",
    )  # fmt: skip


def _room(axis: tuple[str, list[tuple[str, float]]]) -> float:
    """Return the margin in pixels that an outer axis needs for its ticks and half of its title."""
    title, ticks = axis
    return max(max(7.2 * len(_shortened(name)) for name, _ in ticks), 3.9 * len(_shortened(title, 26)))


def _height(share: float) -> float:
    """Return the y coordinate of a position on an axis, from 0 at its lower to 1 at its upper end."""
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _axis(
    settings: Sequence[Setting], values: Sequence[float], *, higher: bool
) -> tuple[Callable[[Setting], float], list[tuple[str, float]]]:
    if all(is_number(setting) for setting in settings):
        numbers = [float(setting) for setting in settings]  # type: ignore[arg-type]
        scale, ticks = _scale(numbers, fit=True)
        return lambda setting: _height(scale(float(setting))), [(name, _height(share)) for name, share in ticks]
    names = sorted({in_words(setting) for setting in settings})
    means = {
        name: fmean(value for setting, value in zip(settings, values, strict=True) if in_words(setting) == name)
        for name in names
    }
    order = sorted(names, key=lambda name: means[name], reverse=not higher)
    share_of = {name: (place + 0.5) / len(order) for place, name in enumerate(order)}
    return lambda setting: _height(share_of[in_words(setting)]), [(name, _height(share_of[name])) for name in order]


def _metric_axis(values: Sequence[float], *, higher: bool) -> tuple[Callable[[float], float], list[tuple[str, float]]]:
    scale, ticks = _scale(values, fit=False)
    turned: Callable[[float], float] = (lambda share: share) if higher else (lambda share: 1 - share)
    return lambda value: _height(turned(scale(value))), [(name, _height(turned(share))) for name, share in ticks]


def _scale(numbers: Sequence[float], *, fit: bool) -> tuple[Callable[[float], float], list[tuple[str, float]]]:
    """Return a function from numbers to positions on an axis, and ticks; ``fit`` puts ticks at the numbers if these are few."""
    is_log = spans_a_decade(numbers)
    low, high = min(numbers), max(numbers)
    distinct = sorted(set(numbers))
    if fit and len(distinct) <= _MOST_TICKS:
        ticks, (low, high) = distinct, _padded(low, high, is_log)
    else:
        ticks = log_ticks(low, high) if is_log else nice_ticks(low, high)
        low, high = min(low, ticks[0]), max(high, ticks[-1])

    def share(number: float) -> float:
        if is_log:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    return share, [(number_in_words(tick), share(tick)) for tick in ticks]


def _padded(low: float, high: float, is_log: bool) -> tuple[float, float]:
    if is_log:
        more = (high / low) ** 0.12
        return low / more, high * more
    more = 0.12 * (high - low) or 1.0  # 1.0 if equal numbers are written differently
    return low - more, high + more


def _qualities(values: Sequence[float], *, higher: bool) -> list[int]:
    """Return the quality of each value from 0, worst, to 8, best, on a logarithmic scale if the values span a decade."""
    turned = [math.log(value) for value in values] if spans_a_decade(values) else list(values)
    low, high = min(turned), max(turned)
    shares = [(value - low) / (high - low) if high > low else 1.0 for value in turned]
    return [round(8 * (share if higher else 1 - share)) for share in shares]


def _drawn_axis(x: float, title: str, ticks: Sequence[tuple[str, float]], *, is_metric: bool = False) -> Raw:
    side = 8 if is_metric else -8
    texts = (
        tag("text", _shortened(name), class_="tick after" if is_metric else "tick y", x=x + side, y=f"{place + 4:.1f}")
        for name, place in ticks
    )
    marks = (tag("line", class_="axis", x1=x - 3, x2=x + 3, y1=f"{p:.1f}", y2=f"{p:.1f}") for _, p in ticks)
    line = tag("line", class_="axis", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM)
    return tag("g", line, *marks, tag("text", _shortened(title, 26), class_="title", x=x, y=_TOP - 22), *texts)


def _line(
    standing: Standing, points: Sequence[tuple[float, float]], quality: int, keys: Sequence[str],
    swept: Mapping[str, Sequence[Setting]],
    metric: str,
) -> Raw:  # fmt: skip
    assert standing.value is not None
    settings = ", ".join(f"{key} {in_words(swept[key][standing.number])}" for key in keys)
    text = f"{standing.run.label}: {settings}; {metric} {number_in_words(standing.value.number, 5)}"
    path = f"M{points[0][0]:.0f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (x + to_x) / 2
        path += f"C{middle:.0f} {y:.1f} {middle:.0f} {to_y:.1f} {to_x:.0f} {to_y:.1f}"
    return tag(
        "g", tag("title", escape(text)), tag("path", class_="wide", d=path), tag("path", class_="thread", d=path),
        class_=f"q{quality}", tabindex="0", role="img", aria_label=text, data_text=text,
    )  # fmt: skip


def _shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"
