"""genimg-eval of models that translate, through the command line: baselines, tables, pictures, modes, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from command_table import run
from PIL import Image
from test_evaluate import Command
from test_translation_table import COMMON, PATCHES, RESTORATION, SHAPES

pytestmark = pytest.mark.usefixtures("unchanged_process")

TRAINING = [*COMMON, "trainer.duration=2 steps"]

RUNS = {
    "denoise": [*SHAPES, *RESTORATION, "task=denoise"],
    "blind": [*SHAPES, *RESTORATION, "task=denoise", "task.amount=[5,50]"],
    "inpaint": [*SHAPES, *RESTORATION, "task=inpaint"],
    "colorize": [*SHAPES, *RESTORATION, "task=colorize", "model.residual=false"],
    "pix2pix": ["data=paired", "data.root=pairs", "model=pix2pix", *PATCHES],
    "cyclegan": ["model=cyclegan", *tiny.TRANSLATORS["cyclegan"], "data.validation=0.34"],
    "gan": ["data.num_images=24", "model=dcgan_small", "model.generator.width=4", "evaluation=shapes"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of models that have hardly been trained, and their data."""
    root = tmp_path_factory.mktemp("trained")
    tiny.unpaired_folders(root / "unpaired")
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 5)):
        (root / "pairs" / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (16, 32, 3), dtype=np.uint8)).save(root / "pairs" / part / f"{i}.png")
    small = [each for each in TRAINING if not each.startswith("evaluation")]
    commands = [
        ["train", *(small if name == "gan" else TRAINING), *arguments, f"run_dir={name}"] for name, arguments in RUNS.items()
    ]
    outcomes, output = run(commands, root)
    assert outcomes == [0] * len(RUNS), output
    return root


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that sees the runs and their data, with a cache of its own."""
    for path in trained.iterdir():
        if path.name != "cache":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def evaluate(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd, home)


def printed(output: str) -> dict[str, dict[str, float]]:
    """The table that the command prints: column -> metric -> value."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["model"])
    titles = re.split(r"\s{2,}", lines[start].strip())
    columns: dict[str, dict[str, float]] = {title: {} for title in titles}
    for line in lines[start + 1 :]:
        name, *values = line.split()
        if name == "measured":
            break
        assert len(values) == len(titles)
        for title, value in zip(titles, values, strict=True):
            columns[title][name] = float(value)
    return columns


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


PIXELS = ("psnr", "ssim", "l1")
METRICS = {"denoise": PIXELS, "pix2pix": PIXELS, "inpaint": (*PIXELS, "psnr_hole", "l1_hole")}


@pytest.mark.parametrize(("run_dir", "name"), [("denoise", "non-local means"), ("inpaint", "biharmonic")])
def test_what_needs_no_training_stands_beside_the_model_and_its_source(run_dir: str, name: str, evaluate: Command, home: Path):
    pytest.importorskip("skimage")
    output = evaluate.succeed(f"ckpt={run_dir}", "classical=true", "device=cpu", "output=result.json", "table=deep/images.csv")
    record = json.loads((home / "result.json").read_text())
    columns = printed(output)
    assert list(columns) == ["model", name, "source", f"model - {name}", "model - source"]
    assert tuple(record["metrics"]) == METRICS[run_dir]
    assert record["others"].keys() == {name, "source"}
    recorded = {"model": record["metrics"], **record["others"]}
    for column in recorded:
        assert columns[column] == pytest.approx(recorded[column], rel=1e-5)
    for column in (name, "source"):
        differences = {metric: value - recorded[column][metric] for metric, value in record["metrics"].items()}
        assert columns[f"model - {column}"] == pytest.approx(differences, rel=1e-4, abs=1e-5)
    # The shapes are plain, so that either way to fill in does much better than what was given.
    assert columns[name]["psnr"] > columns["source"]["psnr"] + 2
    assert columns[name]["l1"] < columns["source"]["l1"]
    rows = read_table(home / "deep" / "images.csv")
    assert [key for key in rows[0] if key.endswith(name)] == [f"{metric} {name}" for metric in METRICS[run_dir]]
    mean = np.mean([float(row[f"psnr {name}"]) for row in rows])
    assert mean == pytest.approx(record["others"][name]["psnr"], rel=1e-5)
    without = evaluate.succeed(f"ckpt={run_dir}", "device=cpu")
    assert printed(without) == {column: columns[column] for column in ("model", "source", "model - source")}


@pytest.mark.parametrize(("run_dir", "count"), [("denoise", 6), ("inpaint", 3), ("pix2pix", 5)])
def test_the_table_has_a_row_for_each_image_the_worst_first(run_dir: str, count: int, evaluate: Command, home: Path) -> None:
    """Six of 24 shapes are held out, of which three are chosen by a hash; five pairs."""
    record = evaluate.result(f"ckpt={run_dir}", f"num_images={count}", "device=cpu", "table=images.csv")
    rows = read_table(home / "images.csv")
    assert record["provenance"]["translation"]["num_images"] == len(rows) == count
    assert record["provenance"]["translation"]["held_out"]
    titles = {"inpaint": ["14", "16", "20"], "pix2pix": [f"{i}.png" for i in range(5)]}
    assert run_dir not in titles or sorted(Path(row["image"]).name for row in rows) == titles[run_dir]
    ratios = [float(row["psnr model"]) for row in rows]
    assert ratios == sorted(ratios)
    assert len(set(ratios)) == count
    for metric, value in record["metrics"].items():
        assert np.mean([float(row[f"{metric} model"]) for row in rows]) == pytest.approx(value, rel=1e-5)
    assert list(rows[0]) == ["image", *(f"{metric} {name}" for name in ("model", "source") for metric in METRICS[run_dir])]


def test_a_row_of_the_table_is_the_image_of_that_number(evaluate: Command, home: Path) -> None:
    """The source's numbers need no model: against those of the files themselves."""
    evaluate.succeed("ckpt=pix2pix", "num_images=3", "device=cpu", "table=images.csv")
    rows = read_table(home / "images.csv")
    assert {Path(row["image"]).name for row in rows} == {"1.png", "2.png", "4.png"}
    for row in rows:
        with Image.open(row["image"]) as image:
            pixels = np.asarray(image).astype(float)
        expected = np.abs(pixels[:, :16] - pixels[:, 16:]).mean() / 255
        assert float(row["l1 source"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("run_dir", "count"), [("denoise", 4), ("inpaint", 4), ("colorize", 2), ("pix2pix", 5)])
def test_the_picture_shows_the_worst_images_one_a_row(run_dir: str, count: int, evaluate: Command, home: Path) -> None:
    evaluate.succeed(f"ckpt={run_dir}", f"num_images={count}", "device=cpu", "picture=deep/worst.png", "table=images.csv")
    with Image.open(home / "deep" / "worst.png") as picture:
        assert picture.size == (3 * 18 + 2, count * 18 + 2)  # source, translation and target, with borders of two pixels
        array = np.asarray(picture.convert("RGB")).astype(float)
    if run_dir != "pix2pix":
        return
    for i, row in enumerate(read_table(home / "images.csv")):
        with Image.open(home / row["image"]) as image:
            pixels = np.asarray(image).astype(float)
        top = 2 + 18 * i
        for left, expected in ((2, pixels[:, :16]), (38, pixels[:, 16:])):
            assert np.abs(array[top : top + 16, left : left + 16] - expected).max() <= 1


def test_a_grey_source_is_no_translation_to_compare_with(evaluate: Command) -> None:
    assert list(printed(evaluate.succeed("ckpt=colorize", "device=cpu"))) == ["model"]
    assert evaluate.result("ckpt=colorize", "device=cpu")["others"] == {}


def test_dropout_in_training_mode_is_measured_and_recorded(evaluate: Command) -> None:
    results = {
        mode: evaluate.result("ckpt=pix2pix", "device=cpu", f"model_mode={mode}") for mode in ("eval", "train")
    }  # fmt: skip
    modes = {mode: record["provenance"]["translation"]["mode"] for mode, record in results.items()}
    assert modes == {"eval": "eval", "train": "train"}
    assert results["eval"]["metrics"]["psnr"] != pytest.approx(results["train"]["metrics"]["psnr"], rel=1e-4)
    assert evaluate.result("ckpt=pix2pix", "device=cpu", "model_mode=train")["metrics"] == results["train"]["metrics"]
    assert evaluate.result("ckpt=pix2pix", "device=cpu")["metrics"] == results["eval"]["metrics"]
    assert "translated in train mode" in evaluate.succeed("ckpt=pix2pix", "device=cpu", "model_mode=train")


def test_neither_the_batch_size_nor_other_work_changes_the_values_but_the_seed_does(evaluate: Command) -> None:
    record = evaluate.result("ckpt=denoise", "device=cpu")
    again = evaluate.result("ckpt=denoise", "device=cpu", "batch_size=3")
    assert again["metrics"] == pytest.approx(record["metrics"], rel=1e-3)
    other = evaluate.result("ckpt=denoise", "device=cpu", "seed=1")  # other noise
    assert other["metrics"]["psnr"] != pytest.approx(record["metrics"]["psnr"], rel=1e-4)
    assert [each["provenance"]["translation"]["seed"] for each in (record, other)] == [0, 1]
    assert record["provenance"]["translation"]["num_images"] == 4
    assert record["checkpoint"].endswith("last.pt")
    assert record["images"] == 8


def test_the_domains_of_unpaired_data_are_measured_in_both_directions(evaluate: Command) -> None:
    record = evaluate.result("ckpt=cyclegan", "device=cpu", "num_images=2")
    assert list(record["metrics"]) == ["cycle_l1_a", "identity_l1_a", "cycle_l1_b", "identity_l1_b", "cycle_l1"]
    assert record["others"] == {}
    assert record["provenance"]["translation"]["num_images"] == 2
    assert record["provenance"]["translation"]["held_out"]
    own = evaluate.succeed("ckpt=cyclegan", "device=cpu", "evaluation=unpaired_translation", "num_images=2")
    assert printed(own)["model"] == pytest.approx(record["metrics"], rel=1e-5)


def test_an_extractor_of_another_evaluation_can_be_added(evaluate: Command) -> None:
    extractor = [
        "+evaluation.extractor._target_=genimg.evaluation.extractors.classifier.Classifier",
        "+evaluation.extractor.classifier=shapes_v2", "+evaluation.extractor.sha256=null",
    ]  # fmt: skip
    for run_dir, evaluation in (("denoise", "translation"), ("cyclegan", "unpaired_translation")):
        record = evaluate.result(f"ckpt={run_dir}", "device=cpu", f"evaluation={evaluation}", *extractor, "num_images=2")
        names = set(record["metrics"])
        if run_dir == "denoise":
            assert names == {"psnr", "ssim", "l1", "fd_shapes_v2", "kd_shapes_v2"}
        else:
            assert "kd_shapes_v2" in names  # evaluation.best_by says what comes first, and is null here
            assert names >= {f"{name}_shapes_v2_{direction}" for name in ("fd", "kd") for direction in ("a2b", "b2a")}
        assert record["provenance"]["extractor"]["name"] == "shapes_v2"


@pytest.mark.parametrize(("run_dir", "folder"), [("pix2pix", "pairs"), ("cyclegan", "unpaired")])
def test_data_that_has_moved_is_found(run_dir: str, folder: str, evaluate: Command, home: Path) -> None:
    expected = evaluate.result(f"ckpt={run_dir}", "device=cpu")
    evaluate.refuse("data.root=nowhere", "does not exist", arguments=[f"ckpt={run_dir}", "device=cpu", "data_root=nowhere"])
    shutil.copytree(home / folder, home / "elsewhere")
    moved = evaluate.result(f"ckpt={run_dir}", "device=cpu", "data_root=elsewhere")
    assert moved["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)
    for path in sorted((home / "elsewhere").rglob("*.png")):
        Image.new("RGB", (32 if folder == "pairs" else 16, 16)).save(path)
    black = evaluate.result(f"ckpt={run_dir}", "device=cpu", "data_root=elsewhere")
    assert black["metrics"] != pytest.approx(expected["metrics"], rel=1e-2)


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "neighbours": (["ckpt=denoise", "neighbors=2"], ["neighbors=2 has no effect on a model that translates images"]),
    "real images": (["ckpt=denoise", "real=shapes"], ["real=shapes has no effect on a model that translates images"]),
    "a number of real images": (["ckpt=denoise", "num_real=4"], ["num_real=4 has no effect on a model that translates"]),
    "a bootstrap": (["ckpt=cyclegan", "bootstrap=9"], ["bootstrap=9 has no effect on a model that translates"]),
    "statistics": (["ckpt=denoise", "save_statistics=a.pt"], ["save_statistics=a.pt has no effect on a model that translates"]),
    "a root of drawn data": (["ckpt=denoise", "data_root=pairs"], ["data_root=pairs has no effect"]),
    "no baseline": (["ckpt=colorize", "classical=true"], ["classical=true", "task=inpaint (biharmonic)", "non-local means"]),
    "noise of any strength": (["ckpt=blind", "classical=true"], ["classical=true", "of one strength"]),
    "a baseline of domains": (["ckpt=cyclegan", "classical=true"], ["classical=true has no effect on unpaired data"]),
    "a table of domains": (["ckpt=cyclegan", "table=a.csv"], ["table=a.csv has no effect on unpaired data"]),
    "a picture of domains": (["ckpt=cyclegan", "picture=a.png"], ["picture=a.png has no effect on unpaired data"]),
    "images from nothing": (["ckpt=denoise", "evaluation=shapes"], ["a Restoration", "choose", "translation"]),
    "targets of domains": (["ckpt=cyclegan", "evaluation=translation"], ["choose", "unpaired_translation"]),
    "domains of targets": (["ckpt=pix2pix", "evaluation=unpaired_translation"], ["choose", "translation"]),
    "a GAN's mode": (["ckpt=gan", "model_mode=train"], ["model_mode=train is for models that translate images"]),
    "a GAN's baseline": (["ckpt=gan", "classical=true"], ["classical=true is for models that translate images"]),
    "a GAN's table": (["ckpt=gan", "table=a.csv"], ["table=a.csv is for models that translate images"]),
    "a GAN's picture": (["ckpt=gan", "picture=a.png"], ["picture=a.png has no effect without neighbors="]),
    "a GAN's translations": (["ckpt=gan", "evaluation=translation"], ["measures translations by a model"]),
    "a mode of images": (["images=pairs", "real=unpaired", "model_mode=train"], ["model_mode=train has no effect on images"]),
    "a baseline of images": (["images=pairs", "real=unpaired", "classical=true"], ["classical=true has no effect on images"]),
    "a table of images": (["images=pairs", "real=unpaired", "table=a.csv"], ["table=a.csv has no effect on images that exist"]),
    "translations of images": (
        ["images=pairs", "real=pairs", "evaluation=translation"], ["measures translations by a model"],
    ),
    "a table that cannot be written": (["ckpt=denoise", "table=pairs"], ["table=pairs is a directory: name a file"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_nothing_is_refused_in_one_message(case: str, evaluate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, words = REFUSED[case]

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("an evaluation was begun")

    monkeypatch.setattr("genimg.data.loader.ImageLoader.examples", forbidden)
    evaluate.refuse(*words, arguments=[*arguments, "device=cpu"])


def test_results_of_two_translators_are_compared(evaluate: Command, home: Path) -> None:
    values = {}
    for mode in ("eval", "train"):
        values[mode] = evaluate.result("ckpt=pix2pix", "device=cpu", f"model_mode={mode}")["metrics"]["psnr"]
        shutil.move(home / "result.json", home / f"{mode}.json")
    output = evaluate.succeed("compare=[eval.json,train.json]")
    row = next(line for line in output.splitlines() if line.startswith("psnr")).split()
    assert [float(number) for number in row[1:]] == pytest.approx([values["eval"], values["train"]], rel=1e-4)


@pytest.mark.parametrize("change", ["num_images=2", "seed=1", "model_mode=train"])
def test_results_of_unlike_translations_do_not_compare(change: str, evaluate: Command, home: Path) -> None:
    evaluate.succeed("ckpt=pix2pix", "device=cpu", "output=one.json")
    evaluate.succeed("ckpt=pix2pix", "device=cpu", change, "output=other.json")
    assert "not comparable" in evaluate.succeed("compare=[one.json,other.json]")
