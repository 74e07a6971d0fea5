"""genimg-features: from labelled images to a config that evaluates, and what a user is told when that cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from fork_server import run_command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from genimg.api import train_features as library
from genimg.commands.features import train_features
from genimg.errors import ConfigError
from genimg.utils.paths import config_dir

SMALL = ["data=folder", "data.root=pictures", "data.image_size=16", "epochs=1", "batch_size=8", "device=cpu"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that relative paths and caches land in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(command, *arguments)


def succeed(command: str, *arguments: str) -> str:
    result = run(command, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def refuse(*words: str, arguments: list[str]) -> None:
    """genimg-features exits with 2 and one message that holds all ``words``, without a traceback."""
    result = run("features", *arguments)
    output = result.stdout + result.stderr
    assert result.returncode == 2, output
    assert "Traceback" not in output, output
    assert output.count("error: ") == 1, output
    message = result.stderr.split("genimg-features: error: ", 1)[1]
    for word in words:
        assert word in message, output


def write_pictures(folder: Path, *, classes: tuple[str, ...] = ("dark", "bright"), each: int = 20) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            values = random.integers(0, 100, (16, 16, 3)) + 150 * number
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{i:02d}.png")


def test_a_classifier_of_a_folder_evaluates_images_by_the_config_beside_it(home: Path) -> None:
    write_pictures(home / "pictures")
    output = succeed("features", *SMALL, "name=greys", "output=a folder", "held_out=4")
    weights, config = home / "a folder" / "greys.pt", home / "a folder" / "evaluation" / "greys.yaml"
    assert sorted(path.name for path in home.rglob("*") if "greys" in path.name) == ["greys.pt", "greys.yaml"]
    record = torch.load(weights, weights_only=True)
    assert (record["num_train"], record["num_test"], record["epochs"]) == (30, 10, 1)
    assert record["class_names"] == ["bright", "dark"]
    assert f"accuracy {record['test_accuracy']:.4f} on 10 held-out images" in output
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    extractor = OmegaConf.load(config).extractor
    assert (extractor.classifier, extractor.sha256) == (str(weights), digest)

    (home / "elsewhere").mkdir()
    os.chdir(home / "elsewhere")  # the config names its file wherever it is used from
    arguments = ["--config-dir", "../a folder", "evaluation=greys", f"real={home / 'pictures'}", "device=cpu"]
    output = succeed("evaluate", *arguments, f"images={home / 'pictures' / 'dark'}", "output=result.json")
    result = json.loads((home / "elsewhere" / "result.json").read_text())
    assert "fd20_greys" in output
    assert result["provenance"]["extractor"]["weights_sha256"] == digest
    # Half of the real images are missing: what is there is real, and does not cover what is not.
    values = result["metrics"]
    assert values["fd20_greys"] > 0.0
    assert values["precision20_greys"] >= 0.9  # of 20, two may miss: each side is random, and they share only some images
    assert 0.4 < values["recall20_greys"] < 0.6


@pytest.mark.parametrize(
    ("classes", "arguments", "words"),
    [
        (("only",), ["name=greys"], ["data=folder has no labels", "its own subdirectory"]),
        (("dark", "bright"), ["name=my-greys"], ["name=my-greys", "letters, digits and _"]),
        (("dark", "bright"), ["name=greys", "data.image_size=[16,24]"], ["square images", "16x24 pixels", "data.image_size"]),
    ],
)
def test_bad_input_gets_one_clear_message_and_leaves_nothing(
    classes: tuple[str, ...], arguments: list[str], words: list[str], home: Path
) -> None:
    write_pictures(home / "pictures", classes=classes)
    refuse(*words, arguments=[*SMALL, *arguments])
    assert [path.name for path in home.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["name=../greys"], "letters"),
        (["name=greys", "data.channels=4"], "data.channels"),
        (["name=greys", "epochs=0"], "epochs=0"),
        (["name=greys", "batch_size=1"], "batch_size=1"),
        (["name=greys", "held_out=1"], "held_out=1"),
        (["name=greys", "batch_size=100"], "batch_size=100"),
        (["name=greys", "device=tpu"], "device=tpu"),
        (["name=greys", "data._target_=os.system"], "data._target_=os.system"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(arguments: list[str], words: str, home: Path) -> None:
    write_pictures(home / "pictures")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("features", [*SMALL, *arguments])
    with raises(ConfigError, word=words):
        train_features(config)
    assert not list(home.rglob("*.pt"))
    assert not list(home.rglob("*.yaml"))


@pytest.mark.parametrize("folder", ["Größen", "\N{GRINNING FACE}"])
def test_the_config_finds_its_file_in_a_folder_of_any_name(folder: str, home: Path) -> None:
    write_pictures(home / "pictures")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("features", [*SMALL, "name=greys", f"output='{folder}'"])
    train_features(config)
    path = home / folder / "greys.pt"
    assert path.is_file()
    assert OmegaConf.load(home / folder / "evaluation" / "greys.yaml").extractor.classifier == str(path)


def test_an_output_that_cannot_be_written_is_found_before_the_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(home / "pictures")
    (home / "occupied").write_text("a file")
    trained: list[object] = []
    monkeypatch.setattr(library, "train_classifier", lambda *arguments, **keywords: trained.append(arguments))
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("features", [*SMALL, "name=greys", "output=occupied"])
    with raises(OSError, word="occupied"):
        train_features(config)
    assert not trained
