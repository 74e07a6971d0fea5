"""``performance.threads``: what decides it, a trial without a trace, its record, and a training that changes it."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises
from test_resume import MODELS, TINY, tensors

import genimg
from genimg.api import thread_trial
from genimg.api.assemble import assemble
from genimg.api.thread_trial import choose_threads
from genimg.api.train import compose
from genimg.config.compose import thaw
from genimg.errors import CheckpointError, ConfigError
from genimg.training import performance, thread_choice
from genimg.training.thread_choice import ThreadChoice, Threads, same_threads_afterwards

RUN = [*TINY, *MODELS["dcgan"], "evaluation=none", "precision=fp32"]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch would use two threads, as far as the environment is concerned."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(performance, "num_cores", lambda: 2)
    with same_threads_afterwards():
        torch.set_num_threads(2)
        yield


def checkpoint_of(run_dir: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)
    return state


def components(threads: int | str = "auto", *, duration: str = "100 steps", device: str = "cpu") -> Any:
    return SimpleNamespace(
        performance=SimpleNamespace(compile=False, threads=threads), device=torch.device(device),
        settings=SimpleNamespace(duration=16 * int(duration.split()[0]), batch_size=16),
    )  # fmt: skip


def test_a_number_or_the_environment_or_the_record_decides_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_trial, "_measured", None)
    config = {"trainer": {"duration": "100 steps"}}

    def chosen(parts: Any, recorded: int | None = None) -> Threads | None:
        torch.set_num_threads(2)
        choice = choose_threads(parts, config, recorded)
        assert choice.threads is None or choice.threads.number == torch.get_num_threads()
        return choice.threads

    assert chosen(components(1), 2) == Threads(1, 2, reason="performance.threads")
    assert chosen(components(), 1) == Threads(1, 2, is_fixed=False, reason="as before")
    assert chosen(components(), 64) == Threads(2, 2, is_fixed=False, reason="as before")
    assert chosen(components(duration="49 steps")) == Threads(2, 2, is_fixed=False)
    assert chosen(components(device="meta")) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert chosen(components(), 1) == Threads(2, 2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(thread_trial, "world_size", lambda: 2)
    assert chosen(components(), 1) == Threads(2, 2)


@pytest.mark.parametrize("threads", ["0", "3", "many", "1.5"])
def test_an_impossible_number_is_refused_by_its_key(threads: str, tmp_path: Path) -> None:
    with raises(ConfigError, "performance.threads"):
        genimg.train([*RUN, f"performance.threads={threads}", "trainer.duration=2 steps", f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """A function that sets the seconds of a step by number of threads, for the trial and for training."""
    now, seconds = 0.0, {1: 1.0, 2: 1.0}

    def read() -> float:
        nonlocal now
        now += seconds[torch.get_num_threads()]  # each step reads the clock twice
        return now

    monkeypatch.setattr(thread_trial, "time", SimpleNamespace(perf_counter=read, monotonic=read))
    return seconds.update


TRIED = {
    "dcgan": [*MODELS["dcgan"], "discriminator_augment=ada"],
    "vae": MODELS["vae"],
}


@pytest.mark.parametrize("name", list(TRIED))
def test_a_trial_leaves_no_trace(name: str, tmp_path: Path, clock: Callable[[dict[int, float]], None]) -> None:
    """The training after a trial is bit for bit that without one."""
    clock({1: 0.1, 2: 0.2})
    arguments = [*TINY, *TRIED[name], "evaluation=none", "precision=fp32", "trainer.duration=60 steps"]
    fixed = genimg.train([*arguments, "performance.threads=1", f"run_dir={tmp_path / 'fixed'}"])
    config = compose([*arguments, f"run_dir={tmp_path / 'unused'}"])
    parts = assemble(genimg.config.compose.Config(thaw(config.config)), "cpu").components
    choice = choose_threads(parts, {"trainer": {"duration": "1 hours"}}, None)
    assert choice.threads == Threads(1, 2, is_fixed=False, is_measured=True, reason="160 images/s; 2 threads: 80")
    torch.set_num_threads(1)
    trainer = parts.trainer(folder=tmp_path / "tried", make_logger=lambda *_: thread_trial.SilentLogger(), describe={})
    trainer.fit()
    expected = tensors(checkpoint_of(fixed.directory)["method"])
    for key, tensor in tensors(trainer.state_dict()["method"]).items():
        assert torch.equal(tensor, expected[key]), key


def test_a_short_training_is_tried_for_few_steps_and_a_shorter_one_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def median(times: list[float]) -> float:
        steps.append(len(times))
        return statistics.median(times)

    monkeypatch.setattr(thread_trial, "statistics", SimpleNamespace(median=median))
    run = genimg.train([*RUN, "trainer.duration=50 steps", f"run_dir={tmp_path / 'shorter'}"])
    assert steps == []
    assert checkpoint_of(run.directory)["decisions"]["threads"] == 2
    run = genimg.train([*RUN, "trainer.duration=200 steps", f"run_dir={tmp_path / 'short'}"])
    assert set(steps) <= {1, thread_trial._FEWEST_STEPS}  # 1: given up
    assert len(steps) == 2
    assert checkpoint_of(run.directory)["decisions"]["threads"] in (1, 2)


def test_the_number_is_recorded_and_a_resumed_run_goes_on_with_the_last_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The number changes at the third step, and stays."""

    class Forced(ThreadChoice):
        steps = 0

        @property
        def number(self) -> int:
            return self.chosen

        def add_step(self, seconds: float) -> dict[int, float] | None:
            self.steps += 1
            if self.steps != 3 or self.chosen == 1:
                return None
            self.chosen = 1
            return {2: 2.0, 1: 1.0}

    monkeypatch.setattr(thread_choice, "ThreadChoice", Forced)
    arguments = [*RUN, "trainer.duration=12 steps", "trainer.checkpoint_interval=6 steps"]
    with caplog.at_level("INFO"):
        run = genimg.train([*arguments, f"run_dir={tmp_path / 'run'}"])
    assert torch.get_num_threads() == 2  # for the caller
    messages = [record.getMessage() for record in caplog.records]
    assert "device cpu, precision fp32, 2 threads" in messages
    assert "threads: 1 from now on (16 images/s; 2 threads: 8)" in messages
    state = checkpoint_of(run.directory)
    assert state["training"]["threads"] == [(0, 2), (3, 1)]
    (tmp_path / "half/checkpoints").mkdir(parents=True)
    shutil.copy(run.directory / "checkpoints/step-00000006.pt", tmp_path / "half/checkpoints/last.pt")
    caplog.clear()
    with caplog.at_level("INFO"):
        half = genimg.train([f"resume={tmp_path / 'half'}"])
    messages = [record.getMessage() for record in caplog.records]
    assert "device cpu, precision fp32, 1 of 2 threads (as before)" in messages
    assert not any("bit for bit" in message for message in messages)
    resumed = checkpoint_of(half.directory)
    assert resumed["training"]["threads"] == [(0, 2), (3, 1)]
    assert resumed["decisions"]["threads"] == 1
    for name, tensor in tensors(state["method"]).items():
        assert torch.equal(tensor, tensors(resumed["method"])[name])


def test_another_number_on_resumption_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    genimg.train([*RUN, "performance.threads=2", "trainer.duration=2 steps", f"run_dir={run_dir}"])
    with caplog.at_level("WARNING"):
        genimg.train([f"resume={run_dir}", "performance.threads=1", "trainer.duration=4 steps"])
    messages = [record.getMessage() for record in caplog.records if "bit for bit" in record.getMessage()]
    assert messages == ["threads is 1, but was 2: the run continues, but not bit for bit"]
    assert checkpoint_of(run_dir)["training"]["threads"] == [(0, 2), (2, 1)]


def test_checkpoints_of_before_have_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    genimg.train([*RUN, "performance.threads=2", "trainer.duration=2 steps", f"run_dir={run_dir}"])
    state = checkpoint_of(run_dir)
    del state["training"]["threads"], state["decisions"]["threads"]
    torch.save(state, run_dir / "checkpoints/last.pt")
    (run_dir / "checkpoints/step-00000002.pt").unlink()
    with caplog.at_level("WARNING"):
        genimg.train([f"resume={run_dir}", "performance.threads=1", "trainer.duration=4 steps"])
    messages = [record.getMessage() for record in caplog.records if "bit for bit" in record.getMessage()]
    assert messages == ["hardware.threads is 1, but was 2: the run continues, but not bit for bit"]


@pytest.mark.parametrize("threads", [[1, 2], [(0, "2")], [(0, 1, 2)], {"0": 2}])
def test_an_invalid_record_is_refused(threads: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    genimg.train([*RUN, "trainer.duration=2 steps", f"run_dir={run_dir}"])
    state = checkpoint_of(run_dir)
    state["training"]["threads"] = threads
    torch.save(state, run_dir / "checkpoints/last.pt")
    (run_dir / "checkpoints/step-00000002.pt").unlink()
    with pytest.raises(CheckpointError, match=r"training\.threads"):
        genimg.train([f"resume={run_dir}", "trainer.duration=4 steps"])
