"""The time of a whole sweep, divided among its runs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from errors import raises
from omegaconf import DictConfig, OmegaConf
from sweeping import launch, table

from genimg.errors import ConfigError
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


def test_a_sweep_whose_budget_is_too_short_ends_with_the_budget_that_is_enough(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "seed=0", "budget=1 seconds", "evaluation.num_samples=5000")
    assert code == 2, output
    [row] = table(tmp_path)
    assert row["note"].startswith("budget=1 seconds leaves 1 seconds for each run")
    [needed] = re.findall(r"at least (\d+) seconds", row["note"])
    [found] = re.findall(r"error: 1 of 1 jobs failed.*; budget=1 seconds is too short: give budget='(\d+) minutes'", output)
    assert int(found) == math.ceil(int(needed) / 60)
