"""Reading run directories in any state. Takes a second."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from pretend_runs import NAME, PROVENANCE, write_run

from genimg.reporting.run_files import read_run
from genimg.reporting.runs import Value


def age(folder: Path, hours: float) -> None:
    """As if it had been written so long ago."""
    then = time.time() - 3600 * hours
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_a_complete_run_tells_last_best_and_at_the_end_with_intervals(tmp_path: Path) -> None:
    final = {"metrics": {"fd1k_shapes": 19.0, "fd1k_shapes_std": 0.5}, "provenance": PROVENANCE}
    run = read_run(write_run(tmp_path / "a", intervals=True, overrides=["loss=hinge"], summary={"final": final}), "a")
    assert (run.status, run.reason, run.images, run.primary, run.higher_is_better) == ("completed", "", 3000, NAME, False)
    assert run.last is not None
    assert run.best is not None
    assert run.final is not None
    assert (run.last.images, run.last.values[NAME]) == (3000, Value(25.0, 24.0, 27.0))
    assert (run.best.images, run.best.values[NAME]) == (2000, Value(20.0, 19.0, 22.0))
    assert run.final.values == {"fd1k_shapes": Value(19.0, deviation=0.5)}
    assert run.best.values["kd500_shapes"] == Value(0.5, deviation=0.125)
    assert list(run.best.values) == [NAME, "kd500_shapes"]
    assert run.best.provenance == PROVENANCE
    assert run.overrides == ["loss=hinge"]
    assert run.pictures["samples"].keys() == {0, 1000, 2000, 3000}


def test_a_run_in_progress_has_its_best_by_the_direction_that_its_evaluator_declares(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", values=[30.0, 20.0, 20.0, 25.0], status=None)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 50, "images": 5000, "evaluation/fd500_sh')
    run = read_run(folder, "a")
    assert run.status == "in progress"
    assert run.images == 4000
    assert run.best is not None
    assert run.best.images == 2000  # the first of equals, as the trainer keeps it
    age(folder, 5)
    assert read_run(folder, "a").status == "unfinished"
    assert "5 h 00 min" in read_run(folder, "a").reason


def test_a_run_that_goes_on_after_its_summary_is_in_progress(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", status="stopped", summary={"images": 1000})
    os.utime(folder / "summary.json", (time.time() - 60, time.time() - 60))
    assert read_run(folder, "a").status == "in progress"
    stopped = read_run(write_run(tmp_path / "b", status="stopped"), "b")
    assert stopped.status == "stopped"
    assert "3,000 images" in stopped.reason


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("console.log", "x\ngenimg-train: error: unknown key loss.x\n", "unknown key loss.x"),
        ("train.log", "2026-11-21 22:36:56,520 ERROR this job failed: no such data\n", "no such data"),
        ("train.log", "Traceback (most recent call last):\n  File x\nValueError: too few images\n", "too few images"),
    ],
)
def test_why_a_run_failed_stands_in_its_logs(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    run = read_run(tmp_path, "x")
    assert (run.status, run.reason) == ("failed", reason)
    assert (run.best, run.last, run.primary, run.images) == (None, None, None, 0)


def test_broken_files_are_left_empty(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "config.yaml").write_text("a: [")
    (folder / "summary.json").write_text("{")
    (folder / ".hydra" / "overrides.yaml").write_bytes(b"\xff\xfe")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(
        "\n".join([*lines[:2], "null", "[1]", '{"images": "x"}', json.dumps({"images": 2000})])
    )
    run = read_run(folder, "a")
    assert (run.config, run.summary, run.overrides) == ({}, {}, [])
    assert run.images == 2000
    assert len(run.evaluations) == 1


def test_numbers_that_are_not_finite_are_no_values(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", values=[30.0, float("nan"), float("inf"), 20.0]), "a")
    assert [each.values[NAME].number for each in run.evaluations if NAME in each.values] == [30.0, 20.0]


@pytest.mark.parametrize("status", ["completed", None])
def test_the_best_is_told_with_the_number_of_evaluations_it_was_chosen_from(tmp_path: Path, status: str | None) -> None:
    run = read_run(write_run(tmp_path / "run", values=[30.0, 20.0, 25.0, 22.0], status=status), "a")
    assert run.num_evaluations == 4
    assert list(run.evaluated) == ["last", "best of 4 evaluations"]
    older = read_run(write_run(tmp_path / "older", summary={"num_evaluations": None}), "b")
    assert list(older.evaluated) == ["last", "best"]
