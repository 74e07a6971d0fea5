"""Every model that translates, and every task, through the command line: trained, stopped and resumed, evaluated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from command_table import options, run, succeed, walk
from PIL import Image
from sampling import only_with_all, sampled

COMMON = [
    "data.image_size=16", "trainer.batch_size=4", "trainer.preview_images=2", "precision=fp32", "device=cpu",
    "evaluation.num_images=4", "evaluation.batch_size=2", "trainer.checkpoint_interval=1 steps",
    "evaluation.interval=1000 steps",
]  # fmt: skip
SHAPES = ["data.num_images=24", "data.validation=0.25"]
RESTORATION = ["model=restoration", "model.translator.width=4", "model.translator.num_blocks=1"]


def cell(model: str) -> list[str]:
    settings = tiny.TRANSLATORS[model]
    return [f"model={model}", *settings, *([] if "data=unpaired" in settings else SHAPES)]


def resume_and_evaluate(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Return the checkpoint, whose last evaluation genimg-eval must repeat."""
    checkpoint = walk([*COMMON, *arguments], folder, ["eval", "ckpt=parts", "output=result.json"])
    measured = json.loads((folder / "result.json").read_text())["metrics"]
    assert measured == pytest.approx(checkpoint["training"]["last"], abs=1e-6)
    return checkpoint


@pytest.mark.parametrize("model", tiny.TRANSLATORS)
def test_every_model_trains_resumes_and_evaluates(model: str, tmp_path: Path) -> None:
    tiny.unpaired_folders(tmp_path / "unpaired")
    checkpoint = resume_and_evaluate(cell(model), tmp_path)
    measured = checkpoint["training"]["last"]
    if model == "cyclegan":
        assert {"cycle_l1", "cycle_l1_a", "cycle_l1_b", "identity_l1_a", "identity_l1_b"} == measured.keys()
        pools = checkpoint["method"]
        assert pools["pool_a.count"] == 3  # of 12 images, as many as fit
        assert pools["pool_a.images"].abs().sum() > 0
    elif model in ("cut", "fastcut"):
        assert measured.keys() == {"identity_l1_b"}
    else:
        of_holes = {"psnr_hole", "l1_hole"} if model == "restoration_gated" else set()
        assert {"psnr", "ssim", "l1"} | of_holes == measured.keys()
    assert list((tmp_path / "whole/samples").glob("*-000000012.png"))


@pytest.mark.parametrize("task", sampled(sorted(options("task") - {"none"}), lambda task: [task.split("_")[0]]))
def test_every_task_trains_resumes_and_evaluates(task: str, tmp_path: Path) -> None:
    settings = [f"task={task}"]
    if task == "inpaint_files":
        (tmp_path / "masks").mkdir()
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[3:9, 4:12] = 255
        Image.fromarray(mask).save(tmp_path / "masks/0.png")
        settings.append(f"task.mask.folder={tmp_path / 'masks'}")
    if task == "inpaint_strokes":
        settings.append("task.mask.width=[0.1,0.2]")  # at 16 px the brush would be less than a pixel
    resume_and_evaluate([*SHAPES, *RESTORATION, *settings], tmp_path)


@pytest.mark.parametrize(("direction", "channels"), [only_with_all(("a2b", [1, 3])), ("b2a", [3, 1])])
def test_pairs_of_unlike_channels_train_either_way(direction: str, channels: list[int], tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    for i in range(8):
        Image.effect_noise((32, 16), 80).convert("RGB").save(tmp_path / f"pairs/{i}.png")
    data = ["data=paired", "data.root=pairs", f"data.direction={direction}", "data.channels_a=1", "data.validation=0.25"]
    facts = resume_and_evaluate(["model=pix2pix", *data, *PATCHES], tmp_path)["facts"]
    assert [facts[key] for key in ("source_channels", "target_channels")] == channels


PATCHES = [each for each in tiny.TRANSLATORS["pix2pix"] if each != "task=denoise"]
SMALL_RESTORATION = ["trainer.batch_size=4", "data.validation=0.25", "model.translator.width=4"]
EXPERIMENTS = {
    "pix2pix_facades": ["data.root=pairs", "schedule.start=0 images", *PATCHES],
    "pix2pix_maps": ["data.root=pairs", "schedule.start=0 images", *PATCHES],
    "pix2pix_edges2shoes": ["data.root=pairs", *PATCHES],
    "cyclegan_horse2zebra": [
        "data.root=unpaired", "schedule.start=0 images",
        *(each for each in tiny.TRANSLATORS["cyclegan"] if not each.startswith("data")),
    ],
    "denoise_cifar10": ["data=folder", "data.root=folder", *SMALL_RESTORATION, "model.translator.num_blocks=1"],
    "denoise_folder": ["data.root=folder", *SMALL_RESTORATION, "model.translator.num_blocks=1"],
    "inpaint_cifar10": ["data=folder", "data.root=folder", *SMALL_RESTORATION],
    "inpaint_folder": ["data.root=folder", *SMALL_RESTORATION, "task.mask.width=[0.1,0.2]"],
}  # fmt: skip


def test_the_experiments_of_translators_are_all_here() -> None:
    assert {name for name in options("experiment") if tiny.model_of(name) in tiny.TRANSLATORS} == set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", sampled(EXPERIMENTS, lambda name: [tiny.model_of(name)]))
def test_every_experiment_takes_two_steps_on_tiny_images_and_is_evaluated(experiment: str, tmp_path: Path) -> None:
    tiny.unpaired_folders(tmp_path / "unpaired")
    numbers = np.random.default_rng(0)
    for folder, count, width in (("pairs/train", 6, 32), ("pairs/val", 3, 32), ("folder", 12, 16)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(numbers.integers(0, 256, (16, width, 3), dtype=np.uint8))
            image.save(tmp_path / folder / f"{i}.png")
    common = ["data.image_size=16", "trainer.duration=2 steps", "trainer.preview_images=2", "precision=fp32", "device=cpu"]
    succeed([["train", f"experiment={experiment}", *common, *EXPERIMENTS[experiment], "run_dir=run"]], tmp_path)
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["training"]["images"] == 2 * state["config"]["trainer"]["batch_size"]
    unpaired = experiment == "cyclegan_horse2zebra"
    assert next(iter(state["training"]["last"])) == ("cycle_l1_a" if unpaired else "psnr")
    assert (tmp_path / "run/checkpoints/best.pt").is_file() is not unpaired
    assert state["facts"]["source_channels"] == (4 if "inpaint" in experiment else 3)


def test_a_dry_run_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    tiny.unpaired_folders(tmp_path / "unpaired")
    models = ("restoration_gated", "pix2pix", "cyclegan", "cut")
    commands = [
        ["train", *COMMON, *cell(model), "trainer.duration=5 steps", "dry_run=true", f"run_dir={model}"] for model in models
    ]
    output = succeed(commands, tmp_path)
    assert output.count("dry run: no run directory was made") == len(models)
    assert len(re.findall(r"1 evaluation, about \d+ s each", output)) == len(models), output
    assert {path.name for path in tmp_path.iterdir()} == {"unpaired"}


REFUSED = {
    "a translator on plain images": (["model=pix2pix"], "choose a task such as task=denoise"),
    "a GAN on a task": (["task=denoise"], "choose a model such as pix2pix or restoration, or task=none"),
    "CycleGAN on a task": (["model=cyclegan", "task=denoise"], "the batch keys a and b, but the data has source and target"),
    "pix2pix on unpaired data": (["model=pix2pix", "data=unpaired", "data.root=unpaired"], "choose data=paired"),
    "a task on pairs": (["model=pix2pix", "data=paired", "data.root=pairs", "task=denoise"], "set task=none"),
    "no folder": (["model=cyclegan", "data=unpaired"], "give root, a directory with trainA and trainB"),
    "an empty domain": (["model=cyclegan", "data=unpaired", "data.a=empty", "data.b=pairs"], "/empty holds no images"),
    "a missing domain": (["model=cyclegan", "data=unpaired", "data.a=pairs", "data.b=none"], "/none does not exist"),
    "unmatched pairs": (["model=pix2pix", "data=paired", "data.a=pairs", "data.b=unpaired/trainA"], "pairs/7.png"),
    "a direction that there is not": (
        ["model=pix2pix", "data=paired", "data.root=pairs", "data.direction=b2c"], "data.direction=b2c must be a2b or b2a",
    ),
    "an evaluation of generated images": (
        ["model=restoration", "task=denoise", "evaluation=shapes"], "measures images generated without an input",
    ),
    "translation of a GAN": (["evaluation=translation"], "this evaluation"),
    "a validation of nothing": (["model=restoration", "task=denoise", "data.validation=0.01"], "leaves 0 for validation"),
    "a validation of a GAN": (["data.validation=0.25"], "data.validation=0.25 has no effect on this model, a GAN"),
    "a size that cannot be halved": (
        ["model=restoration", "task=denoise", "model.translator.num_downs=2", "data.image_size=18"],
        "multiples of 4 pixels, not 18x18: change data.image_size",
    ),
    "an image of one pixel to normalise": (
        [
            "model=restoration", "task=denoise",
            *(f"model.translator.{each}" for each in ("num_downs=4", "normalisation=instance", "padding=zeros")),
        ],
        "the model's networks do not fit the data's images of 3 channels and 16x16 pixels (Expected more than 1",
    ),
    "a validation of all": (["data.validation=1"], "data.validation=1 must be a share"),
    "an identity of unlike domains": (
        ["model=cyclegan", "data=unpaired", "data.root=unpaired", "data.channels_a=1"], "model.identity_weight=0.5",
    ),
    "a loss of another family": (["model=restoration", "task=denoise", "loss=hinge"], "choose loss=charbonnier, l1, l2"),
    "a penalty without a place": (["model=restoration", "task=denoise", "penalty=[r1]"], "penalty has no effect"),
    "a residual of other channels": (["model=restoration", "task=edges", "model.residual=true"], "set model.residual=false"),
}  # fmt: skip


def test_what_does_not_fit_is_refused_in_one_message(tmp_path: Path) -> None:
    tiny.unpaired_folders(tmp_path / "unpaired")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pairs").mkdir()
    for i in range(8):
        Image.new("RGB", (32, 16)).save(tmp_path / f"pairs/{i}.png")
    common = ["data.image_size=16", "trainer.batch_size=4", "device=cpu", "run_dir=run"]
    sizes = [each for settings in tiny.TRANSLATORS.values() for each in settings if "width" in each]
    commands = []
    for arguments, _ in REFUSED.values():
        model = next((each.removeprefix("model=") for each in arguments if each.startswith("model=")), "dcgan_small")
        small = [each for each in tiny.TRANSLATORS.get(model, []) if each in sizes]
        shapes = [] if any(each.startswith("data=") for each in arguments) else ["data.num_images=24"]
        commands.append(["train", *common, *shapes, *small, *arguments])
    outcomes, output = run(commands, tmp_path)
    assert outcomes == [2] * len(REFUSED), output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
    blocks = output.partition("genimg-train")[2].split(" -> 2\n")
    said = {name: (message, block) for (name, (_, message)), block in zip(REFUSED.items(), blocks, strict=False)}
    assert {name: pair for name, pair in said.items() if pair[0] not in pair[1]} == {}
