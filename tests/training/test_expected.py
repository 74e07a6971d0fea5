"""Published points of a training curve: when they are due, and what a run says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from genimg.training.expected import ExpectedPoint, due, near

POINT = ExpectedPoint(images=6000, metric="fid50k", value=9.0, tolerance=0.5, source="a paper")
SAMPLED = dataclasses.replace(POINT, sampling={"sampler": "ancestral", "steps": 1000})


@pytest.mark.parametrize(
    ("value", "place"), [(9.0, "on"), (9.5, "on"), (8.5, "on"), (9.51, "off"), (8.49, "off"), (float("nan"), "off")]
)
def test_a_run_is_on_the_curve_within_the_tolerance(value: float, place: str) -> None:
    line = POINT.judge(6400, {"fid50k": value}, {})
    assert line == f"{place} the curve: fid50k is {value:.4g} after 6,400 images, expected 9 ± 0.5 after 6,000 images (a paper)"


def test_another_metric_or_sampler_is_not_comparable() -> None:
    line = POINT.judge(6400, {"fid5k": 9.0, "is5k": 1.0, "is5k_std": 0.1}, {})
    assert line.startswith("not comparable with the curve: fid50k is expected to be 9 ± 0.5 after 6,000 images (a paper)")
    assert line.endswith("this evaluation has fid5k, is5k")
    made: dict[str, Any] = {"generated": {"sampler": "ancestral", "steps": 50}}
    line = SAMPLED.judge(6400, {"fid50k": 9.0}, made)
    assert line.startswith("not comparable with the curve")
    assert line.endswith("with steps=1000, but this evaluation used steps=50")
    made["generated"]["steps"] = 1000
    assert SAMPLED.judge(6400, {"fid50k": 9.0}, made).startswith("on the curve")


def test_a_point_is_due_at_the_first_evaluation_at_or_after_it() -> None:
    points = [dataclasses.replace(POINT, images=images) for images in (1, 100, 101, 200, 230, 260)]
    evaluations = (100, 200, 250)  # every 100 images, and at the end
    assert [[point.images for point in due(points, images, 100)] for images in evaluations] == [[1, 100], [101, 200], [230]]


def test_a_checkpoint_is_compared_with_points_shortly_before_it() -> None:
    points = [dataclasses.replace(POINT, images=images) for images in (89, 90, 100, 101)]
    assert [point.images for point in near(points, 100)] == [90, 100]


@pytest.mark.parametrize(
    "change",
    [{"images": 0}, {"value": float("nan")}, {"tolerance": 0.0}, {"tolerance": float("inf")}, {"metric": " "}, {"source": ""}],
)
def test_a_wrong_point_is_refused_by_its_parameter(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(POINT, **change)
