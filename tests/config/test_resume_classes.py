"""Runs that were trained on chosen classes continue."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from errors import raises

import genimg
from genimg.config.resume import differences
from genimg.errors import ConfigError

RUN = (*tiny.SHORT_RUN, "precision=fp32", "performance.threads=1")
CLASSES = "data.classes=[ring,circle]"


def test_a_run_on_chosen_classes_continues_exactly(tmp_path: Path) -> None:
    genimg.train([*RUN, CLASSES, "trainer.duration=3 steps", f"run_dir={tmp_path / 'whole'}"])
    part = tmp_path / "part"
    genimg.train([*RUN, CLASSES, "trainer.duration=1 steps", f"run_dir={part}"])
    genimg.train([*RUN, CLASSES, "trainer.duration=2 steps", f"run_dir={part}"])
    genimg.train([f"resume={part}", "trainer.duration=3 steps"])
    states = [torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("whole", "part")]
    for name, value in states[0]["method"].items():
        assert torch.equal(value, states[1]["method"][name]), name


@pytest.mark.parametrize("changed", ["data.classes=[ring]", "data.classes=null"])
def test_other_classes_are_a_change(tmp_path: Path, changed: str) -> None:
    genimg.train([*RUN, CLASSES, "trainer.duration=1 steps", f"run_dir={tmp_path / 'run'}"])
    with raises(ConfigError, word="data.classes"):
        genimg.train([*RUN, changed, "trainer.duration=2 steps", f"run_dir={tmp_path / 'run'}"])


def test_null_is_the_behaviour_of_versions_without_the_key() -> None:
    old, new = {"trainer": {}}, {"trainer": {}, "data": {"classes": None}}
    assert differences(old, new) == {}
    assert list(differences(old, {"trainer": {}, "data": {"classes": ["ring"]}})) == ["data.classes"]
