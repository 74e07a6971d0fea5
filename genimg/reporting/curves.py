"""Select the charts over images seen, and the points of each run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from genimg.reporting.runs import Run
from genimg.reporting.scales import thinned

_MOST_POINTS = 40_000  # points of all runs in one chart
_GROUPS = (
    ("Evaluation", ("evaluation/",)),
    ("Losses", ("loss/",)),
    ("Learning rates", ("lr/",)),
    ("Throughput", ("time/",)),
)
_OTHER = "Inside the training"


@dataclass(frozen=True)
class Series:
    """One run's curve.

    Attributes:
        run: Number of the run.
        x: Numbers of images seen.
        y: Values.
        low, high: Bounds of the values, None where a value has none; empty if no value has bounds.
        best: Index of the run's best evaluation; None if there is none.
    """

    run: int
    x: list[int]
    y: list[float]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    best: int | None = None

    @property
    def extent(self) -> list[float]:
        """All numbers that the y axis must include."""
        return [*self.y, *(bound for bound in (*self.low, *self.high) if bound is not None)]


@dataclass(frozen=True)
class Chart:
    """One quantity of all runs.

    Attributes:
        name: Name of the quantity in the records.
        group: Section of the page.
        series: One curve per run.
        has_points: Whether single points are marked, as for evaluations.
        better: ``lower is better`` or ``higher is better`` for the primary metric; else empty.
        thinned: Whether points were omitted.
    """

    name: str
    group: str
    series: list[Series]
    has_points: bool = False
    better: str = ""
    thinned: bool = False

    def as_data(self) -> dict[str, Any]:
        """Return the chart as JSON data for the page's script."""
        return {
            "name": self.name,
            "points": self.has_points,
            "series": [
                {"run": each.run, "x": each.x, "y": _short(each.y)}
                | ({"low": _short(each.low), "high": _short(each.high)} if each.low else {})
                | ({} if each.best is None else {"best": each.best})
                for each in self.series
            ],
        }


def charts(runs: Sequence[Run], primary: str | None, higher_is_better: bool | None) -> dict[str, list[Chart]]:
    """Return all charts by group, the primary metric first, without empty groups."""
    found: dict[str, list[Chart]] = {title: [] for title in (*(title for title, _ in _GROUPS), _OTHER)}
    names = dict.fromkeys(name for run in runs for each in run.evaluations for name in each.values)
    for name in sorted(names, key=lambda each: each != primary):
        better = "" if name != primary or higher_is_better is None else _in_words(higher_is_better)
        series = [curve for number, run in enumerate(runs) if (curve := _of_evaluations(run, number, name))]
        found["Evaluation"].append(Chart(name, "Evaluation", series, has_points=True, better=better))
    most = max(60, min(800, _MOST_POINTS // max(len(runs), 1)))
    for name in dict.fromkeys(name for run in runs for record in run.records for name in record):
        group = next((title for title, prefixes in _GROUPS if name.startswith(prefixes)), _OTHER)
        if "/" not in name or name.startswith(("evaluation/", "final/")):
            continue
        points = [(number, _points(run, name)) for number, run in enumerate(runs)]
        series = [Series(number, *_thin(x, y, most)) for number, (x, y) in points if x]
        if series:
            is_thin = any(len(x) > most for _, (x, _) in points)
            found[group].append(Chart(name, group, series, thinned=is_thin))
    found["Learning rates"] = _merged(found["Learning rates"])
    return {title: group for title, group in found.items() if group}


def _in_words(higher_is_better: bool) -> str:
    return "higher is better" if higher_is_better else "lower is better"


def _of_evaluations(run: Run, number: int, name: str) -> Series | None:
    measured = [each for each in run.evaluations if name in each.values]
    if not measured:
        return None
    values = [each.values[name] for each in measured]
    has_bounds = any(value.low is not None for value in values)
    best = run.best
    return Series(
        number,
        [each.images for each in measured],
        [value.number for value in values],
        [value.low for value in values] if has_bounds else [],
        [value.high for value in values] if has_bounds else [],
        next((place for place, each in enumerate(measured) if best is not None and each.images == best.images), None),
    )


def _points(run: Run, name: str) -> tuple[list[int], list[float]]:
    pairs = [
        (record["images"], float(record[name]))
        for record in run.records
        if isinstance(record.get(name), int | float) and math.isfinite(record[name])
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _thin(x: list[int], y: list[float], most: int) -> tuple[list[int], list[float]]:
    """Keep the lowest and highest point of each of evenly spaced parts of a curve, so no peak is lost."""
    if len(x) <= most:
        return x, y
    edges = thinned(len(x), most // 2)
    kept = {0, len(x) - 1}
    for first, last in pairwise(edges):
        part = range(first, last + 1)
        kept |= {min(part, key=y.__getitem__), max(part, key=y.__getitem__)}
    places = sorted(kept)
    return [x[place] for place in places], [y[place] for place in places]


def _merged(found: Sequence[Chart]) -> list[Chart]:
    """Merge charts with equal curves under both names, because networks often share their learning rate."""
    merged: list[Chart] = []
    for chart in found:
        twin = next((place for place, each in enumerate(merged) if each.series == chart.series), None)
        if twin is None:
            merged.append(chart)
        else:
            merged[twin] = Chart(f"{merged[twin].name}, {chart.name}", chart.group, chart.series, thinned=chart.thinned)
    return merged


def _short(numbers: Iterable[float | None]) -> list[float | None]:
    """Round to six digits, more than a chart shows."""
    return [None if number is None else float(f"{number:.6g}") for number in numbers]
