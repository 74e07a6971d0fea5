"""The order of runs. Takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pretend_runs import PROVENANCE, write_run

from genimg.reporting.ranking import format_mean, rank, setting_label
from genimg.reporting.run_files import read_run
from genimg.reporting.runs import Run
from genimg.reporting.settings import swept_settings


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
    assert sorted(each.number for each in found.standings) == [0, 1, 2, 3, 4]
    assert not found.has_seeds
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


def test_distances_of_families_with_other_additional_metrics_compare(tmp_path: Path) -> None:
    other = {**PROVENANCE, "reconstructions": {"source": "shapes", "side": "train", "num_images": 100}}
    runs = [run(tmp_path / "gan"), run(tmp_path / "vae", provenance=other)]
    assert rank(runs).warnings == []
    name = "reconstruction_psnr"
    runs = [run(tmp_path / f"{i}", name=name, provenance=each) for i, each in enumerate((PROVENANCE, other))]
    assert "reconstructions" in rank(runs).warnings[0]


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


def test_runs_of_several_seeds_are_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / f"{lr}_{seed}", values=[value], overrides=[f"lr={lr}", f"seed={seed}"], config={"lr": lr, "seed": seed})
        for lr, seed, value in [(1, 0, 10.0), (1, 1, 14.0), (2, 0, 9.0), (2, 1, 30.0), (3, 0, 11.5)]
    ]
    runs.append(run(tmp_path / "failed", values=[], overrides=["lr=1", "seed=2"], config={"lr": 1, "seed": 2}, status="failed"))
    found, swept = rank(runs), swept_settings(runs)
    assert found.has_seeds
    assert [setting_label(group, swept) for group in found.groups] == ["lr=3", "lr=1", "lr=2"]
    assert [group.place for group in found.groups] == [1, 2, 3]
    assert [group.score for group in found.groups] == [11.5, 12.0, 19.5]
    assert [group.deviation for group in found.groups] == [
        None,
        pytest.approx(np.std([10, 14], ddof=1)),
        pytest.approx(14.849242),
    ]
    assert [len(group.standings) for group in found.groups] == [1, 3, 2]
    assert [format_mean(group) for group in found.groups] == ["11.5", "12 ± 2.8", "19.5 ± 15"]
    assert found.noise == (pytest.approx(np.sqrt((np.var([10, 14], ddof=1) + np.var([9, 30], ddof=1)) / 2)), 4)
    assert rank(runs[4:]).noise is None
