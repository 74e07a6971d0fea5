"""The time of a whole sweep, divided among its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from errors import raises
from omegaconf import DictConfig, OmegaConf
from sweeping import launch, table

from genimg.errors import ConfigError
from genimg.sweeps.budget import Budget


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
    assert Budget.of_sweep(config("10 minutes"), 4, 2, tmp_path) == first
    assert Budget.of_sweep(config("20 minutes"), 4, 1, tmp_path) == Budget("20 minutes", 300)
    (tmp_path / "budget.json").write_text('{"budget": "10 minutes", "seconds": "many"}')
    assert Budget.of_sweep(config("10 minutes"), 4, 1, tmp_path) == Budget("10 minutes", 150)


def test_jobs_train_for_their_share_and_keep_their_names(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "seed=0,1", "budget=10 seconds", "trainer.preview_interval=1000 steps")
    assert code == 0, output
    assert [row["directory"] for row in table(tmp_path)] == ["000_seed-0", "001_seed-1"]
    assert all("trainer.duration='5 seconds'" in row["overrides"] for row in table(tmp_path))
    assert json.loads((tmp_path / "sweep" / "budget.json").read_text()) == {"budget": "10 seconds", "seconds": 5}
    code, output = launch(tmp_path, "seed=0,1,2", "budget=10 seconds", "trainer.preview_interval=1000 steps")
    assert code == 0, output
    assert output.count("is complete") == 2
