"""The group ``debug``, through the command line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from fork_server import run_command

TINY = ["model.generator.width=4", "model.discriminator.features.width=4"]


def train(cwd: Path, *arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "GENIMG_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    done = run_command("train", "data.num_images=300", "device=cpu", *arguments, cwd=cwd, env=environment)
    return done.returncode, done.stdout + done.stderr


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_steps_go_through_everything_that_a_training_does(tmp_path: Path) -> None:
    code, output = train(tmp_path, "debug=two_steps", "run_dir=run", "evaluation.bootstrap=5", *TINY)
    assert code == 0, output
    assert "evaluation.num_images=64" in output
    steps = [record["step"] for record in records(tmp_path / "run") if not any(key.startswith("evaluation/") for key in record)]
    measured = [record for record in records(tmp_path / "run") if "evaluation/fd64_shapes_v2" in record]
    assert (steps, [record["step"] for record in measured]) == ([1, 2], [2])
    assert measured[0]["provenance"]["real"]["num_images"] == 64  # type: ignore[index]
    assert "evaluation.bootstrap" not in output  # it was typed
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")} == {"step-00000001.pt", "step-00000002.pt"}
    assert (tmp_path / "run" / "samples" / "samples-000000128.png").is_file()


def test_the_command_line_wins_over_debug(tmp_path: Path) -> None:
    code, output = train(tmp_path, "debug=two_steps", "run_dir=run", "evaluation=none", "trainer.duration=3 steps", *TINY)
    assert code == 0, output
    assert "evaluation." not in output
    assert records(tmp_path / "run")[-1]["step"] == 3
    code, output = train(tmp_path, "debug=two_steps", "resume=run", "trainer.duration=4 steps")
    assert code == 2
    assert "debug=two_steps has no effect with resume=run" in output


def test_one_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    tiny = ["model=restoration_unet", "task=inpaint", "loss=l2", "model.translator.width=16", "trainer.batch_size=8"]
    code, output = train(tmp_path, "debug=overfit_one_batch", "run_dir=run", "trainer.duration=150 steps", *tiny)
    assert code == 0, output
    assert "data: shapes, 8 pairs" in output
    losses = [record["loss/reconstruction"] for record in records(tmp_path / "run") if "loss/reconstruction" in record]
    assert len(losses) == 15
    assert losses[-1] < 0.1 * losses[0]
    assert re.search(rf"loss/reconstruction +{losses[0]:.4g} +{losses[-1]:.4g}\n", output)
    facts = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert facts["num_images"] == 8
    assert facts["config"]["evaluation"] == {}
    code, output = train(tmp_path, "resume=run", "trainer.duration=152 steps")  # on the same images
    assert code == 0, output


@pytest.mark.parametrize(("argument", "message"), [("debug=true", "choose one of none, overfit_one_batch, two_steps"),
                                                   ("debug=two_step", "did you mean 'two_steps'?")])  # fmt: skip
def test_an_unknown_option_is_one_message(argument: str, message: str, tmp_path: Path) -> None:
    code, output = train(tmp_path, argument)
    assert code == 2
    assert output.startswith(f"genimg-train: error: unknown option {argument}")
    assert message in output
    assert "Traceback" not in output
