"""A run that is resumed, and an evaluation of its checkpoint, notice that the images are not those of before."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from genimg import cli
from genimg.config.compose import compose, thaw
from genimg.config.resume import differences, find_start

pytestmark = pytest.mark.usefixtures("unchanged_process")

ARGUMENTS = [
    "data=folder", "data.image_size=16", "model=dcgan_small", "model.generator.width=4", "model.latent.dim=4",
    "conditioning=projection", "trainer.batch_size=4", "trainer.duration=2 steps", "trainer.preview_images=4", "device=cpu",
    "precision=fp32", "evaluation=none",
]  # fmt: skip
EVALUATION = [
    "evaluation=shapes", "~evaluation.metrics.kernel_distance", "~evaluation.metrics.precision_recall",
    "~evaluation.metrics.inception_score", "num_images=4", "num_real=4", "device=cpu",
]  # fmt: skip
CLASSES = {"automobile": 5, "bird": 6}


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def run(command: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["genimg", *arguments])
    try:
        command()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``images`` and a ``run`` of two steps on them."""
    home = tmp_path_factory.mktemp("trained")
    for label, (name, count) in enumerate(CLASSES.items()):
        for i in range(count):
            draw(home / "images" / name / f"{i}.png", 100 * label + i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENIMG_CACHE", str(home / "cache"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        assert run(cli.train, patch, *ARGUMENTS, f"data.root={home / 'images'}", f"run_dir={home / 'run'}") == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    for name in ("images", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def resume(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run(cli.train, monkeypatch, *ARGUMENTS, f"data.root={home / 'images'}", f"run_dir={home / 'run'}", "resume=auto",
               "trainer.duration=3 steps", *arguments)  # fmt: skip


def state(home: Path) -> dict[str, Any]:
    return torch.load(home / "run" / "checkpoints" / "last.pt", weights_only=True)


def test_a_run_goes_on_with_a_copy_of_its_images(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert resume(home, monkeypatch) == 0
    assert "have changed" not in "".join(capfd.readouterr())
    after = state(home)
    assert after["training"]["images"] == 12
    assert after["data_history"] == []
    assert after["data"]["class_names"] == list(CLASSES)
    assert after["data"]["class_counts"] == list(CLASSES.values())
    assert json.loads((home / "run" / "summary.json").read_text())["data"] == after["data"]


def test_a_run_without_classes_resumes_bit_for_bit_where_its_data_has_classes_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Earlier versions did not skip directories that all images share, and so found no classes below ``all``."""
    for label, (name, count) in enumerate(CLASSES.items()):
        for i in range(count):
            draw(tmp_path / "images" / "all" / name / f"{i}.png", 100 * label + i)
    chosen = "data.max_images=5"  # chosen by class if there are classes
    arguments = [*ARGUMENTS, f"data.root={tmp_path / 'images'}", chosen, "conditioning=none"]
    with monkeypatch.context() as former:
        former.setattr("genimg.data.classes.length_of_shared", lambda paths: 0)
        assert run(cli.train, monkeypatch, *arguments, f"run_dir={tmp_path / 'run'}") == 0
        assert run(cli.train, monkeypatch, *arguments, f"run_dir={tmp_path / 'whole'}", "trainer.duration=3 steps") == 0
    capfd.readouterr()
    assert run(cli.train, monkeypatch, f"resume={tmp_path / 'run'}", "trainer.duration=3 steps") == 0
    assert "have changed" not in "".join(capfd.readouterr())
    after, whole = (torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("run", "whole"))
    assert after["data"] == whole["data"]
    assert after["data"]["class_names"] == []
    for name, tensor in whole["method"].items():
        assert torch.equal(after["method"][name], tensor)
    assert run(cli.evaluate, monkeypatch, f"ckpt={tmp_path / 'run'}", *EVALUATION) == 0
    assert "not what the model was trained on" not in "".join(capfd.readouterr())


REFUSED = {
    "a renamed class": (lambda images: (images / "automobile").rename(images / "vehicle"), "vehicle"),
    "an image more": (lambda images: draw(images / "bird" / "6.png", 9), "12 images"),
    "other names": (lambda images: (images / "bird" / "0.png").rename(images / "bird" / "9.png"), "different names"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_other_classes_counts_and_orders_are_refused_but_with_force(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, change: str
) -> None:
    edit, word = REFUSED[change]
    edit(home / "images")
    before = state(home)
    assert resume(home, monkeypatch) != 0
    errors = capfd.readouterr().err
    assert word in errors
    assert "resume_force=true" in errors
    assert state(home)["training"]["images"] == 8
    assert resume(home, monkeypatch, "resume_force=true") == 0
    assert state(home)["data_history"] == [{"until_images": 8, **before["data"]}]


def test_another_number_of_classes_does_not_fit_the_model(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    draw(home / "images" / "cat" / "0.png", 9)
    for force, words in (("false", "the classes are now"), ("true", "fit")):
        assert resume(home, monkeypatch, f"resume_force={force}") == 2
        assert words in capfd.readouterr().err.splitlines()[-1]
    assert state(home)["training"]["images"] == 8


def test_swapped_images_are_warned_of_and_recorded(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    before = state(home)
    one, other = home / "images" / "bird" / "0.png", home / "images" / "bird" / "1.png"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert resume(home, monkeypatch) == 0
    assert "the images' contents have changed" in "".join(capfd.readouterr())
    assert state(home)["data_history"] == [{"until_images": 8, **before["data"]}]
    assert json.loads((home / "run" / "summary.json").read_text())["data_history"] == state(home)["data_history"]
    assert resume(home, monkeypatch, "trainer.duration=4 steps") == 0
    assert "have changed" not in "".join(capfd.readouterr())
    assert len(state(home)["data_history"]) == 1, "it stays, and nothing is added"


def test_a_checkpoint_without_the_record_is_warned_of(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    old = {key: value for key, value in state(home).items() if key not in ("data", "data_history")}
    for path in (home / "run" / "checkpoints").glob("*.pt"):
        torch.save(old, path)
    (home / "images" / "automobile").rename(home / "images" / "vehicle")
    assert resume(home, monkeypatch) != 0, "the names of classes were recorded before, too"
    (home / "images" / "vehicle").rename(home / "images" / "automobile")
    capfd.readouterr()
    assert resume(home, monkeypatch) == 0
    assert "does not record which images" in "".join(capfd.readouterr())
    assert state(home)["data"]["num_images"] == 11


def test_an_evaluation_refuses_other_classes_and_warns_of_other_images(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def evaluate() -> tuple[int, str]:
        capfd.readouterr()
        code = run(cli.evaluate, monkeypatch, f"ckpt={home / 'run'}", f"data_root={home / 'images'}", *EVALUATION)
        return code, "".join(capfd.readouterr())

    code, output = evaluate()
    assert code == 0, output
    assert "trained on:" not in output
    draw(home / "images" / "bird" / "0.png", 9)
    code, output = evaluate()
    assert code == 0, output
    assert "not what the model was trained on: the images' contents" in output
    (home / "images" / "automobile").rename(home / "images" / "vehicle")
    code, output = evaluate()
    assert code != 0
    assert "bird, vehicle, not automobile, bird" in output


# Paths


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["data=folder", "data.root=images"], {"data.root": "images"}),
        (["data=npz", "data.path=sub/a.npz"], {"data.path": "sub/a.npz"}),
        (["data=paired", "data.a=a", "data.b='~/b'"], {"data.a": "a", "data.b": "HOME/b"}),
        (["data=unpaired", "data.a=/else/a", "data.b=b"], {"data.a": "/else/a", "data.b": "b"}),
        (["data=folder", "data.root=.", "task=inpaint_files", "task.mask.folder=holes"],
         {"data.root": ".", "task.mask.folder": "holes"}),
        (["data=folder", "data.root=a", "data.captions=c.jsonl"], {"data.root": "a", "data.captions": None}),
    ],
)  # fmt: skip
def test_every_path_of_the_images_counts_from_where_the_run_was_started(
    overrides: list[str], keys: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = find_start(compose([*overrides, "evaluation=none", "run_dir=run"]), tmp_path / "run").config
    for tree in (thaw(config.raw), thaw(config)):
        for key, expected in keys.items():
            found = OmegaConf.select(OmegaConf.create(tree), key)
            if expected is None:  # as seen from data.root, so it stays
                assert found == "c.jsonl"
            else:
                assert Path(found) == tmp_path / expected.replace("HOME", str(tmp_path / "home"))
                assert Path(found).is_absolute()


def test_a_run_on_an_archive_and_masks_is_resumed_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    np.savez("a.npz", np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    for i in range(2):
        draw(Path("holes") / f"{i}.png", i)
    arguments = [
        "data=npz", "data.path=a.npz", "data.image_size=16", "task=inpaint_files", "task.mask.folder=holes",
        "model=restoration",
        "model.translator.width=4", "model.translator.num_blocks=1", "trainer.batch_size=4", "trainer.preview_images=4",
        "device=cpu", "precision=fp32", "evaluation=none", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert run(cli.train, monkeypatch, *arguments, "trainer.duration=2 steps") == 0
    monkeypatch.chdir(tmp_path / "second")
    assert run(cli.train, monkeypatch, f"resume={tmp_path / 'run'}", "trainer.duration=3 steps") == 0, capfd.readouterr().err
    assert state(tmp_path)["training"]["images"] == 12


def test_a_part_of_the_data_is_recorded_and_another_part_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    arguments = [*ARGUMENTS, f"data.root={home / 'images'}", f"run_dir={home / 'part'}"]
    assert run(cli.train, monkeypatch, *arguments, "data.max_images=8") == 0
    assert "a random part of 11 images" in capfd.readouterr().out
    summary = json.loads((home / "part" / "summary.json").read_text())
    assert (summary["data"]["num_images"], summary["data"]["part_of"]) == (8, 11)
    assert summary["data"]["class_counts"] == [4, 4]
    for changed, shown in (["data.max_images=7"], "8 -> 7"), ([], "8 -> None"):
        assert run(cli.train, monkeypatch, *arguments, "resume=auto", "trainer.duration=3 steps", *changed) == 2
        assert f"data.max_images: {shown}" in capfd.readouterr().err
    assert run(cli.train, monkeypatch, f"resume={home / 'part'}", "trainer.duration=3 steps") == 0
    assert run(cli.train, monkeypatch, *arguments, f"run_dir={home / 'more'}", "data.max_images=12") == 2
    assert "data.max_images=12 has no effect" in capfd.readouterr().err


def test_a_run_from_before_there_was_max_images_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (home / "run" / "checkpoints").glob("*.pt"):
        saved = torch.load(path, weights_only=True)
        for name in ("config", "raw_config"):
            del saved[name]["data"]["max_images"]
        del saved["data"]["part_of"]
        torch.save(saved, path)
    assert resume(home, monkeypatch) == 0
    assert run(cli.train, monkeypatch, f"resume={home / 'run'}", "trainer.duration=4 steps") == 0


def test_the_order_and_repetitions_of_frozen_parts_do_not_matter() -> None:
    before = {"freeze": ["generator.layers.0", "discriminator"], "seed": 0}
    for freeze in (["discriminator", "generator.layers.0"], [*before["freeze"], "discriminator", "discriminator.features"]):
        assert differences(before, {"freeze": freeze, "seed": 0}) == {}
    assert list(differences(before, {"freeze": ["discriminator"], "seed": 0})) == ["freeze"]
    assert list(differences({"seed": 0}, {"freeze": ["discriminator"], "seed": 0})) == ["freeze"]
    assert differences({"seed": 0}, {"seed": 0}) == {}  # of a version without freeze
    assert differences({"init_parts": ["b", "a"]}, {"init_parts": ["a", "b", "b"]}) == {}
    for damaged in ({"a": 1}, "x", [1], [["x"]]):  # a checkpoint may hold anything
        assert differences({"freeze": damaged}, {"freeze": damaged}) == {}
        assert differences({"freeze": damaged}, {"freeze": ["b"]})
