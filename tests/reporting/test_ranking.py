"""The order of runs. Takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretend_runs import PROVENANCE, write_run

from genimg.reporting.ranking import rank
from genimg.reporting.runs import Run, read_run


def run(folder: Path, **settings: object) -> Run:
    return read_run(write_run(folder, **settings), folder.name)  # type: ignore[arg-type]


@pytest.mark.parametrize(("higher", "order"), [(False, ["b", "a", "d", "c"]), (True, ["c", "a", "d", "b"])])
def test_the_evaluators_direction_decides_and_ties_share_a_place(tmp_path: Path, higher: bool, order: list[str]) -> None:
    values = {"a": 20.0, "b": 10.0, "c": 30.0, "d": 20.0}
    runs = [run(tmp_path / name, values=[value], higher_is_better=higher) for name, value in values.items()]
    runs.append(run(tmp_path / "failed", values=[], status="failed"))
    found = rank(runs)
    assert [each.run.label for each in found.standings] == [*order, "failed"]
    assert [each.place for each in found.standings] == [1, 2, 2, 4, None]
    assert [each.number for each in found.in_given_order] == [0, 1, 2, 3, 4]
    assert found.warnings == []


def test_a_run_with_another_metric_has_no_place_and_that_is_said(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b"), run(tmp_path / "c", name="psnr", higher_is_better=True)]
    found = rank(runs)
    assert [each.place for each in found.standings] == [1, 1, None]
    assert "c was measured by psnr" in found.warnings[0]


def test_values_that_were_measured_unlike_do_not_compare_and_that_is_said(tmp_path: Path) -> None:
    other = {**PROVENANCE, "real": {"source": "mnist", "num_images": 1000}}
    found = rank([run(tmp_path / "a"), run(tmp_path / "b", provenance=other)])
    assert "real.source" in found.warnings[0]
    seed = {**PROVENANCE, "generated": {**PROVENANCE["generated"], "weights": "raw"}}
    assert rank([run(tmp_path / "a"), run(tmp_path / "b", provenance=seed)]).warnings == []


def test_nothing_measured(tmp_path: Path) -> None:
    found = rank([run(tmp_path / "a", values=[]), run(tmp_path / "b", values=[])])
    assert found.metric is None
    assert found.winner is None


def test_an_unknown_direction_is_said(tmp_path: Path) -> None:
    foreign = {"evaluation": {"_target_": "somebody.Else"}}
    settings = {"config": foreign, "summary": {"higher_is_better": None}}
    runs = [run(tmp_path / name, values=[value], **settings) for name, value in {"a": 2.0, "b": 1.0}.items()]
    found = rank(runs)
    assert [each.run.label for each in found.standings] == ["b", "a"]
    assert "not recorded" in found.warnings[0]
