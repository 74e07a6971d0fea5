"""The Pareto fronts of a surface, its file, and its picture. Takes a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genimg.reporting.surface import Point, Surface, as_csv, differing, read_surface, table
from genimg.reporting.surface_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, panels, write_picture
from genimg.utils.regular_files import UnsafeFileError


def point(value: float, evaluations: int | None = 10, seconds: float = 0.5, **setting: Any) -> Point:
    return Point(setting, {**setting, "weights": "ema"}, {"fd": value}, {"fd": (value - 1, value + 1)}, evaluations, seconds,
                 "genimg-eval", {})  # fmt: skip


def surface(*points: Point, higher: bool = False) -> Surface:
    return Surface("fd", higher, {"seed": 0}, points)


@pytest.mark.parametrize("higher", [False, True])
def test_the_front_has_exactly_the_points_that_no_other_dominates(higher: bool) -> None:
    rng = random.Random(0)
    for _ in range(20):
        points = [point(rng.randint(1, 9), rng.randint(1, 9), steps=i) for i in range(12)]
        found = surface(*points, higher=higher)
        sign = -1 if higher else 1
        numbers = [(each.num_evaluations, sign * each.metrics["fd"]) for each in points]
        front = {(each.num_evaluations, sign * each.metrics["fd"]) for each in found.front("num_evaluations")}
        expected = {
            (cost, value) for cost, value in numbers
            if not any(c <= cost and v <= value and (c, v) != (cost, value) for c, v in numbers)
        }  # fmt: skip
        assert front == expected
        values = [found.value(each) for each in found.front("num_evaluations")]
        assert values == sorted(values, reverse=not higher)


def test_a_point_without_a_cost_is_on_no_front_of_that_cost() -> None:
    found = surface(point(3.0, None, steps=1), point(2.0, 5, steps=2))
    assert [each.setting["steps"] for each in found.front("num_evaluations")] == [2]
    assert found.optimal(found.points[0]) == ""
    assert found.optimal(found.points[1]) == "evaluations, seconds"


def test_a_file_holds_all_of_a_surface(tmp_path: Path) -> None:
    found = surface(point(3.0, steps=1), point(2.0, None, 0.7, steps=2, guidance=None))
    (tmp_path / "surface.json").write_text(json.dumps(found.record()))
    assert read_surface(tmp_path / "surface.json", below=tmp_path) == found
    with pytest.raises(FileNotFoundError):
        read_surface(tmp_path / "none.json", below=tmp_path)
    (tmp_path / "link.json").symlink_to(tmp_path / "surface.json")
    with pytest.raises(UnsafeFileError):
        read_surface(tmp_path / "link.json", below=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"made_by": "other"}, {"points": 3}, {"metric": "kd"}, {"higher_is_better": 1}, {"seconds_per_image": 0.0},
        {"seconds_per_image": float("nan")}, {"metrics": {"fd": float("inf")}}, {"metrics": {"fd": "1"}},
        {"intervals": {"fd": [1.0]}}, {"num_evaluations": 0}, {"num_evaluations": 1.5}, {"setting": {"steps": [1]}},
        {"command": None}, {"options": {"steps": {"a": 1}}},
    ],
)  # fmt: skip
def test_a_damaged_file_is_no_surface(change: dict[str, Any], tmp_path: Path) -> None:
    record = surface(point(3.0, steps=1)).record()
    for key, value in change.items():
        (record if key in record else record["points"][0])[key] = value
    (tmp_path / "surface.json").write_text(json.dumps(record))
    assert read_surface(tmp_path / "surface.json", below=tmp_path) is None


def test_texts_show_every_point() -> None:
    found = surface(point(3.0, 10, 0.25, steps=1), point(2.0, None, 0.5, steps=2), point(4.0, 20, 0.5, steps=3))
    header, *rows = table(found).splitlines()
    assert header.split() == ["steps", "fd", "95", "%", "interval", "evaluations", "s/image", "Pareto-optimal", "in"]
    assert [row.split() for row in rows] == [
        ["1", "3", "2", "to", "4", "10", "0.25", "evaluations,", "seconds"],
        ["2", "2", "1", "to", "3", "0.5", "seconds"],
        ["3", "4", "3", "to", "5", "20", "0.5"],
    ]
    lines = as_csv(found).splitlines()
    assert lines[0] == "steps,num_evaluations,seconds_per_image,fd,fd.low,fd.high,pareto_optimal_in,command"
    assert lines[3] == "3,20,0.5,4.0,3.0,5.0,,genimg-eval"


def test_protocols_differ_by_dotted_keys() -> None:
    assert list(differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})) == ["a.c", "d"]


@pytest.mark.parametrize("numbers", [[5.0], [1.0, 100.0], [3.0, 4.0], [-1.0, 50.0], [0.0, 9.0], [1e-4, 2e3], [7.0, 7.0]])
def test_an_axis_includes_its_numbers(numbers: list[float]) -> None:
    axis = Axis.of(numbers)
    assert all(-1e-9 <= axis.place(number) <= 1 + 1e-9 for number in numbers)
    assert [axis.place(axis.low), axis.place(axis.high)] == pytest.approx([0, 1])
    assert axis.is_logarithmic == (min(numbers) > 0 and max(numbers) / min(numbers) >= 4)


def test_a_picture_draws_the_front_and_the_intervals(tmp_path: Path) -> None:
    found = surface(*(point(20.0 / steps, steps, 0.1 * steps, steps=steps) for steps in (2, 4, 8, 16)), point(30.0, 20, 3.0))
    for panel in panels(found):
        assert len(panel.dots) == 5
        assert len(panel.front) == 4
        assert [x for x, _ in panel.front] == sorted(x for x, _ in panel.front)
        assert all(LEFT <= dot.x <= WIDTH - RIGHT and TOP <= dot.y <= HEIGHT - BOTTOM for dot in panel.dots)
        assert all(dot.high < dot.y < dot.low for dot in panel.dots)  # from the top
    write_picture(found, tmp_path / "surface.png", {"Software": "genimg-eval 1"})
    picture = Image.open(tmp_path / "surface.png")
    assert picture.size == (2080, 600)
    assert picture.info["Software"] == "genimg-eval 1"
    x, y = panels(found)[0].front[1]
    assert picture.getpixel((round(2 * x), round(2 * y))) == (11, 98, 196)
