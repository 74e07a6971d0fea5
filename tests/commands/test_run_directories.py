"""Runs and sweeps that start in the same second, without a directory of their own: each gets one, and each trains."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import hydra.core.utils
import pytest

from genimg import cli

pytestmark = pytest.mark.usefixtures("unchanged_process")

TINY = [
    "data.num_images=16", "data.image_size=16", "model=dcgan_small", "model.generator.width=4", "model.latent.dim=4",
    "trainer.batch_size=16", "trainer.duration=1 steps", "trainer.preview_images=2", "evaluation=none", "device=cpu",
]  # fmt: skip
DAY, SECOND = "2026-11-28", "12-34-56"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which it is always the same second."""
    monkeypatch.chdir(tmp_path)
    moment = datetime.strptime(f"{DAY} {SECOND}", "%Y-%m-%d %H-%M-%S")
    monkeypatch.setattr(hydra.core.utils, "datetime", SimpleNamespace(now=lambda: moment))
    return tmp_path


def train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["genimg-train", *arguments, *TINY])
    cli.train()


def test_runs_of_the_same_second_each_have_a_directory_and_train(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        train(monkeypatch, f"seed={seed}")
    runs = sorted((home / "outputs" / DAY).iterdir())
    assert [run.name for run in runs] == [f"{SECOND}_dcgan_small_shapes{suffix}" for suffix in ("", "-2", "-3")]
    for seed, run in enumerate(runs):
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["status"], summary["seed"], summary["images"]) == ("completed", seed, 16)
        assert (run / "checkpoints" / "last.pt").is_file()
        assert f"seed={seed}" in (run / ".hydra" / "overrides.yaml").read_text()
        assert (run / "train.log").read_text().count("run directory") == 1


def test_sweeps_of_the_same_second_do_not_share_a_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        train(monkeypatch, "-m", f"seed={seed}")
    sweeps = sorted((home / "outputs" / "multirun" / DAY).iterdir())
    assert [sweep.name for sweep in sweeps] == [SECOND, f"{SECOND}-2"]
    for seed, sweep in enumerate(sweeps):
        (summary,) = sweep.glob("*/summary.json")
        assert json.loads(summary.read_text())["seed"] == seed
    assert not (home / "outputs" / DAY).exists()


def test_a_config_that_is_only_shown_makes_no_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(monkeypatch, "--cfg", "job", "--resolve")
    train(monkeypatch, "dry_run=true")
    assert not (home / "outputs").exists()
