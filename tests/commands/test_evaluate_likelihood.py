"""genimg-eval with evaluation=likelihood, and split=, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_table import run
from PIL import Image
from test_evaluate import Command

pytestmark = pytest.mark.usefixtures("unchanged_process")

COMMON = [
    "data=shapes", "data.image_size=16", "data.num_images=40", "data.validation=0.25", "trainer.batch_size=8",
    "trainer.duration=2 steps", "trainer.preview_images=4", "precision=fp32", "device=cpu",
]  # fmt: skip
VAE = ["model=vae_fully_connected", "model.encoder.widths=[8]", "model.decoder.widths=[8]", "evaluation=likelihood"]
VAE += ["evaluation.num_samples=3", "likelihood=logistic_mixture", "likelihood.num_mixtures=2"]
RUNS = {
    "vae": VAE,
    "labels": [*VAE, "conditioning=concat"],
    "gan": ["model=dcgan_small", "model.generator.width=4", "data.validation=0", "evaluation=none"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    outcomes, output = run([["train", *COMMON, *arguments, f"run_dir={name}"] for name, arguments in RUNS.items()], root)
    assert outcomes == [0] * len(RUNS), output
    return root


@pytest.fixture
def evaluate(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    for name in RUNS:
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    return Command(monkeypatch, capfd, tmp_path)


def test_the_command_repeats_what_the_run_measured(evaluate: Command, tmp_path: Path) -> None:
    output = evaluate.succeed("ckpt=vae", "output=result.json", "device=cpu")
    record = json.loads((tmp_path / "result.json").read_text())
    summary = json.loads((tmp_path / "vae" / "summary.json").read_text())
    last = summary["last"] if "last" in summary else summary["metrics"]
    for name in ("nll_iw3_nats", "bits_per_dim"):
        found = last[name] if name in last else last["metrics"][name]
        assert record["metrics"][name] == pytest.approx(found, rel=1e-6)
    assert "nll_iw3_nats" in output
    assert "10 held-out images of shapes" in output
    assert "3 samples of each, discretised logistics, 2 a pixel, seed 0" in output


def test_another_number_of_samples_has_another_name_and_a_lower_value(evaluate: Command, tmp_path: Path) -> None:
    evaluate.succeed("ckpt=vae", "num_samples=50", "num_images=5", "output=result.json", "device=cpu")
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert found["nll_iw50_nats"] < -found["elbo_nats"]


def test_images_of_a_folder_are_brought_to_the_models_size(evaluate: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(np.full((20, 30, 3), 60 * i, dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    output = evaluate.succeed("ckpt=vae", "real=photos", "device=cpu")
    assert "measured with 4 images of photos" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt=vae", "bootstrap=10"], "bootstrap=10 has no effect with evaluation=likelihood: remove it"),
        (["ckpt=vae", "num_samples=0"], "num_samples=0 must be a whole number, 1 or more"),
        (["ckpt=vae", "split=test"], "split=test: the data has no splits: use real=DIR"),
        (
            ["ckpt=vae", "split=test", "real=shapes"],
            "split=test selects the checkpoint's own data, but real=shapes names other images",
        ),
        (["ckpt=vae", "evaluation=shapes", "num_samples=4"], "num_samples=4 is for evaluation=likelihood"),
        (["ckpt=gan", "evaluation=likelihood"], "this evaluation needs a model with a likelihood, such as vae, and a GAN"),
        (["ckpt=labels", "real=photos"], "real=photos: the model reads labels, but the classes of these images are none"),
        (["images=photos", "real=shapes", "split=test"], "split=test has no effect on images that exist already: remove it"),
    ],
)
def test_what_means_nothing_is_refused(evaluate: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    evaluate.refuse(message, arguments=[*arguments, "device=cpu"])


def test_grey_images_and_datasets_come_in_the_models_size_and_channels(evaluate: Command, tmp_path: Path) -> None:
    """A model of grey images of 12 px, and a folder and a dataset that know neither."""
    settings = ["data=shapes", "data.image_size=12", "data.channels=1", "data.num_images=16", "trainer.batch_size=8", *VAE]
    outcomes, output = run([["train", *settings, "trainer.duration=1 steps", "device=cpu", "run_dir=grey"]], tmp_path)
    assert outcomes == [0], output
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30), 60 * i, dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    assert "3 images of photos" in evaluate.succeed("ckpt=grey", "real=photos", "device=cpu")
    assert "images of shapes" in evaluate.succeed("ckpt=grey", "real=shapes", "num_images=5", "device=cpu")
