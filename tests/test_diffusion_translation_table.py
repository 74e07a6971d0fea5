"""Every diffusion model of translations through the command line: trained, resumed bit for bit, evaluated and used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command_table import options, run, succeed, walk
from PIL import Image
from sampling import sampled

SMALL = [
    "data.image_size=16", "trainer.batch_size=4", "trainer.preview_images=2", "precision=fp32", "device=cpu",
    "evaluation.num_images=4", "evaluation.batch_size=2",
]  # fmt: skip
COMMON = [*SMALL, "trainer.checkpoint_interval=1 steps", "evaluation.interval=1000 steps"]
SHAPES = ["data=shapes", "data.num_images=24", "data.validation=0.25"]
ROWS = {
    "inpainting": ["model=diffusion_translation", "task=inpaint_boxes"],
    "super-resolution": ["model=diffusion_translation_small", "task=super_resolution"],
    "colorization in Lab": ["model=diffusion_translation_small", "task=colorize", "task.space=lab"],
    "straight line": [
        "model=diffusion_translation_small", "task=denoise", "model.prediction=velocity", "model.sigma_data=null",
        "model.path._target_=genimg.diffusion.paths.StraightLine", "+model.path.shift=1.0", "~model.path.sigma_min",
        "~model.path.rho", "~model.path.sigma_max",
    ],
    "bridge": ["model=bridge", "task=deblur"],
    "BBDM": [
        "model=bridge_small", "task=super_resolution", "model.prediction=difference", "+model.path.variance=2.0",
        "model.path._target_=genimg.diffusion.bridges.BrownianBridge", "~model.path.beta_min", "~model.path.beta_max",
    ],
}  # fmt: skip
TINY = [*tiny.DIFFUSION, "evaluation.sampling.steps=2", "evaluation.num_samples=2"]


@pytest.mark.parametrize("name", sampled(ROWS, lambda name: [ROWS[name][0]]))
def test_every_recipe_trains_resumes_and_evaluates(name: str, tmp_path: Path) -> None:
    checkpoint = walk([*COMMON, *SHAPES, *ROWS[name], *TINY], tmp_path, ["eval", "ckpt=parts", "output=result.json"])
    measured = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert measured == pytest.approx(checkpoint["training"]["last"], abs=1e-6)
    of_holes = {"psnr_hole", "l1_hole", "diversity_l1_hole"} if name == "inpainting" else set()
    assert {"psnr", "ssim", "l1", "diversity_l1"} | of_holes <= measured.keys()
    assert measured["diversity_l1"] > 0


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_pairs_of_unlike_channels_train_either_way(direction: str, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    for i in range(8):
        Image.effect_noise((32, 16), 80).convert("RGB").save(tmp_path / f"pairs/{i}.png")
    data = ["data=paired", "data.root=pairs", f"data.direction={direction}", "data.channels_a=1", "data.validation=0.25"]
    train = ["train", *COMMON, "model=diffusion_translation_small", *data, *TINY, "trainer.duration=2 steps", "run_dir=run"]
    succeed([train], tmp_path)
    weights = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["method"]
    channels = [1, 3] if direction == "a2b" else [3, 1]
    assert weights["denoiser.network.stem.weight"].shape[1] == 4 * sum(channels)  # patches of 2x2 pixels
    assert weights["denoiser.network.output.weight"].shape[0] == 4 * channels[1]


def test_samples_of_files_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    """Files of two sizes, in batches of 1 and 2, are translated alike, and an export and a picture are made."""
    train = ["train", *COMMON, *SHAPES, *ROWS["super-resolution"], "task.factor=2", *TINY, "trainer.duration=2 steps"]
    numbers = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, side in {"a": 8, "b": 8, "c": 12}.items():
        Image.fromarray(numbers.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"in/{name}.png")
    translate = ["translate", "ckpt=run", "input=in", "device=cpu", "num_samples=2", "steps=2"]
    output = succeed([
        [*train, "run_dir=run"],
        [*translate, "output=two", "batch_size=2"],
        [*translate, "output=one", "batch_size=1"],
        [*translate, "output=other", "seed=1"],
        ["translate", "ckpt=run", "input=in", "device=cpu", "output=single", "steps=2", "grid=false"],
        ["export", "ckpt=run", "output=network.pt2"],
        ["eval", "ckpt=run", "sampling.steps=1", "num_samples=3", "picture=worst.png", "device=cpu"],
    ], tmp_path)  # fmt: skip
    assert "each with its 2 translations on the right" in output
    names = [f"{name}_{number}.png" for name in "abc" for number in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "two").glob("*.png")) == names
    assert sorted(path.name for path in (tmp_path / "single").glob("*.png")) == ["a.png", "b.png", "c.png"]

    def pixels(path: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / path)).astype(int)

    for name in names:
        assert np.abs(pixels(f"two/{name}") - pixels(f"one/{name}")).max() <= 1
        assert np.abs(pixels(f"two/{name}") - pixels(f"other/{name}")).mean() > 1
    assert np.abs(pixels("two/a_0.png") - pixels("two/a_1.png")).mean() > 1
    assert np.abs(pixels("two/b_0.png") - pixels("single/b.png")).max() <= 1
    assert pixels("two/c_0.png").shape == (24, 24, 3)
    assert json.loads((tmp_path / "two/genimg.json").read_text())["options"]["sampling"] == {"steps": 2}
    assert (tmp_path / "network.pt2").is_file()
    assert (tmp_path / "worst.png").is_file()
    refused = {
        "stpes=2": "did you mean 'steps'", "tile=64": "tile=64", "num_samples=0": "num_samples=0",
        "model_mode=train": "model_mode=train", "eta=0.5": "eta=0.5",
    }  # fmt: skip
    for argument, word in refused.items():
        code, message = run([["translate", "ckpt=run", "input=in", "output=new", "device=cpu", argument]], tmp_path)
        assert code
        assert word in message


def test_the_table_has_every_model() -> None:
    models = {name for name in options("model") if name.startswith(("diffusion_translation", "bridge"))}
    assert models == set(tiny.RANDOM_TRANSLATORS)
    assert {row[0].removeprefix("model=") for row in ROWS.values()} == models


EXPERIMENTS = [name for name in sorted(options("experiment")) if tiny.model_of(name) in tiny.RANDOM_TRANSLATORS]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_two_steps_on_tiny_images(experiment: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for folder, count, width in (("pairs/train", 6, 32), ("pairs/val", 3, 32), ("folder", 12, 16)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(numbers.integers(0, 256, (16, width, 3), dtype=np.uint8))
            image.save(tmp_path / folder / f"{i}.png")
    data = ["data.root=pairs"] if "facades" in experiment else ["data=folder", "data.root=folder", "data.validation=0.25"]
    settings = [*SMALL, *TINY, "evaluation=translation", "trainer.duration=8 images"]
    settings += [] if "facades" in experiment else ["schedule.warmup=0 images"]
    succeed([["train", f"experiment={experiment}", *settings, *data, "run_dir=run"]], tmp_path)
    last = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["training"]["last"]
    assert last["diversity_l1"] > 0
