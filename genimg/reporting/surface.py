"""The operating surface of a trained model: quality and cost of its images over sampling options and weights."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genimg.reporting.runs import GREATEST
from genimg.utils.csv_cells import neutral
from genimg.utils.json_text import parse_json
from genimg.utils.mappings import flatten
from genimg.utils.regular_files import read_regular
from genimg.utils.type_hints import as_written, fits

FILE = "surface.json"
"""Name of a run's surface in its directory."""

COSTS = {"num_evaluations": "network evaluations per image", "seconds_per_image": "seconds per image"}
"""Costs of a point, by attribute, with their titles."""

_MAX_BYTES = 2**28
_MADE_BY = "genimg-eval"
_SCALAR = str | int | float | bool | None


@dataclass(frozen=True)
class Point:
    """One operating point of a model.

    Attributes:
        setting: Values of the axes.
        options: All sampling options, with the name of the weights as ``weights``; they identify the point.
        metrics: Values by full metric name.
        intervals: 95 % intervals (low, high) by full metric name, for metrics that have one.
        num_evaluations: Number of times that the network is evaluated for an image; None if the model does not state it.
        seconds_per_image: Measured time to generate an image.
        command: Command that measures the point again.
        provenance: Everything that the values depend on.
    """

    setting: dict[str, Any]
    options: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    num_evaluations: int | None
    seconds_per_image: float
    command: str
    provenance: dict[str, Any]

    def cost(self, name: str) -> float | None:
        """Return one of ``COSTS``; None if it is unknown."""
        found: float | None = getattr(self, name)
        return found


@dataclass(frozen=True)
class Surface:
    """Operating points of one checkpoint, measured in the same way.

    Attributes:
        metric: Metric that the points are compared by.
        higher_is_better: Whether higher values of it are better.
        protocol: Everything that the values depend on except the options and weights, as primitives.
        points: The points, in the order of measurement.
    """

    metric: str
    higher_is_better: bool
    protocol: dict[str, Any]
    points: tuple[Point, ...] = ()

    @property
    def axes(self) -> list[str]:
        """Names of the axes of all points."""
        return list(dict.fromkeys(name for point in self.points for name in point.setting))

    def value(self, point: Point) -> float:
        """Return a point's value of ``metric``."""
        return point.metrics[self.metric]

    def front(self, cost: str) -> list[Point]:
        """Return the Pareto-optimal points, from the cheapest to the best: no other point is as cheap and as good.

        Args:
            cost: One of ``COSTS``. Points with unknown cost are omitted.
        """
        sign = -1.0 if self.higher_is_better else 1.0
        known = [(price, sign * self.value(point), point) for point in self.points if (price := point.cost(cost)) is not None]
        front: list[Point] = []
        best = float("inf")
        for _, value, point in sorted(known, key=lambda each: each[:2]):
            if value < best:
                front.append(point)
                best = value
        return front

    def optimal(self, point: Point) -> str:
        """Return the costs for which a point is Pareto-optimal, in words; empty if there is none."""
        names = {"num_evaluations": "evaluations", "seconds_per_image": "seconds"}
        return ", ".join(word for cost, word in names.items() if point in self.front(cost))

    def with_point(self, point: Point) -> Surface:
        """Return the surface with one more point."""
        return Surface(self.metric, self.higher_is_better, self.protocol, (*self.points, point))

    def point_with(self, options: Mapping[str, Any]) -> Point | None:
        """Return the point with these options and weights, if it has been measured."""
        return next((point for point in self.points if point.options == options), None)

    def record(self) -> dict[str, Any]:
        """Return the content of the file as primitives."""
        return {
            "made_by": _MADE_BY,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "protocol": self.protocol,
            "points": [
                {**vars(point), "intervals": {name: list(each) for name, each in point.intervals.items()},
                 "optimal": self.optimal(point)}
                for point in self.points
            ],
        }  # fmt: skip


def read_surface(path: Path, *, below: Path) -> Surface | None:
    """Read a surface from a file of unknown origin.

    Args:
        path: The file.
        below: Directory that the file must lie in, without links.

    Returns:
        The surface; None if the file is not a surface.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it is a link or not a regular file.
    """
    content = read_regular(path, below=below, most=_MAX_BYTES)
    try:
        return _parsed(parse_json(content))
    except ValueError:  # not JSON
        return None


def _parsed(found: Any) -> Surface | None:
    hints: dict[str, Any] = {
        "metric": str,
        "higher_is_better": bool,
        "protocol": dict[str, Any],
        "points": list[dict[str, Any]],
    }
    if not isinstance(found, dict) or found.get("made_by") != _MADE_BY:
        return None
    if not all(fits(found.get(key), hint) for key, hint in hints.items()):
        return None
    points = [_point(each, found["metric"]) for each in found["points"]]
    if any(point is None for point in points):
        return None
    return Surface(found["metric"], found["higher_is_better"], found["protocol"], tuple(filter(None, points)))


def _point(found: Mapping[str, Any], metric: str) -> Point | None:
    hints: dict[str, Any] = {
        "setting": dict[str, Any], "options": dict[str, Any], "metrics": dict[str, float], "intervals": dict[str, list[float]],
        "num_evaluations": int | None, "seconds_per_image": float, "command": str, "provenance": dict[str, Any],
    }  # fmt: skip
    if not all(fits(found.get(key), hint) for key, hint in hints.items()) or metric not in found["metrics"]:
        return None
    scalars = (*found["setting"].values(), *found["options"].values())
    if not all(fits(each, _SCALAR) for each in scalars) or any(len(each) != 2 for each in found["intervals"].values()):
        return None
    numbers = [*found["metrics"].values(), *(bound for each in found["intervals"].values() for bound in each)]
    costs = [found["seconds_per_image"], *([] if found["num_evaluations"] is None else [found["num_evaluations"]])]
    if not all(abs(number) < GREATEST for number in numbers) or not all(0 < cost < GREATEST for cost in costs):
        return None
    values: dict[str, Any] = {key: found[key] for key in hints}
    values["intervals"] = {name: (float(low), float(high)) for name, (low, high) in found["intervals"].items()}
    return Point(**values)


def described(setting: Mapping[str, Any]) -> str:
    """Return a setting in words, such as ``steps=5, guidance=1.5``."""
    return ", ".join(f"{name}={as_written(value)}" for name, value in setting.items())


def table(surface: Surface) -> str:
    """Return the points as a plain table: the axes first, and last the costs for which a point is Pareto-optimal."""
    rows = [[*surface.axes, surface.metric, "95 % interval", "evaluations", "s/image", "Pareto-optimal in"]]
    for point in surface.points:
        bounds = point.intervals.get(surface.metric)
        rows.append([
            *(as_written(point.options.get(axis)) for axis in surface.axes),
            f"{surface.value(point):.5g}",
            "" if bounds is None else f"{bounds[0]:.5g} to {bounds[1]:.5g}",
            "" if point.num_evaluations is None else str(point.num_evaluations),
            f"{point.seconds_per_image:.3g}",
            surface.optimal(point),
        ])  # fmt: skip
    columns = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in columns}
    return "\n".join("  ".join(row[place].ljust(widths[place]) for place in columns).rstrip() for row in rows)


def as_csv(surface: Surface) -> str:
    """Return the points as CSV; bounds of the intervals are ``NAME.low`` and ``NAME.high``."""
    rows = []
    for point in surface.points:
        bounds = {f"{name}.{side}": each[i] for name, each in point.intervals.items() for i, side in enumerate(("low", "high"))}
        rows.append({
            **{axis: as_written(point.options.get(axis)) for axis in surface.axes},
            "num_evaluations": "" if point.num_evaluations is None else point.num_evaluations,
            "seconds_per_image": point.seconds_per_image,
            **point.metrics, **bounds,
            "pareto_optimal_in": surface.optimal(point),
            "command": point.command,
        })  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row)
    order = [*(name for name in names if name not in ("pareto_optimal_in", "command")), "pareto_optimal_in", "command"]
    target = io.StringIO()
    writer = csv.writer(target)
    writer.writerow([neutral(name) for name in order])
    writer.writerows([[neutral(str(row.get(name, ""))) for name in order] for row in rows])
    return target.getvalue()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterable[str]:
    """Yield the dotted keys in which two protocols differ."""
    first, second = flatten(dict(one)), flatten(dict(other))
    return (key for key in sorted({*first, *second}) if first.get(key) != second.get(key))
