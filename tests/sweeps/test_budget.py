"""The time of a whole sweep, divided among its runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from errors import raises
from omegaconf import DictConfig, OmegaConf
from sweeping import launch, table

from genimg import cli
from genimg.errors import ConfigError
from genimg.sweeps import queue
from genimg.sweeps.budget import Budget
from genimg.sweeps.job import Job


def config(budget: object, *typed: str) -> DictConfig:
    return OmegaConf.create({"budget": budget, "hydra": {"overrides": {"task": list(typed)}}})


def test_it_is_divided_among_the_runs_instead_of_the_durations_of_a_predefined_search(tmp_path: Path) -> None:
    budget = Budget.of_sweep(config("10 minutes", "budget=10 minutes"), 5, 2, tmp_path)
    assert budget is not None
    assert budget.seconds == 200
    given = ["seed=0", "+budget=10 minutes", "trainer.duration=400k images"]
    assert budget.applied(given) == ["seed=0", "budget=null", "trainer.duration='200 seconds'"]
    assert Budget.of_sweep(config(None), 5, 2, tmp_path) is None


@pytest.mark.parametrize(
    ("budget", "typed"),
    [("10 epochs", ()), ("0 seconds", ()), (5, ()), ("2 seconds", ()), ("1 hours", ("++trainer.duration=3 steps",))],
)
def test_what_cannot_be_divided_is_refused(budget: object, typed: tuple[str, ...], tmp_path: Path) -> None:
    with raises(ConfigError, f"budget={budget}"):
        Budget.of_sweep(config(budget, *typed), 5, 1, tmp_path)


def test_a_later_launch_with_more_jobs_keeps_the_time_of_each(tmp_path: Path) -> None:
    first = Budget.of_sweep(config("10 minutes"), 2, 1, tmp_path)
    assert first is not None
    first.record(tmp_path)
    assert Budget.of_sweep(config("10 minutes"), 4, 2, tmp_path) == Budget("10 minutes", first.seconds, 2)
    assert Budget.of_sweep(config("20 minutes"), 4, 1, tmp_path) == Budget("20 minutes", 300, 4)
    (tmp_path / "budget.json").write_text('{"budget": "10 minutes", "seconds": "many"}')
    assert Budget.of_sweep(config("10 minutes"), 4, 1, tmp_path) == Budget("10 minutes", 150, 4)


def test_jobs_train_for_their_share_and_keep_their_names(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "seed=0,1", "budget=10 seconds", "trainer.preview_interval=1000 steps")
    assert code == 0, output
    assert [row["directory"] for row in table(tmp_path)] == ["000_seed-0", "001_seed-1"]
    assert all("trainer.duration='5 seconds'" in row["overrides"] for row in table(tmp_path))
    assert json.loads((tmp_path / "sweep" / "budget.json").read_text()) == {"budget": "10 seconds", "seconds": 5}
    code, output = launch(tmp_path, "seed=0,1,2", "budget=10 seconds", "trainer.preview_interval=1000 steps")
    assert code == 0, output
    assert output.count("is complete") == 2


def failed(number: int, note: str, folder: Path) -> Job:
    return Job(number, [], folder, status="failed", note=note)


def test_jobs_whose_time_is_too_short_tell_which_budget_is_enough(tmp_path: Path) -> None:
    budget = Budget.of_sweep(config("2 minutes"), 7, 2, tmp_path)
    assert budget is not None
    message = "trainer.duration=30 seconds is too short: an evaluation takes 5 s: give at least {} seconds, or ..."
    jobs = [failed(0, message.format(80), tmp_path), failed(1, message.format(841), tmp_path), failed(2, "x", tmp_path)]
    for job in jobs:
        budget.explain(job)
    assert [job.needed_seconds for job in jobs] == [80, 841, 0]
    assert jobs[0].note.startswith("budget=2 minutes leaves 30 seconds for each run")
    assert "budget='6 minutes'" in jobs[0].note  # four runs, one after the other
    assert jobs[2].note == "x"
    assert "budget='57 minutes'" in budget.advice(jobs)
    assert budget.advice(jobs[2:]) == ""


@pytest.mark.usefixtures("unchanged_process")
def test_a_sweep_whose_budget_is_too_short_ends_with_the_budget_that_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs are programs that end as a run whose time is too short; tests/api/test_time_budget.py compares its message."""
    message = "genimg-train: error: trainer.duration=1 seconds is too short: 10 steps take 2 s: give at least {}0 seconds"
    program = f"import sys, re; print('{message}'.format(re.search(r'seed=(\\d)', ' '.join(sys.argv))[1])); sys.exit(2)"
    real = subprocess.Popen
    monkeypatch.setattr(queue.subprocess, "Popen", lambda words, **more: real([words[0], "-c", program, *words[3:]], **more))
    monkeypatch.chdir(tmp_path)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # which the command wraps
    arguments = ["-m", "hydra/launcher=gpu_queue", "hydra.sweep.dir=sweep", "seed=4,5", "budget=2 seconds"]
    monkeypatch.setattr(sys, "argv", ["genimg-train", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.train()
    assert ended.value.code == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "2 of 2 jobs failed, #0, #1: " in error
    assert "budget=2 seconds is too short: give budget='2 minutes'" in error  # 2 x 50 seconds
    assert "the same command" not in error  # it would fail again
    assert [row["note"].partition(" leaves ")[0] for row in table(tmp_path)] == ["budget=2 seconds"] * 2
