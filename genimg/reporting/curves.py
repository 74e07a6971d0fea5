"""Select the charts over images seen, the points of each run, its colour and dashes, and the ticks of the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from genimg.reporting.runs import Run, finite_numbers
from genimg.reporting.text import thinned

_MAX_POINTS = 40_000  # maximum number of points of all runs in one chart
_GROUPS = {"evaluation": "Evaluation", "loss": "Losses", "lr": "Learning rates", "time": "Throughput"}
_OTHER = "Other training values"
_COLOURS, _DASHES = 8, 6
NUM_LOOKS = _COLOURS * _DASHES
_CONSTANT = 1e-6  # numbers with at most this relative spread count as equal; float32 has seven digits
_ZERO = 1e-300  # numbers up to this size count as zero


@dataclass(frozen=True)
class Series:
    """One run's curve.

    Attributes:
        run: Number of the run.
        x: Numbers of images seen.
        y: Values.
        bounds: The 95 % intervals of the values that have one: images seen, lower and upper bound.
        best: Index of the run's best evaluation; None if there is none.
    """

    run: int
    x: list[int]
    y: list[float]
    bounds: list[tuple[int, float, float]] = field(default_factory=list)
    best: int | None = None


@dataclass
class Chart:
    """One quantity of all runs.

    Attributes:
        name: Name of the quantity in the records.
        series: One curve per run.
        has_points: Whether individual points are marked, as for evaluations.
        thinned: Whether points were omitted.
        expected: Published points up to the last evaluation: images seen, value and tolerance.
    """

    name: str
    series: list[Series]
    has_points: bool = False
    thinned: bool = False
    expected: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest number that the y axis must include."""
        numbers = [y for each in self.series for y in each.y]
        numbers += [bound for each in self.series for _, *bounds in each.bounds for bound in bounds]
        numbers += [value for _, value, _ in self.expected]
        return min(numbers), max(numbers)


def charts_of(runs: Sequence[Run], primary: str | None) -> dict[str, list[Chart]]:
    """Return all charts by group, the primary metric first, without empty groups."""
    found: dict[str, list[Chart]] = {title: [] for title in (*_GROUPS.values(), _OTHER)}
    names = dict.fromkeys(name for run in runs for each in run.evaluations for name in each.values)
    for name in sorted(names, key=lambda each: each != primary):
        series = [curve for number, run in enumerate(runs) if (curve := _of_evaluations(run, number, name))]
        last = max(curve.x[-1] for curve in series)
        published = {(each.images, _short(each.value), each.tolerance): None for run in runs for each in run.expected
                     if each.metric == name and each.images <= last}  # fmt: skip
        found["Evaluation"].append(Chart(name, series, has_points=True, expected=list(published)))
    most = max(60, min(800, _MAX_POINTS // max(len(runs), 1)))
    points = [_points(run) for run in runs]
    for name in dict.fromkeys(name for of_run in points for name in of_run):
        lines = {number: of_run[name] for number, of_run in enumerate(points) if name in of_run}
        series = [Series(number, *_thin(x, y, most)) for number, (x, y) in lines.items()]
        chart = Chart(name, series, thinned=any(len(x) > most for x, _ in lines.values()))
        found[_GROUPS.get(name.partition("/")[0], _OTHER)].append(chart)
    found["Learning rates"] = _merged(found["Learning rates"])
    return {title: group for title, group in found.items() if group}


def _of_evaluations(run: Run, number: int, name: str) -> Series | None:
    measured = [(each.images, each.values[name]) for each in run.evaluations if name in each.values]
    if not measured:
        return None
    x, y = [images for images, _ in measured], [_short(value.number) for _, value in measured]
    bounds = [(images, _short(v.low), _short(v.high)) for images, v in measured if v.low is not None and v.high is not None]
    best = x.index(run.best.images) if run.best and run.best.images in x else None
    return Series(number, x, y, bounds, best)


def _points(run: Run) -> dict[str, tuple[list[int], list[float]]]:
    """Return the curves that a run recorded during training, by name, without those of evaluations."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for record in run.records:
        for name, value in finite_numbers(record).items():
            if "/" in name and not name.startswith(("evaluation/", "final/")):
                x, y = found.setdefault(name, ([], []))
                x.append(record["images"])
                y.append(_short(value))
    return found


def _thin(x: list[int], y: list[float], most: int) -> tuple[list[int], list[float]]:
    """Split a curve into evenly spaced parts and keep the lowest and highest point of each, so no peak is lost."""
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for first, last in pairwise(thinned(len(x), most // 2)):
        part = range(first, last + 1)
        kept |= {min(part, key=y.__getitem__), max(part, key=y.__getitem__)}
    places = sorted(kept)
    return [x[place] for place in places], [y[place] for place in places]


def _merged(found: Sequence[Chart]) -> list[Chart]:
    """Merge charts with equal curves under both names, because networks often share their learning rate."""
    merged: list[Chart] = []
    for chart in found:
        if twin := next((each for each in merged if each.series == chart.series), None):
            twin.name += f", {chart.name}"
        else:
            merged.append(chart)
    return merged


def _short(number: float) -> float:
    """Round to six digits, which is more than a chart shows."""
    return float(f"{number:.6g}")


def looks(order: Sequence[int]) -> list[str]:
    """Return the CSS classes of each run's colour and dashes; runs after the first ``NUM_LOOKS`` of ``order`` are grey."""
    found = [""] * len(order)
    for place, run in enumerate(order):
        shift = place % _COLOURS + place // _COLOURS  # neighbours differ in both colour and dashes
        found[run] = f"c{place % _COLOURS} d{shift % _DASHES}" if place < NUM_LOOKS else "rest"
    return found


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers, from the first at or below ``low`` to the first at or above ``high``.

    If ``low`` equals ``high``, the axis goes from zero to twice that value, or from 0 to 1 if it is zero. The page's script
    has the same function.
    """
    largest = max(abs(low), abs(high))
    if high - low <= max(_CONSTANT * largest, _ZERO):
        low, high = (min(0.0, 2 * low), max(0.0, 2 * high)) if largest > _ZERO else (0.0, 1.0)
    rough = (high - low) / max(count - 1, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_digits(ticks: Sequence[float]) -> int:
    """Return the number of significant digits, at least 4, with which the labels of neighbouring ticks differ."""
    return max(4, 2 + math.ceil(math.log10(max(map(abs, ticks)) / (ticks[1] - ticks[0]))))
