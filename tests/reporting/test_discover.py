"""Which runs directories hold. Takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from errors import raises
from pretend_runs import write_run, write_sweep

from genimg.errors import ConfigError, DataError
from genimg.reporting.discover import find_runs, is_sweep

JOBS: dict[str, tuple[list[str], float | None]] = {
    f"{number:03d}_loss-{loss}": ([f"loss={loss}", "trainer.duration=30k images"], value)
    for number, (loss, value) in enumerate({"hinge": 20.0, "wasserstein": 30.0, "elbo": None}.items())
}


def test_a_sweep_lists_its_failed_jobs_with_the_launchers_reason_and_overrides(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", JOBS)
    found = find_runs([sweep])
    assert is_sweep(sweep)
    assert [run.label for run in found] == list(JOBS)
    assert [run.status for run in found] == ["completed", "completed", "failed"]
    assert found[2].reason == "the loss does not fit"
    assert found[2].overrides == ["loss=elbo", "trainer.duration=30k images"]


def test_a_job_that_a_search_stopped_is_pruned_and_keeps_its_value(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", JOBS)
    write_run(sweep / "001_loss-wasserstein", status="stopped")
    table = (
        (sweep / "sweep.csv")
        .read_text()
        .replace("1,complete,30.0,001_loss-wasserstein,,", "1,pruned,,001_loss-wasserstein,hopeless,")
    )
    (sweep / "sweep.csv").write_text(table)
    run = find_runs([sweep])[1]
    assert (run.status, run.reason) == ("pruned", "hopeless")
    assert run.best is not None


def test_a_job_whose_directory_has_gone_is_listed(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", JOBS)
    (sweep / "002_loss-elbo" / "console.log").unlink()
    (sweep / "002_loss-elbo").rmdir()
    run = find_runs([sweep])[2]
    assert (run.label, run.status, run.reason) == ("002_loss-elbo", "failed", "the loss does not fit")


def test_a_sweep_without_a_table_and_a_folder_of_sweeps_are_found(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / "day" / "sweep" / f"{number}_job")
    (tmp_path / "day" / "sweep" / "2_job").mkdir()
    (tmp_path / "day" / "sweep" / "2_job" / "console.log").write_text("genimg-train: error: no\n")
    found = find_runs([tmp_path / "day" / "sweep"])
    assert [run.label for run in found] == ["1_job", "2_job", "9_job", "10_job"]
    assert [run.status for run in found] == ["completed", "failed", "completed", "completed"]
    assert len(find_runs([tmp_path])) == 4


def test_runs_of_one_name_are_told_apart_and_one_given_twice_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/run", "b/run"):
        write_run(tmp_path / name)
    found = find_runs([tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / ".." / "a" / "run"])
    assert [run.label for run in found] == ["a/run", "b/run"]
    monkeypatch.chdir(tmp_path / "a" / "run")
    assert [run.label for run in find_runs([Path()])] == ["run"]


def test_what_is_neither_a_run_nor_a_sweep_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "run")
    with raises(DataError, "runs", word="neither"):
        find_runs([tmp_path / "run", tmp_path / "empty"])
    with raises(DataError, "runs", word="exist"):
        find_runs([tmp_path / "nothing"])
    with raises(DataError, "runs", word="file"):
        find_runs([tmp_path / "file"])
    with raises(ConfigError, "runs", word="given"):
        find_runs([])
