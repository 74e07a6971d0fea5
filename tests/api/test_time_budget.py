"""``trainer.duration`` in time: the number of steps, its record, and the end when the time is over."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises
from test_resume import MODELS, TINY, tensors

import genimg
from genimg.api import time_budget
from genimg.api import train as training
from genimg.errors import ConfigError
from genimg.reporting.run_files import read_run
from genimg.sweeps.budget import Budget
from genimg.sweeps.job import Job
from genimg.training.decisions import Decisions

RUN = [*TINY, *MODELS["dcgan"], "evaluation=none", "precision=fp32"]


def fake(monkeypatch: pytest.MonkeyPatch, *, step: float, evaluation: float, interval: int, final: int | None = None) -> Any:
    """Components whose steps and evaluations take known times, without a measurement of their own duration."""
    monkeypatch.setattr(time_budget, "decode_sample", lambda parts: (None, 1e6))
    monkeypatch.setattr(time_budget, "seconds_per_step", lambda trainer, limit: step)
    monkeypatch.setattr(time_budget, "seconds_per_evaluation", lambda parts, trainer, sample: evaluation)
    monkeypatch.setattr(time_budget, "_SHORT", 0.0)
    evaluator = SimpleNamespace(interval=interval, final_num_images=final, evaluator=SimpleNamespace(num_images=5000))
    return SimpleNamespace(
        trainer=lambda **_: None, settings=SimpleNamespace(batch_size=64), data=SimpleNamespace(storage="device"),
        evaluator=evaluator if evaluation else None,
    )  # fmt: skip


@pytest.mark.parametrize("step", [0.001, 0.02, 0.4])
@pytest.mark.parametrize(("evaluation", "interval", "final"), [(0.0, 1, None), (7.0, 50_000, None), (20.0, 100_000, 50_000)])
@pytest.mark.parametrize("minutes", [10, 600])
def test_steps_and_evaluations_fill_the_time_without_exceeding_it(
    step: float, evaluation: float, interval: int, final: int | None, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = fake(monkeypatch, step=step, evaluation=evaluation, interval=interval, final=final)
    config = {"trainer": {"duration": f"{minutes} minutes"}, "evaluation": {"interval": f"{interval} images"}}
    rate = time_budget.images_per_second(parts, config)
    images = math.ceil(rate * 60 * minutes / 64) * 64
    count = math.ceil(images / interval) if evaluation else 0
    total = images / 64 * step + count * evaluation + (final or 0) / 5000 * evaluation
    assert 0.88 * 60 * minutes - evaluation < total < 60 * minutes


def test_evaluations_at_intervals_of_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = fake(monkeypatch, step=0.01, evaluation=6.0, interval=1)
    config = {"trainer": {"duration": "10 minutes"}, "evaluation": {"interval": "1 minutes"}}
    images = time_budget.images_per_second(parts, config) * 600
    assert images / 64 * 0.01 == pytest.approx(0.92 * 600 - 10 * 6.0, abs=0.5)
    shares = config | {"evaluation": {"interval": "30 %"}}  # after 30, 60, 90 and 100 %
    images = time_budget.images_per_second(parts, shares) * 600
    assert images / 64 * 0.01 == pytest.approx(0.92 * 600 - 4 * 6.0, abs=0.5)


def test_a_time_too_short_for_an_evaluation_and_ten_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = fake(monkeypatch, step=0.01, evaluation=100.0, interval=1000)
    config = {"trainer": {"duration": "60 seconds"}, "evaluation": {"interval": "1000 images"}}
    with raises(ConfigError, "trainer.duration=60 seconds") as caught:
        time_budget.images_per_second(parts, config)
    enough = re.search(r"at least (\d+ seconds)", str(caught.value))
    assert enough is not None
    time_budget.images_per_second(parts, config | {"trainer": {"duration": enough[1]}})
    job = Job(0, [], Path(), status="failed", note=str(caught.value))
    Budget("2 minutes", 60, 2).explain(job)  # reads the message
    assert f"{job.needed_seconds} seconds" == enough[1]


def test_a_run_records_its_rate_and_schedules_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "images_per_second", lambda *_, **__: 10.0)
    overrides = [*RUN, "trainer.duration=1 minutes", "schedule=linear", "schedule.duration=1 minutes",
                 "trainer.checkpoint_interval=19 steps"]  # fmt: skip
    run = genimg.train([*overrides, f"run_dir={tmp_path / 'run'}"])
    assert run.status == "completed"
    assert run.summary["images"] == run.summary["duration"] == 608  # 600, in whole steps of 16
    folder = tmp_path / "run/checkpoints"
    state = torch.load(folder / "last.pt", weights_only=True)
    assert Decisions.restored(state["decisions"]).images_per_second == 10.0
    rates = state["optimizers"]["generator"]["param_groups"][0]
    assert rates["lr"] == pytest.approx(1e-3 / 38, rel=1e-6)  # of the last of 38 steps
    monkeypatch.setattr(training, "images_per_second", None)  # not measured again
    (tmp_path / "half/checkpoints").mkdir(parents=True)
    shutil.copy(folder / "step-00000019.pt", tmp_path / "half/checkpoints/last.pt")
    half = genimg.train([f"resume={tmp_path / 'half'}"])
    resumed = torch.load(tmp_path / "half/checkpoints/last.pt", weights_only=True)
    for name, tensor in tensors(state["method"]).items():
        assert torch.equal(tensor, tensors(resumed["method"])[name])
    assert half.status == "completed"
    longer = genimg.train([f"resume={tmp_path / 'run'}", "trainer.duration=2 minutes"])
    assert longer.summary["images"] == 1200


def test_a_run_measures_itself_and_ends_about_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With an evaluation. How fast the machine is during the measurement and after that is not up to genimg."""
    evaluation = ["evaluation=shapes", "evaluation.num_images=50", "evaluation.interval=1 seconds"]
    slower = [each for each in RUN if "interval" not in each and not each.startswith("evaluation")]
    with caplog.at_level("INFO"):
        run = genimg.train([*slower, *evaluation, "trainer.duration=5 seconds", f"run_dir={tmp_path / 'run'}"])
    assert run.status == "completed"
    assert 0 < run.summary["images"] <= run.summary["duration"]
    assert run.summary["wall_seconds"] < 15
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == len(set(messages))  # although the components are built twice


def test_a_run_on_a_slower_machine_stops_when_the_time_is_over_and_can_be_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "images_per_second", lambda *_, **__: 160_000.0)
    arguments = [*RUN, "trainer.duration=0.5 seconds", "trainer.checkpoint_interval=1000 steps"]
    stopped = genimg.train([*arguments, f"run_dir={tmp_path / 'stopped'}"])
    assert (stopped.status, stopped.signal) == ("completed", None)
    assert read_run(stopped.directory, "a").status == "completed"
    assert stopped.summary["time_is_over"] is True
    assert 0 < stopped.summary["images"] < stopped.summary["duration"] == 80_000
    assert (tmp_path / "stopped/checkpoints/last.pt").is_file()
    shutil.copytree(tmp_path / "stopped", tmp_path / "again")
    again = genimg.train([f"resume={tmp_path / 'again'}"])
    assert again.status == "completed"
    assert again.summary["images"] > stopped.summary["images"]
    assert again.summary["duration"] == 80_000


def test_a_run_whose_time_is_over_is_evaluated_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "images_per_second", lambda *_, **__: 160_000.0)
    evaluation = ["evaluation=shapes", "evaluation.num_images=50", "evaluation.interval=1000 steps"]
    arguments = [each for each in RUN if "interval" not in each and not each.startswith("evaluation")]
    with caplog.at_level("INFO"):
        run = genimg.train([*arguments, *evaluation, "trainer.duration=0.5 seconds", f"run_dir={tmp_path / 'run'}"])
    assert run.status == "completed"
    images = run.summary["images"]
    assert 0 < images < run.summary["duration"]
    assert run.best is not None
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["training"]
    assert state["evaluated_at"] == state["images"] == images
    assert (tmp_path / "run/checkpoints/best.pt").is_file()
    assert any(record.getMessage().startswith("ended: ") for record in caplog.records)
    assert (tmp_path / f"run/samples/samples-{images:09d}.png").is_file()


def test_other_durations_may_be_times_only_if_that_of_the_training_is_one(tmp_path: Path) -> None:
    with raises(ConfigError, "trainer.log_interval=1 seconds"):
        genimg.train([*RUN, "trainer.log_interval=1 seconds", "trainer.duration=4 steps", f"run_dir={tmp_path / 'run'}"])
    with raises(ConfigError, "trainer.duration=0 seconds"):
        genimg.train([*RUN, "trainer.duration=0 seconds", f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
