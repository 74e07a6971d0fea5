"""``init_from``: a training that starts from another run's weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from errors import raises

from genimg import train
from genimg.errors import CheckpointError, ConfigError

FLOW = ("data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
        "evaluation=none", "device=cpu", "precision=fp32", "model=flow_small", *tiny.DIFFUSION)  # fmt: skip


OVERRIDES = ["ema.exponential.half_life=1k images", "ema.exponential.ramp_up=null"]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    train([*FLOW, *overrides, f"run_dir={folder}"])
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    trained(folder, "trainer.duration=4 steps", *OVERRIDES)
    return folder


def test_a_run_starts_from_the_averaged_weights_and_from_nothing_else(first: Path, tmp_path: Path) -> None:
    before = torch.load(first / "checkpoints/last.pt", weights_only=True)
    after = trained(
        tmp_path / "second", f"init_from={first}", "trainer.duration=1 steps", "optimizer.lr=1e-9", "schedule=constant"
    )
    name = "denoiser.network.output.weight"
    average = before["averages"]["exponential"][name]
    assert not torch.allclose(average, before["method"][name], atol=1e-6)
    for key, value in before["averages"]["exponential"].items():
        torch.testing.assert_close(after["method"][key], value, rtol=0, atol=1e-6)
    assert after["training"]["images"] == 8
    assert after["optimizers"]["denoiser"]["state"][0]["step"] == 1
    path = first / "checkpoints/last.pt"
    assert after["initial_weights"] == {
        "path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "images": 32, "weights": "ema",
        "matching": {"denoiser": [113, 113]}, "kept": [],
    }  # fmt: skip


def test_the_file_is_not_needed_to_resume_and_the_record_stays(first: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied.pt"
    shutil.copy(first / "checkpoints/last.pt", copied)
    whole = trained(tmp_path / "whole", f"init_from={copied}", "trainer.duration=3 steps")
    trained(tmp_path / "parts", f"init_from={copied}", "trainer.duration=2 steps")
    copied.unlink()
    parts = trained(tmp_path / "parts", f"init_from={copied}", "trainer.duration=3 steps")
    assert parts["initial_weights"] == whole["initial_weights"]
    for key, value in whole["method"].items():
        assert torch.equal(value, parts["method"][key]), key
    train([f"resume={tmp_path / 'parts'}", "trainer.duration=4 steps"])
    again = torch.load(tmp_path / "parts/checkpoints/last.pt", weights_only=True)
    assert again["initial_weights"] == whole["initial_weights"]


@pytest.mark.parametrize("explicit", [True, False])
def test_runs_of_versions_without_these_options_continue(explicit: bool, first: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(first, run)
    for path in (run / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        for config in (state["config"], state["raw_config"]):
            del config["init_from"], config["expected"]
        torch.save(state, path)
    overrides = [f"resume={run}"] if explicit else [*FLOW, f"run_dir={run}", "resume=auto", *OVERRIDES]
    train([*overrides, "trainer.duration=5 steps"])
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["training"]["images"] == 40


def test_another_file_is_refused_when_resuming(first: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", f"init_from={first}", "trainer.duration=1 steps")
    with pytest.raises(ConfigError, match="init_from"):
        trained(tmp_path / "run", "init_from=null", "trainer.duration=2 steps")


def test_weights_of_another_network_are_refused_by_name_and_shape(first: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "init_from") as caught:
        trained(tmp_path / "run", f"init_from={first}", "model.network.width=16")
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["denoiser.network.blocks.0.first.bias", "[16]", "[8]"] in rows
    with raises(ConfigError, "init_from") as caught:
        trained(tmp_path / "run", f"init_from={first}", "conditioning=label")
    assert "class_counts" in str(caught.value)
    assert not (tmp_path / "run").exists()


def warnings_about(setting: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return [message for message in messages if setting in message]


def test_weights_of_another_kind_and_a_fine_tuning_without_weights_are_warned_of(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brief = ("trainer.duration=1 steps", f"init_from={first}")
    trained(tmp_path / "same", *brief)
    assert not warnings_about("init_from", caplog)
    trained(tmp_path / "data", *brief, "model.prediction=data")
    [message] = warnings_about("init_from=", caplog)
    assert "prediction=velocity" in message
    assert "prediction=data" in message
    trained(tmp_path / "edm", "model=diffusion_small", "trainer.duration=1 steps")
    assert not warnings_about("init_from", caplog)
    for start in (tmp_path / "edm", None):
        trained(tmp_path / f"ect{start is None}", "model=ect_small", "trainer.duration=1 steps",
                *([] if start is None else [f"init_from={start}"]))  # fmt: skip
        assert len(warnings_about("init_from", caplog)) == (start is None)
    trained(tmp_path / "other", "model=ect_small", "trainer.duration=1 steps", f"init_from={first}",
            "model.network.architecture=ddpmpp", "++model.sigma_data=0.5")  # fmt: skip
    [message] = warnings_about("init_from=", caplog)
    assert "path=StraightLine" in message
    assert "path=VarianceExploding" in message


def test_what_follows_from_the_data_comes_from_the_new_data(first: Path, tmp_path: Path) -> None:
    edm = ("model=diffusion_small", "trainer.duration=1 steps")
    trained(tmp_path / "edm", *edm)
    old = torch.load(tmp_path / "edm/checkpoints/last.pt", weights_only=True)["method"]["denoiser.sigma_data"]
    new = trained(tmp_path / "new", *edm, f"init_from={tmp_path / 'edm'}", "data.seed=5")["method"]["denoiser.sigma_data"]
    assert old != new


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with raises(CheckpointError, "init_from"):
        trained(tmp_path / "run", f"init_from={tmp_path / 'absent'}")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    with raises(CheckpointError, "init_from"):
        trained(tmp_path / "run", f"init_from={tmp_path / 'foreign.pt'}")
