"""Models that generate in a few steps, through the command line: trained, resumed bit for bit, sampled and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from command_table import options, succeed, walk
from sampling import sampled

COMMON = [
    "data.image_size=16", "data.num_images=16", "trainer.batch_size=4", "trainer.preview_images=4", "precision=fp32",
    "device=cpu", "evaluation=none", "trainer.checkpoint_interval=1 steps", "trainer.preview_interval=2 steps",
    *tiny.DIFFUSION,
]  # fmt: skip
ROWS = {
    "meanflow": ["model=meanflow", "model.network.attention_sizes=[16]"],
    "meanflow_small_labels": ["model=meanflow_small", "conditioning=label", "ema=[exponential,power]"],
    "meanflow_swapped": ["model=meanflow_small", "model.times.ordering=swap", "model.times.share=0.75", "loss.power=1"],
    "ect": ["model=ect", "model.stage=4 images"],
    "ect_small_captions": ["model=ect_small", "conditioning=caption"],
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(ROWS, lambda name: [ROWS[name][0], "labels" in name]))
def test_every_recipe_trains_resumes_and_samples(name: str, tmp_path: Path) -> None:
    walk([*COMMON, *ROWS[name]], tmp_path, ["sample", "ckpt=parts", "num_images=2", "steps=2"])
    assert list(tmp_path.glob("parts/samples-seed0-*/000001.png"))


def test_microbatches_see_the_same_noise_and_times(tmp_path: Path) -> None:
    common = [*COMMON, *ROWS["meanflow_small_labels"], "trainer.duration=2 steps"]
    runs = {"whole": 1, "parts": 2, "single": 4}
    succeed([["train", *common, f"trainer.accumulation={n}", f"run_dir={name}"] for name, n in runs.items()], tmp_path)
    whole, *others = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["method"] for name in runs)
    for other in others:
        for key, value in whole.items():
            torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-5, msg=key)


def test_steps_and_guidance_are_recorded_with_their_cost(tmp_path: Path) -> None:
    train = ["train", *COMMON, *ROWS["meanflow_small_labels"], "trainer.duration=2 steps", "run_dir=run"]
    evaluate = [
        "eval",
        "ckpt=run",
        "evaluation=shapes",
        "num_images=20",
        "sampling.steps=2",
        "sampling.guidance=2",
        "output=r.json",
    ]
    succeed([train, evaluate], tmp_path)
    generated = json.loads((tmp_path / "r.json").read_text())["provenance"]["generated"]
    assert (generated["steps"], generated["guidance"], generated["num_evaluations"]) == (2, 2, 4)


def test_the_table_has_every_model() -> None:
    names = {row[0].removeprefix("model=") for row in ROWS.values()}
    assert names >= {name for name in options("model") if name.startswith(("meanflow", "ect"))}


def test_a_consistency_model_starts_from_the_weights_of_a_diffusion_model(tmp_path: Path) -> None:
    common = [*COMMON, "trainer.duration=1 steps"]
    first = ["train", *common, "model=diffusion_small", "run_dir=first"]
    second = ["train", *common, "model=ect_small", "init_from=first", "optimizer.lr=1e-9", "run_dir=second"]
    succeed([first, second], tmp_path)
    before, after = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("first", "second"))
    assert before["method"].keys() == after["method"].keys()
    for key, value in before["averages"]["exponential"].items():
        torch.testing.assert_close(after["method"][key], value, rtol=0, atol=1e-6)
