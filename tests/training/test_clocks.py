"""Clocks decide when something is saved or shown, never what is computed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIZES

from genimg import cli
from genimg.training.clocks import Clocks


class Time:
    """A clock that is set by hand, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_checkpoint_is_requested_once_an_interval_after_the_last_one() -> None:
    time = Time()
    clocks = Clocks(checkpoint_minutes=5, preview_seconds=None, now=time)
    asked = []
    for second in range(100, 1301):
        time.now = second
        if second == 500:
            clocks.saved()  # an evaluation
        if second >= clocks.save_at:
            asked.append(second)
            clocks.saved()
    assert asked == [400, 800, 1100]


def test_pictures_come_every_half_minute_at_first_and_then_at_growing_gaps() -> None:
    time = Time()
    clocks = Clocks(checkpoint_minutes=None, preview_seconds=30, now=time)
    shown = []
    for second in range(1, 3600 + 1):
        time.now = 100.0 + second
        if time.now >= clocks.show_at:
            shown.append(second)
            clocks.shown(second)
    assert shown[:10] == list(range(30, 301, 30))
    gaps = [b - a for a, b in zip([0, *shown], shown, strict=False)]
    assert all(gap == max(30, -(-at // 10)) for at, gap in zip(shown, gaps, strict=True))
    assert len(shown) < 40


def test_null_asks_for_nothing() -> None:
    time = Time()
    clocks = Clocks(checkpoint_minutes=None, preview_seconds=None, now=time)
    clocks.saved()
    clocks.shown(1e6)
    assert clocks.save_at == clocks.show_at == math.inf


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: tensor for each, item in pairs for key, tensor in tensors(item, f"{name}.{each}").items()}


@pytest.mark.usefixtures("unchanged_process")
def test_a_run_whose_clocks_ask_after_every_step_is_bit_for_bit_that_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose pictures take standing statistics of batch norm, and draw from random streams."""
    common = [
        "model=biggan", *SIZES["biggan"], "model.standing_stats_batches=2", "data.num_images=64", "data.image_size=16",
        "trainer.batch_size=8", "evaluation=none", "trainer.duration=5 steps", "trainer.checkpoint_interval=2 steps",
        "trainer.preview_images=2", "precision=fp32", "device=cpu",
    ]  # fmt: skip
    for name, value in (("restless", "1e-9"), ("calm", "null")):
        clocks = [f"trainer.checkpoint_minutes={value}", f"trainer.preview_seconds={value}"]
        monkeypatch.setattr(sys, "argv", ["genimg-train", *common, *clocks, f"run_dir={tmp_path / name}"])
        monkeypatch.setattr("genimg.training.clocks._SHARE", 0.0)
        cli.train()
    pictures = {name: len(list((tmp_path / name / "samples").glob("samples-*.png"))) for name in ("restless", "calm")}
    assert pictures == {"restless": 6, "calm": 2}
    for file in ("step-00000004.pt", "last.pt"):
        states = [torch.load(tmp_path / name / "checkpoints" / file, weights_only=True) for name in ("restless", "calm")]
        found = [tensors({key: state[key] for key in ("method", "optimizers", "means")}) for state in states]
        assert found[0].keys() == found[1].keys()
        assert [key for key in found[0] if not torch.equal(found[0][key], found[1][key])] == []
