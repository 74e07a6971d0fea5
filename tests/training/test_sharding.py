"""Weights divided among processes: the same training as with whole ones, and checkpoints that do not depend on the division."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from errors import raises
from fork_server import run_command
from sampling import only_with_all
from test_resume import tensors
from test_torchrun import BATCH_STATISTICS, TWO, last_checkpoint, start, train
from torch import Tensor

from genimg.api.assemble import _for_sharding
from genimg.errors import ConfigError
from genimg.training.performance import Performance

SHAPES = ["data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
          "device=cpu", "precision=fp32", "evaluation=none"]  # fmt: skip
MODELS: dict[str, list[str]] = {
    "flow_dit_small": [*tiny.DENOISERS["flow_dit_small"], "ema=[exponential,power]", "trainer.max_grad_norm=0.1"],
    # Its gains are scalars, which are not divided, and its last layer has a single row, which only one process has.
    "edm2": [*tiny.DIFFUSION, "conditioning=label", "data.channels=1"],
    "ect_small": tiny.DIFFUSION,
    "bridge_small": tiny.RANDOM_TRANSLATORS["bridge_small"],
    "restoration_unet": tiny.TRANSLATORS["restoration_unet"],
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def assert_close(one: Path, other: Path) -> None:
    """Weights, averages and optimizer states but for rounding; batch norm's statistics are of each process's own images."""
    left, right = last_checkpoint(one), last_checkpoint(other)
    for part in ("method", "averages", "optimizers"):
        a, b = tensors(left[part]), tensors(right[part])
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].shape == b[name].shape
            if a[name].numel() and not BATCH_STATISTICS.search(name):
                torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4 * float(a[name].abs().amax()), msg=name)


def assert_equal(one: Path, other: Path) -> None:
    left, right = tensors(last_checkpoint(one)), tensors(last_checkpoint(other))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert not isinstance(tensor, Tensor) or torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("model", ["flow_dit_small", *map(only_with_all, list(MODELS)[1:])])
def test_divided_weights_train_as_those_of_one_process(model: str, tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*SHAPES, f"model={model}", *MODELS[model], "trainer.duration=4 steps"]
    output = train(TWO, [*arguments, "distributed=fsdp", f"run_dir={tmp_path / 'two'}"], environment)
    assert "2 processes, each with 4 images of a batch and a part of all weights" in output
    whole = ["performance.channels_last=false", "performance.cpu_optimizations=false"]
    train([], [*arguments, *whole, "trainer.accumulation=2", f"run_dir={tmp_path / 'one'}"], environment)
    assert_close(tmp_path / "one", tmp_path / "two")
    assert any((tmp_path / "two" / "samples").iterdir())


def test_a_run_with_divided_weights_resumes_exactly_and_also_in_one_process(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    evaluation = ["evaluation=shapes", "evaluation.num_images=16", "evaluation.interval=2 steps"]
    arguments = [*SHAPES, *evaluation, "model=flow_dit_small", *MODELS["flow_dit_small"], "performance.channels_last=auto"]
    divided = [*arguments, "distributed=fsdp"]
    train(TWO, [*divided, "trainer.duration=4 steps", f"run_dir={tmp_path / 'uninterrupted'}"], environment)
    train(TWO, [*divided, "trainer.duration=2 steps", f"run_dir={tmp_path / 'resumed'}"], environment)
    shutil.copytree(tmp_path / "resumed", tmp_path / "alone")
    train(TWO, [f"resume={tmp_path / 'resumed'}", "trainer.duration=4 steps"], environment)
    assert_equal(tmp_path / "uninterrupted", tmp_path / "resumed")
    further = ["trainer.duration=4 steps", "distributed=replicated", "trainer.accumulation=2"]
    output = train([], [f"resume={tmp_path / 'alone'}", *further, "resume_force=true"], environment)
    assert_close(tmp_path / "uninterrupted", tmp_path / "alone")
    assert "resuming from" in output
    found = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("uninterrupted", "resumed", "alone")]
    fd = [run["last"]["fd16_shapes_v2"] for run in found]
    assert fd[0] == fd[1] == pytest.approx(fd[2], rel=1e-3)
    snapshots = [
        sorted(each.name for each in (tmp_path / name / "averages").iterdir()) for name in ("uninterrupted", "resumed")
    ]
    assert snapshots[0] == snapshots[1] != []
    train(
        TWO, [f"resume={tmp_path / 'alone'}", "trainer.duration=5 steps", "distributed=fsdp", "resume_force=true"], environment
    )
    assert json.loads((tmp_path / "alone" / "summary.json").read_text())["images"] == 40


@pytest.mark.parametrize(("model", "name"), [("dcgan_small", "GAN"), ("meanflow_small", "MeanFlow")])
def test_models_whose_step_is_more_than_calls_of_a_network_are_refused(
    model: str, name: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = [*SHAPES, f"model={model}", "distributed=fsdp", f"run_dir={tmp_path / 'run'}"]
    done = run_command("train", *arguments, env=environment)
    assert done.returncode == 2
    assert f"distributed=fsdp does not work for the model, a {name}" in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_graphs_are_refused() -> None:
    wanted = Performance(channels_last="auto", fused_optimizer="auto", compile="auto", graph=True)
    config = {
        "performance": {"channels_last": "auto", "compile": "auto", "graph": True},
        "trainer": {"accumulation": 1, "sync_batch_norm": False},
    }
    with raises(ConfigError, "performance.graph=true"):
        _for_sharding(wanted, config, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["performance.channels_last=true"], "performance.channels_last=true"),
        only_with_all((["performance.compile=default"], "performance.compile=default")),
        only_with_all((["trainer.accumulation=auto"], "trainer.accumulation=auto")),
        only_with_all((["~optimizer", "+optimizer={_target_: torch.optim.Adafactor}"], "optimizer._target_=Adafactor")),
    ],
)
def test_settings_that_need_whole_weights_are_refused(
    settings: list[str], message: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    model = ["model=restoration_unet", *tiny.TRANSLATORS["restoration_unet"], "distributed=fsdp", f"run_dir={tmp_path / 'run'}"]
    process = start(TWO, [*SHAPES, *model, *settings], environment)
    output = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    assert f"genimg-train: error: {message}" in output
    assert not (tmp_path / "run").exists()
