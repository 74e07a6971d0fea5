"""logger=wandb, with a stand-in for the package."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises

from genimg.errors import ConfigError
from genimg.training.logger import Logger
from genimg.training.wandb import WandbRecorder

SETTINGS: dict[str, Any] = {"project": "genimg", "entity": None, "group": None, "tags": ["a"], "mode": "offline"}


class StandIn(types.ModuleType):
    """What genimg calls of wandb, written down."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.ended = 0
        self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.refuses = False
        self.url: str | None = None

    def init(self, **settings: Any) -> StandIn:
        if self.refuses:
            raise self.errors.Error("No API key configured.\nmore")
        self.begun.append(settings)
        self.url = "https://wandb.ai/me/genimg/runs/1" if settings["mode"] == "online" else None
        return self

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def Image(self, picture: np.ndarray) -> np.ndarray:  # noqa: N802
        return picture

    def define_metric(self, name: str, step_metric: str | None = None) -> None: ...

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.ended += 1
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return module


def test_records_go_to_both_places(wandb: StandIn, tmp_path: Path) -> None:
    run_dir = tmp_path / "a_run"
    run_dir.mkdir()
    recorder = WandbRecorder(**SETTINGS)
    recorder.open(run_dir, {"seed": 3})
    logger = Logger(run_dir, step=0, recorder=recorder)
    logger.scalars(5, 40, {"loss/total": 1.5})
    logger.pictures(5, 40, {"samples": torch.full((4, 1, 8, 8), 1.0)})
    logger.close("completed")
    settings = wandb.begun[0]
    assert {key: settings[key] for key in SETTINGS} == SETTINGS
    assert (settings["name"], settings["config"], settings["resume"]) == ("a_run", {"seed": 3}, "allow")
    assert wandb.logged[0] == (5, {"loss/total": 1.5, "images": 40})
    step, values = wandb.logged[1]
    assert (step, values["images"]) == (5, 40)
    assert values["pictures/samples"].dtype == np.uint8
    assert values["pictures/samples"].max() == 255
    assert (wandb.ended, wandb.exit_code) == (1, 0)
    assert json.loads((run_dir / "metrics.jsonl").read_text())["loss/total"] == 1.5


def test_a_continued_run_goes_on_in_the_same_record(wandb: StandIn, tmp_path: Path) -> None:
    for _ in range(2):
        WandbRecorder(**SETTINGS).open(tmp_path, {})
    (tmp_path / "other").mkdir()
    WandbRecorder(**SETTINGS).open(tmp_path / "other", {})
    first, again, other = (settings["id"] for settings in wandb.begun)
    assert first == again != other


def test_where_the_records_are_is_a_url_or_a_directory(wandb: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "a run"
    run_dir.mkdir()
    recorder = WandbRecorder(**SETTINGS)
    recorder.open(run_dir, {})
    assert recorder.location(run_dir) == ("a run/wandb", "wandb sync 'a run/wandb'/offline-run-*")
    recorder = WandbRecorder(**SETTINGS | {"mode": "online"})
    recorder.open(run_dir, {})
    assert recorder.location(run_dir) == ("https://wandb.ai/me/genimg/runs/1", "")


def test_a_refusal_is_one_message(wandb: StandIn, tmp_path: Path) -> None:
    wandb.refuses = True
    with raises(ConfigError, word="configured"):
        WandbRecorder(**SETTINGS).open(tmp_path, {})


def test_what_cannot_be_is_said_when_the_config_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(ValueError, "mode=on"):
        WandbRecorder(**SETTINGS | {"mode": "on"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises(ConfigError, word="installed"):
        WandbRecorder(**SETTINGS)
