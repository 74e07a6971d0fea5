"""Reflow through the command line: pairs of a flow are packed, and a model is trained, resumed and sampled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from command_table import options, run, succeed, walk

import genimg
from genimg.config.compose import compose
from genimg.data.datasets.prepared import prepared
from genimg.utils.digests import digest_of
from genimg.utils.images import to_uint8
from genimg.utils.rng import normal_latents

COMMON = [
    "data.image_size=16", "trainer.batch_size=4", "trainer.preview_images=4", "precision=fp32", "device=cpu",
    "evaluation=none", "trainer.checkpoint_interval=1 steps", "trainer.preview_interval=2 steps", *tiny.DIFFUSION,
]  # fmt: skip
FLOWS = {
    "flow": ["model=flow_small"],
    "labels": ["model=flow_small", "conditioning=label", "ema=[exponential]"],
    "captions": ["model=flow_small", "conditioning=caption"],
}
PAIRS = ["prepare", "device=cpu", "num_images=10", "sampling.steps=3"]
REFLOW = ["model=reflow_small", *COMMON, "data=prepared"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flows and their pairs, and a GAN."""
    folder = tmp_path_factory.mktemp("flows")
    fixed = ["data.num_images=16", "trainer.duration=2 steps"]
    commands = [["train", *COMMON, *settings, *fixed, f"run_dir={name}"] for name, settings in FLOWS.items()]
    output = succeed([*commands, *([*PAIRS, f"pairs={name}", f"output=pairs_{name}", "seed=3"] for name in FLOWS)], folder)
    assert "genimg-train model=reflow init_from=flow data=prepared data.root=pairs_flow" in output
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize("name", FLOWS)
def test_pairs_are_images_of_the_model_with_their_noise_and_not_those_of_samples(name: str, home: Path) -> None:
    source = prepared(root=str(home / f"pairs_{name}"), image_size=16, channels=3)
    indices = np.arange(10)
    method: Any = genimg.load(home / name, device="cpu").method
    drawn = method.draw(range(2**32, 2**32 + 10), 3)
    made = to_uint8(method.sample(drawn, method.sampling_options.replaced(steps=3)))
    assert np.array_equal(source.read_many(indices), made.numpy())
    assert source.latent_key == "noise"
    expected = normal_latents(3, range(2**32, 2**32 + 10), 768).view(10, 3, 16, 16).half()
    assert np.array_equal(source.latents(indices), expected.numpy())
    assert not np.isin(expected.numpy(), normal_latents(3, range(10), 768).half().numpy()).all(axis=(1, 2, 3)).any()
    if name == "labels":
        assert source.labels is not None
        assert np.array_equal(source.labels, drawn["label"].numpy())
        assert source.class_names == ("circle", "square", "triangle", "cross", "ring")
    assert source.captioned == (name == "captions")
    if name == "captions":
        assert all(isinstance(text, str) and text.startswith("a ") for text in source.captions(indices))


def test_where_the_pairs_come_from_is_recorded(home: Path) -> None:
    recorded = json.loads((home / "pairs_labels/dataset.json").read_text())
    state = torch.load(home / "labels/checkpoints/last.pt", weights_only=True)
    assert recorded["latents"]["sha256"] == digest_of({**state["method"], **state["averages"]["exponential"]})
    assert recorded["latents"]["run"].endswith("labels/checkpoints/last.pt")
    source = recorded["source"]
    assert (source["weights"], source["seed"], source["checkpoint_images"]) == ("ema", 3, 8)
    assert (source["sampling"]["sampler"], source["sampling"]["steps"]) == ("heun", 3)


@pytest.mark.parametrize("name", FLOWS)
def test_reflow_starts_from_the_flow_resumes_and_samples(name: str, home: Path) -> None:
    own = [each for each in FLOWS[name] if not each.startswith("model=")]
    arguments = [*REFLOW, *own, f"data.root=pairs_{name}", f"init_from={name}"]
    checkpoint = walk(arguments, home, ["sample", "ckpt=parts", "num_images=2", "steps=2"])
    assert checkpoint["config"]["sampler"]["steps"] == 1
    lines = [json.loads(line) for line in (home / "whole/metrics.jsonl").read_text().splitlines()]
    assert any("loss/denoising" in line for line in lines)
    assert list(home.glob("parts/samples-seed0-*/000001.png"))


def test_reflow_continues_with_the_weights_of_the_flow(home: Path) -> None:
    succeed([["train", *REFLOW, "data.root=pairs_flow", "init_from=flow", "optimizer.lr=1e-9", "trainer.duration=1 steps",
              "run_dir=second"]], home)  # fmt: skip
    before, after = (torch.load(home / name / "checkpoints/last.pt", weights_only=True) for name in ("flow", "second"))
    assert before["method"].keys() == after["method"].keys()
    for key, value in before["averages"]["exponential"].items():
        torch.testing.assert_close(after["method"][key], value, rtol=0, atol=1e-6)


def test_microbatches_and_held_out_pairs(home: Path) -> None:
    common = ["train", *REFLOW, "data.root=pairs_flow", "trainer.duration=2 steps"]
    measured = ["evaluation=shapes", "evaluation.num_images=20", "evaluation.num_real=8", "data.validation=0.2"]
    succeed([
        [*common, "run_dir=whole"], [*common, "trainer.accumulation=2", "run_dir=parts"],
        [*common, *measured, "run_dir=measured"],
        ["eval", "ckpt=measured", "real=shapes", "evaluation=shapes", "num_images=20", "num_real=20", "device=cpu"],
    ], home)  # fmt: skip
    whole, parts = (torch.load(home / name / "checkpoints/last.pt", weights_only=True)["method"] for name in ("whole", "parts"))
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], rtol=1e-4, atol=1e-5, msg=key)
    text = (home / "measured/metrics.jsonl").read_text()
    assert "denoising_held_out_2" in text


@pytest.mark.exhaustive
def test_two_processes_take_the_steps_of_one(home: Path) -> None:
    environment = os.environ | {"GENIMG_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    common = [*REFLOW, "data.root=pairs_flow", "trainer.duration=3 steps"]
    for name, starter in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m"])):
        command = [sys.executable, *starter, "genimg.train", *common, f"run_dir={name}"]
        subprocess.run(command, cwd=home, env=environment, check=True, timeout=300)
    one, two = (torch.load(home / name / "checkpoints/last.pt", weights_only=True)["method"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5, msg=key)


def test_the_other_storages_and_a_dry_run_work(home: Path) -> None:
    common = ["train", *REFLOW, "data.root=pairs_flow", "trainer.duration=2 steps"]
    succeed([
        [*common, "data.storage=device", "run_dir=device"],
        [*common, "data.storage=workers", "data.num_workers=0", "run_dir=workers"], [*common, "dry_run=true"],
    ], home)  # fmt: skip
    one, other = (
        torch.load(home / name / "checkpoints/last.pt", weights_only=True)["method"] for name in ("device", "workers")
    )
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_errors_name_the_key(home: Path) -> None:
    other = ["train", "model=dcgan_small", *tiny.SIZES["dcgan_small"], "data.image_size=16", "data.num_images=16", "device=cpu",
             "evaluation=none", "trainer.batch_size=4", "trainer.duration=1 steps", "run_dir=gan"]  # fmt: skip
    edm = ["train", "model=diffusion_small", *COMMON, "data.num_images=16", "trainer.duration=1 steps", "run_dir=edm"]
    succeed([other, edm], home)
    pairs, start = [*PAIRS, "output=out"], ["train", *REFLOW, "trainer.duration=1 steps", "run_dir=out"]
    commands = {
        "pairs=nowhere: checkpoint": [*pairs, "pairs=nowhere"],
        "pairs=gan holds a GAN": [*pairs[:-2], "output=out", "pairs=gan"],
        "num_images is required with pairs=": ["prepare", "pairs=flow", "output=out"],
        "num_images=0 must be 1 or more": [*pairs, "pairs=flow", "num_images=0"],
        "batch_size=0 must be 1 or more": [*pairs, "pairs=flow", "batch_size=0"],
        "data has no effect with pairs=flow": [*pairs, "pairs=flow", "data=shapes"],
        "data has no effect with pairs=flow:": [*pairs, "pairs=flow", "data.image_size=64"],
        "autoencoder=gan has no effect with pairs=flow": [*pairs, "pairs=flow", "autoencoder=gan"],
        "max_corrupt=3 has no effect with pairs=flow": [*pairs, "pairs=flow", "max_corrupt=3"],
        "num_images=10 has no effect without pairs=RUN": ["prepare", "data=shapes", "num_images=10", "output=out"],
        "sampling={'steps': 3} has no effect without pairs=RUN": ["prepare", "data=shapes", "sampling.steps=3", "output=out"],
        "sampling.sampler=heun, euler or dpmpp_2m": [*pairs, "pairs=flow", "sampling.sampler=ancestral"],
        "needs a sampler without randomness": [*pairs, "pairs=flow", "sampling.sampler=ddim", "sampling.eta=1"],
        "so that the noise determines the image": [*pairs, "pairs=edm", "sampling.churn=1"],
        "unknown key stepz": [*pairs, "pairs=flow", "sampling.stepz=3"],
        "sampling.guidance=2 has no effect": [*pairs, "pairs=flow", "sampling.guidance=2"],
        "genimg-prepare pairs=RUN": ["train", "model=reflow_small", *COMMON, "trainer.duration=1 steps", "run_dir=out"],
        "data.horizontal_flip=true and augmentation": [*start, "data.root=pairs_flow", "data.horizontal_flip=true"],
        "model.prediction=data does not work": [*start, "data.root=pairs_flow", "model.prediction=data"],
        "init_from=edm does not fit": [*start, "data.root=pairs_flow", "init_from=edm", "model.network.width=16"],
    }  # fmt: skip
    codes, output = run(list(commands.values()), home)
    for code, (text, command) in zip(codes, commands.items(), strict=True):
        assert code == 2, command
        assert text in output, text
    assert not (home / "out").exists()


def test_pairs_of_a_guided_model_are_allowed(home: Path) -> None:
    guided = ["sampling.guidance=2", "sampling.negative=ring", "batch_size=4"]
    succeed([[*PAIRS, "pairs=labels", *guided, "output=guided"]], home)
    recorded = json.loads((home / "guided/dataset.json").read_text())["source"]["sampling"]
    assert (recorded["guidance"], recorded["negative"]) == (2, 4)


def test_the_table_has_every_model() -> None:
    assert {name for name in options("model") if name.startswith("reflow")} == tiny.REFLOW.keys()
    assert {name for name in options("experiment") if name.startswith("reflow")} == {"reflow_mnist"}


def test_the_larger_model_and_the_experiment_take_two_steps(home: Path) -> None:
    small = [*COMMON, "trainer.duration=2 steps", "data.root=pairs_flow"]
    succeed([
        ["train", "model=reflow", *small, "data=prepared", "run_dir=large"],
        ["train", "experiment=reflow_mnist", *small, "data.channels=3", "init_from=flow", "run_dir=run"],
    ], home)  # fmt: skip
    assert (home / "run/checkpoints/last.pt").is_file()


@pytest.mark.parametrize("name", ["flow", "flow_small"])
def test_the_network_is_that_of_the_flow_whose_weights_it_starts_from(name: str) -> None:
    flow, reflow = (compose([f"model={each}"], "train").config.model.network for each in (name, f"re{name}"))
    assert reflow == flow
