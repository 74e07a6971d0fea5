"""Every diffusion and flow-matching recipe through the command line: trained, resumed bit for bit, sampled and exported."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command_table import options, run, succeed, walk
from errors import raises
from PIL import Image
from sampling import sampled

import genimg
from genimg.errors import ConfigError
from genimg.utils.images import to_uint8

COMMON = [
    "data.image_size=16", "data.num_images=16", "trainer.batch_size=4", "trainer.preview_images=4", "precision=fp32",
    "device=cpu", "evaluation=none", "trainer.checkpoint_interval=1 steps", "trainer.preview_interval=2 steps",
]  # fmt: skip
DISCRETE = ["model.path.num_times=10", "model.path.beta_max=0.5", "sampler.steps=10"]
ROWS = {
    "diffusion": ["model=diffusion"],
    "diffusion_small_labels": ["model=diffusion_small", "conditioning=label"],
    "diffusion_captions": ["model=diffusion", "conditioning=caption"],
    "edm2_labels": ["model=edm2", "conditioning=label", "ema=[exponential,power]"],
    "flow": ["model=flow", "sampler=dpmpp_2m"],
    "flow_small_labels": ["model=flow_small", "conditioning=label", "ema=[exponential,power]"],
    "flow_patches": ["model=flow_small", "model.network.patch_size=2"],
    "flow_dit_labels": ["model=flow_dit_small", "conditioning=label"],
    "flow_data": ["model=flow", "model.prediction=data", "loss=min_snr"],
    "ddpm": ["model=ddpm", *DISCRETE],
    "ddpm_v": ["model=ddpm", *DISCRETE, "model.prediction=v", "loss=min_snr", "sampler=ddim", "sampler.steps=5"],
    "ddpm_cosine": [
        "model=ddpm", "model.path.num_times=10", "model.path.schedule=cosine", "model.path.beta_min=null",
        "model.path.beta_max=null", "sampler=heun", "sampler.steps=5",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(ROWS, lambda name: [ROWS[name][0], "labels" in name, "captions" in name]))
def test_every_recipe_trains_resumes_and_samples(name: str, tmp_path: Path) -> None:
    checkpoint = walk(
        [*COMMON, *ROWS[name], *tiny.DENOISERS[ROWS[name][0].removeprefix("model=")]], tmp_path,
        ["sample", "ckpt=parts", "num_images=2", "steps=2"],
    )  # fmt: skip
    assert checkpoint["method"].keys() >= {"denoiser.sigma_data", "denoiser.network.output.weight"}
    assert list(tmp_path.glob("parts/samples-seed0-*/000001.png"))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_microbatches_see_the_same_noise(accumulation: int, tmp_path: Path) -> None:
    common = [*COMMON, *ROWS["diffusion_small_labels"], *tiny.DIFFUSION, "trainer.duration=2 steps"]
    runs = {"whole": 1, "parts": accumulation}
    succeed([["train", *common, f"trainer.accumulation={n}", f"run_dir={name}"] for name, n in runs.items()], tmp_path)
    whole, parts = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["method"] for name in runs)
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.exhaustive
def test_two_processes_take_the_steps_of_one_and_generate_its_images(tmp_path: Path) -> None:
    common = [*COMMON, *ROWS["diffusion_small_labels"], *tiny.DIFFUSION, "trainer.duration=2 steps"]
    measured = ["evaluation=shapes", "evaluation.num_images=20", "evaluation.num_real=16"]
    environment = os.environ | {"GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for name, starter in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m"])):
        command = [sys.executable, *starter, "genimg.train", *common, *measured, f"run_dir={name}"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    one, two = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("one", "two"))
    for key, value in one["method"].items():
        torch.testing.assert_close(value, two["method"][key], rtol=1e-4, atol=1e-5, msg=key)
    assert one["training"]["last"] == pytest.approx(two["training"]["last"], rel=1e-3, abs=1e-4)


def test_guidance_steps_and_labels_are_chosen_when_sampling_and_evaluating(tmp_path: Path) -> None:
    train = ["train", *COMMON, *ROWS["diffusion_small_labels"], *tiny.DIFFUSION, "trainer.duration=2 steps", "run_dir=run"]
    sample = ["sample", "ckpt=run", "num_images=3", "label=0", "steps=3"]
    evaluate = ["eval", "ckpt=run", "evaluation=shapes", "num_images=20", "sampling.steps=2", "output=result.json"]
    output = succeed(
        [train, [*sample, "guidance=3"], [*sample, "sampler=dpmpp_2m"], [*sample, "batch_size=1"], evaluate], tmp_path
    )
    assert "fd20" in output
    folders = sorted(path.name for path in (tmp_path / "run").glob("samples-*") if path.is_dir())
    assert len(folders) == 3
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["provenance"]["generated"]["steps"], result["provenance"]["generated"]["num_evaluations"]) == (2, 3)
    assert result["metrics"]["denoising_train_16"] > 0
    one, other = (Image.open(tmp_path / "run" / name / "000000.png").tobytes() for name in folders[:2])
    assert one != other


def test_guidance_leads_away_from_captions_classes_and_weaker_checkpoints(tmp_path: Path) -> None:
    common = [*COMMON, *tiny.DIFFUSION, "trainer.duration=2 steps"]
    texts = ["train", *common, *ROWS["diffusion_captions"], "run_dir=texts"]
    labels = ["train", *common, *ROWS["diffusion_small_labels"], "run_dir=labels"]
    guided = ["num_images=2", "guidance=2", "steps=2"]
    earlier = "autoguidance=labels/checkpoints/step-00000001.pt"
    evaluate = ["eval", "ckpt=labels", "evaluation=shapes", "num_images=20", "sampling.steps=2", "sampling.guidance=1.5"]
    succeed([
        texts, labels,
        ["sample", "ckpt=texts", "text=a red circle", "negative=blue", *guided],
        ["sample", "ckpt=labels", "label=circle", "negative=ring", *guided],
        ["sample", "ckpt=labels", "label=circle", earlier, *guided],
        [*evaluate, f"sampling.{earlier}", "output=result.json"],
    ], tmp_path)  # fmt: skip
    names = {path.name for run in ("texts", "labels") for path in (tmp_path / run).glob("samples-*") if path.is_dir()}
    assert names == {
        "samples-seed0-a-red-circle-negative-blue-guidance2-steps2", "samples-seed0-circle-negative-ring-guidance2-steps2",
        "samples-seed0-circle-autoguidance-labels-checkpoints-step-00000001.pt-guidance2-steps2",
    }  # fmt: skip
    recorded = json.loads((tmp_path / "result.json").read_text())["provenance"]["generated"]
    weak = tmp_path / "labels/checkpoints/step-00000001.pt"
    assert recorded["autoguidance"]["sha256"] == hashlib.sha256(weak.read_bytes()).hexdigest()
    codes, output = run([
        ["sample", "ckpt=labels", "autoguidance=labels", *guided], ["sample", "ckpt=labels", "autoguidance=texts", *guided],
        ["sample", "ckpt=labels", "autoguidance=nowhere", *guided], ["sample", "ckpt=labels", "negative=horse", *guided],
        ["sample", "ckpt=labels", "negative=ring", "steps=2"], [*evaluate, f"evaluation.sampling.{earlier}"],
        ["sample", "ckpt=labels", "label=[circle,ring]", "negative=ring", *guided],
        ["sample", "ckpt=texts", "text=a red circle", "negative=a red circle", *guided],
        ["sample", "ckpt=labels", "guidance=nan"], ["eval", "ckpt=labels", "evaluation=shapes", "sampling.steps=0"],
        ["eval", "ckpt=labels", "evaluation=shapes", "steps=2"],
        ["eval", "ckpt=labels", "evaluation=shapes", "sampling.spacing=quadratic"],
        [*labels[:-1], "evaluation=shapes", "evaluation.sampling={steps: 0}", "run_dir=never"],
    ], tmp_path)  # fmt: skip
    assert codes == [2] * 13, output
    for words in (
        "negative=4 is also",
        "negative=a red circle is also",
        "error: guidance=nan",
        "error: sampling.steps=0",
        "error: sampling.spacing=quadratic",
        "sampling.steps=VALUE",
        "error: evaluation.sampling.steps=0",
        "the model itself",
        "condition caption",
        "autoguidance=nowhere",
        "negative=horse",
        "without guidance",
        "loaded here",
    ):
        assert words in output
    model = genimg.load(tmp_path / "labels", device="cpu")
    with raises(ConfigError, "autoguidance"):
        model.sample(2, guidance=2, steps=2, autoguidance=str(tmp_path / "texts"))
    with raises(ConfigError, "negative"):
        model.sample(2, guidance=2, steps=2, label=[0, 4], negative="ring")


@pytest.mark.usefixtures("unchanged_process")
def test_images_are_translated_from_one_class_to_another(tmp_path: Path) -> None:
    train = ["train", *COMMON, *ROWS["diffusion_small_labels"], *tiny.DIFFUSION, "trainer.duration=2 steps", "run_dir=run"]
    blind = ["train", *COMMON, *ROWS["flow"], *tiny.DIFFUSION, "trainer.duration=1 steps", "run_dir=blind"]
    (tmp_path / "photos/more").mkdir(parents=True)
    for name, size in {"a.png": (16, 16), "more/b.jpg": (40, 24)}.items():
        Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "photos" / name)
    pair = ["translate", "ckpt=run", "input=photos", "label_from=circle", "steps=3"]
    output = succeed([train, blind, [*pair, "label_to=ring", "output=rings"], [*pair, "label_to=3", "output=others"]], tmp_path)
    assert output.count("classes are ignored: to generate a chosen one, set conditioning=label\n") == 1
    sizes = {name: Image.open(tmp_path / "rings" / name).size for name in ("a.png", "more/b.png")}
    assert set(sizes.values()) == {(16, 16)}
    assert (tmp_path / "rings.png").is_file()
    assert json.loads((tmp_path / "rings/genimg.json").read_text())["options"]["label_to"] == "ring"
    made = genimg.load(tmp_path / "run", device="cpu").translate_labels(
        [Image.open(tmp_path / "photos/a.png")], label_from=0, label_to="ring", steps=3
    )
    written = torch.from_numpy(np.array(Image.open(tmp_path / "rings/a.png"))).permute(2, 0, 1)
    assert (to_uint8(made)[0].int() - written.int()).abs().max() <= 1
    codes, output = run([
        [*pair, "output=out"], [*pair, "label_to=horse", "output=out"], [*pair, "label_to=ring", "direction=a2b", "output=out"],
        ["translate", "ckpt=blind", "input=photos", "output=out"],
        ["translate", "ckpt=blind", "input=photos", "label_from=0", "label_to=1", "output=out"],
    ], tmp_path)  # fmt: skip
    assert codes == [2] * 5, output
    for words in ("label_to is required", "label_to=horse", "direction=a2b", "use genimg-sample", "label_from=0 needs"):
        assert words in output
    assert not (tmp_path / "out").exists()


def test_the_table_has_every_model() -> None:
    names = {row[0].removeprefix("model=") for row in ROWS.values()}
    of_table = {name for name in options("model") if name.startswith(("diffusion", "flow", "ddpm", "edm"))}
    assert names == of_table - tiny.RANDOM_TRANSLATORS.keys()
    assert options("sampler") - {"none"} == {"heun", "euler", "ddim", "ancestral", "dpmpp_2m", "bridge", "one_step"}


EXPERIMENTS = [name for name in sorted(options("experiment")) if tiny.model_of(name) in tiny.DENOISERS]


@pytest.mark.parametrize("experiment", sampled(EXPERIMENTS, lambda name: [tiny.model_of(name)]))
def test_every_experiment_takes_two_steps_on_tiny_images(experiment: str, tmp_path: Path) -> None:
    images = ["data=shapes", "trainer.duration=8 images", "trainer.checkpoint_interval=8 images"]
    succeed([["train", f"experiment={experiment}", *COMMON, *tiny.DIFFUSION, *images, "run_dir=run"]], tmp_path)
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
