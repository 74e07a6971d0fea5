"""genimg-eval on images from anywhere: what it measures, what it writes, and what it refuses with one message."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from genimg import cli
from genimg.data.datasets.builtin import folder
from genimg.data.packing import pack
from genimg.data.subsets import fixed_subset
from genimg.evaluation.extractors.classifier import Classifier

pytestmark = pytest.mark.usefixtures("unchanged_process")

METRICS = ["fd", "is", "kd", "precision", "recall", "density", "coverage", "class_coverage", "class_kl"]
SHAPES = ["evaluation=shapes", "device=cpu"]
QUICK = [
    *SHAPES, "~evaluation.metrics.kernel_distance", "~evaluation.metrics.precision_recall",
    "~evaluation.metrics.inception_score",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of images and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_folder(tmp_path / "a", pixels(14, 1))
    write_folder(tmp_path / "b", pixels(12, 2))
    return tmp_path


@pytest.fixture
def evaluate(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd, home)


class Command:
    """Runs genimg-eval in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path) -> None:
        self._monkeypatch, self._capfd, self._home = monkeypatch, capfd, home

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["genimg-eval", *arguments])
        self._capfd.readouterr()
        try:
            cli.evaluate()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *self._capfd.readouterr()

    def succeed(self, *arguments: str) -> str:
        code, output, errors = self.run(*arguments)
        assert code == 0, output + errors
        return output

    def result(self, *arguments: str) -> dict:
        """What ``output=`` holds."""
        self.succeed(*arguments, "output=result.json")
        return json.loads((self._home / "result.json").read_text())

    def refuse(self, *words: str, arguments: list[str]) -> str:
        """The command ends with code 2 and one message that holds all ``words``, and leaves no new file behind."""
        before = files(self._home)
        code, output, errors = self.run(*arguments)
        assert code == 2, output + errors
        assert "Traceback" not in output + errors, errors
        assert errors.count("error: ") == 1, errors
        message = errors.split("genimg-eval: error: ", 1)[1]
        for word in words:
            assert word in message, errors
        assert files(self._home) == before
        return message


def files(folder: Path) -> set[Path]:
    """Everything below it but the cache, which may keep what it has."""
    return {path for path in folder.rglob("*") if path.is_file() and folder / "cache" not in path.parents}


def pixels(count: int, seed: int, size: int = 16) -> np.ndarray:
    """uint8 [N, H, W, C], with some structure, so that classes differ."""
    random = np.random.default_rng(seed)
    colors = random.integers(0, 256, (count, 1, 1, 3))
    noise = random.integers(-40, 40, (count, size, size, 3))
    return np.clip(colors + noise, 0, 255).astype(np.uint8)


def write_folder(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")


def values_of(output: str) -> dict[str, float]:
    """The table that the command prints."""
    rows = re.findall(r"^([a-z_]+\d+k?_\w+) +(-?[\d.e+-]+)$", output, flags=re.MULTILINE)
    return {name: float(value) for name, value in rows}


def features_of(images: np.ndarray) -> np.ndarray:
    extractor = Classifier(classifier="shapes_v2", sha256=None)
    return extractor(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0].double().numpy()


def frechet_distance_by_eigenvalues(real: np.ndarray, fake: np.ndarray) -> float:
    """With general eigenvalues of the covariances' product, of which no more than the rank are not rounding."""
    covariances = [np.cov(side, rowvar=False) for side in (real, fake)]
    eigenvalues = np.sort(scipy.linalg.eigvals(covariances[0] @ covariances[1]).real)[::-1]
    root = np.sqrt(np.clip(eigenvalues[: min(len(real), len(fake)) - 1], 0, None)).sum()
    difference = real.mean(axis=0) - fake.mean(axis=0)
    return float(difference @ difference + np.trace(covariances[0] + covariances[1]) - 2 * root)


def test_a_folder_is_measured_against_a_folder(evaluate: Command, home: Path) -> None:
    output = evaluate.succeed("images=b", "real=a", *SHAPES, "output=deep/result.json", "batch_size=5")
    record = json.loads((home / "deep" / "result.json").read_text())
    metrics = record["metrics"]
    assert [name for name in metrics if not name.endswith("_std")] == [f"{name}12_shapes_v2" for name in METRICS]
    expected = frechet_distance_by_eigenvalues(features_of(pixels(14, 1)), features_of(pixels(12, 2)))
    assert metrics["fd12_shapes_v2"] == pytest.approx(expected, rel=1e-3)
    assert values_of(output) == pytest.approx(metrics, rel=1e-4, abs=1e-9)
    assert record["images_from"] == "b"
    assert record["intervals"] == {}
    assert record["warnings"]
    assert record["hardware"]["device"] == "cpu"
    assert record["provenance"]["generated"]["source"] == "b"
    assert record["provenance"]["generated"]["num_images"] == 12
    assert record["provenance"]["real"]["source"] == "a"
    assert record["provenance"]["real"]["num_images"] == 14
    assert record["provenance"]["versions"]["torch"]
    assert {path.name for path in (home / "deep").iterdir()} == {"result.json"}


def test_an_archive_holds_the_same_images_as_a_folder(evaluate: Command, home: Path) -> None:
    np.savez(home / "a.npz", pixels(14, 1))
    np.savez(home / "b.npz", images=pixels(12, 2).astype(np.float32) / 255.0)
    expected = evaluate.result("images=b", "real=a", *SHAPES)["metrics"]
    assert evaluate.result("images=b.npz", "real=a.npz", *SHAPES)["metrics"] == pytest.approx(expected, rel=1e-9)
    assert evaluate.result("images=b.npz", "real=a", *SHAPES)["metrics"] == pytest.approx(expected, rel=1e-9)


def test_an_archive_of_several_arrays_needs_the_name_of_one(evaluate: Command, home: Path) -> None:
    first, second = pixels(12, 2), pixels(12, 3)
    np.savez(home / "two.npz", first=first, second=second, fine_labels=np.arange(12), targets=np.arange(12))
    np.savez(home / "one.npz", second)
    evaluate.refuse("first uint8", "second uint8", "images=two.npz:NAME", arguments=["images=two.npz", "real=a", *QUICK])
    expected = evaluate.result("images=one.npz", "real=a", *QUICK)["metrics"]
    assert evaluate.result("images=two.npz:second", "real=a", *QUICK)["metrics"] == pytest.approx(expected, rel=1e-9)
    np.savez(home / "splits.npz", x_train=first, x_test=second)
    assert evaluate.result("images=splits.npz:test", "real=a", *QUICK)["metrics"] == pytest.approx(expected, rel=1e-9)


def test_a_range_of_other_values_can_be_given(evaluate: Command, home: Path) -> None:
    images = pixels(12, 2)
    np.savez(home / "wide.npz", images.astype(np.float64) * 2 - 255)
    evaluate.refuse("range=[-255,", arguments=["images=wide.npz", "real=a", *QUICK])
    made = evaluate.result("images=wide.npz", "real=a", "range=[-255,255]", *QUICK)["metrics"]
    assert made == pytest.approx(evaluate.result("images=b", "real=a", *QUICK)["metrics"], rel=1e-9)


def test_a_dataset_brings_its_own_evaluation(evaluate: Command) -> None:
    record = evaluate.result("images=b", "real=shapes", "num_real=20", "device=cpu", "image_size=32")
    assert "fd12_shapes_v2" in record["metrics"]
    assert record["provenance"]["real"]["source"] == "shapes"
    assert record["provenance"]["real"]["num_images"] == 20
    assert record["provenance"]["generated"]["image_shape"] == "3x32x32"


def test_images_are_measured_against_themselves_at_no_distance(evaluate: Command) -> None:
    metrics = evaluate.result("images=a", "real=a", *SHAPES)["metrics"]
    assert metrics["fd14_shapes_v2"] == pytest.approx(0.0, abs=1e-6)
    for name in ("precision", "recall", "coverage", "class_coverage"):
        assert metrics[f"{name}14_shapes_v2"] == 1.0


def test_what_stylegan_s_dataset_tool_writes_is_measured_like_a_folder(evaluate: Command, home: Path) -> None:
    write_folder(home / "numbered" / "00000", pixels(14, 1))
    labels = [[f"00000/{i:03}.png", i % 3] for i in range(14)]
    (home / "numbered" / "dataset.json").write_text(json.dumps({"labels": labels}))
    shutil.make_archive(str(home / "numbered"), "zip", home / "numbered")
    found = [evaluate.result("images=b", f"real={real}", *QUICK)["metrics"] for real in ("a", "numbered", "numbered.zip")]
    assert found[0] == found[1] == found[2]
    assert evaluate.result("images=numbered.zip", "real=b", *QUICK) is not None


def test_folders_that_differ_in_their_contents_alone_have_statistics_of_their_own(evaluate: Command, home: Path) -> None:
    """300 pictures without compression each, whose names, sizes and times are equal."""
    first, second = pixels(300, 3) // 2, 127 + pixels(300, 4) // 2
    for name, images in (("first", first), ("second", second)):
        (home / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(home / name / f"{i:03}.bmp")
            os.utime(home / name / f"{i:03}.bmp", ns=(10**18, 10**18))
    states = [[(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted((home / name).iterdir())]
              for name in ("first", "second")]  # fmt: skip
    assert states[0] == states[1]
    for name, images in (("first", first), ("second", second), ("first", first)):  # the last one from the cache
        values = evaluate.result("images=b", f"real={name}", *QUICK)["metrics"]
        expected = frechet_distance_by_eigenvalues(features_of(images), features_of(pixels(12, 2)))
        assert next(value for key, value in values.items() if key.startswith("fd")) == pytest.approx(expected, rel=1e-3)
    assert len(list((home / "cache" / "statistics").iterdir())) == 2


def test_images_of_another_size_are_measured_with_a_warning(evaluate: Command, home: Path) -> None:
    write_folder(home / "large", pixels(12, 3, size=24))
    assert "the images are 24x24 pixels and the real ones 16x16" in evaluate.succeed("images=large", "real=a", *QUICK)
    assert "the real ones" not in evaluate.succeed("images=b", "real=a", *QUICK)


def test_saved_statistics_stand_for_the_images(evaluate: Command, home: Path) -> None:
    output = evaluate.succeed("real=a", "save_statistics=saved/real.pt", *SHAPES)
    assert "statistics of 14 images of a by shapes" in output
    direct = evaluate.result("images=b", "real=a", *SHAPES)
    shutil.rmtree(home / "a")
    shutil.rmtree(home / "cache")
    saved = evaluate.result("images=b", "real=saved/real.pt", *SHAPES)
    assert saved["metrics"] == pytest.approx(direct["metrics"], rel=1e-9)
    assert saved["provenance"] == direct["provenance"]


def test_statistics_can_be_saved_beside_an_evaluation(evaluate: Command, home: Path) -> None:
    first = evaluate.result("images=b", "real=a", "save_statistics=real.pt", *SHAPES)
    assert evaluate.result("images=b", "real=real.pt", *SHAPES)["metrics"] == first["metrics"]


def test_statistics_of_another_extractor_are_refused(evaluate: Command) -> None:
    evaluate.succeed("real=a", "save_statistics=real.pt", *QUICK)
    evaluate.refuse(
        "real.pt was made with another extractor", "name shapes_v2 in the file, mnist_v2 here", "weights_sha256",
        arguments=["images=b", "real=real.pt", "evaluation=mnist", "device=cpu"],
    )  # fmt: skip


def test_statistics_of_another_program_need_the_users_word(evaluate: Command, home: Path) -> None:
    features = features_of(pixels(14, 1))
    np.savez(home / "fid.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    evaluate.refuse("fid.npz does not record", "accept_unrecorded=true", arguments=["images=b", "real=fid.npz", *SHAPES])
    direct = evaluate.result("images=b", "real=a", *SHAPES)["metrics"]
    code, output, _ = evaluate.run("images=b", "real=fid.npz", "accept_unrecorded=true", *SHAPES)
    assert code == 0
    assert "skipping kernel_distance and precision_recall" in output
    values = values_of(output)
    assert set(values) == {"fd12_shapes_v2", "is12_shapes_v2", "is12_shapes_v2_std"}
    # The file does not say how many images it is of, so that no rank is cut off: rounding adds a little.
    assert values["fd12_shapes_v2"] == pytest.approx(direct["fd12_shapes_v2"], rel=1e-2)
    assert values["is12_shapes_v2"] == pytest.approx(direct["is12_shapes_v2"], rel=1e-5)


def test_a_reference_file_of_images_and_statistics_serves_all_metrics(evaluate: Command, home: Path) -> None:
    """As ADM's are: arr_0 has images, and mu and sigma are of more images."""
    features = features_of(pixels(40, 3))
    images = pixels(14, 1)
    np.savez(home / "adm.npz", arr_0=images, mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    np.savez(home / "fid.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    np.savez(home / "features.npz", arr_0=features_of(images).astype(np.float32))
    direct = evaluate.result("images=b", "real=a", *SHAPES)["metrics"]
    code, output, _ = evaluate.run("images=b", "real=adm.npz", *SHAPES)
    assert code == 0
    assert values_of(output) == pytest.approx(direct, rel=1e-4)
    assert "adm.npz holds mu and sigma beside its images: accept_unrecorded=true uses them" in output
    own = evaluate.result("images=b", "real=adm.npz", "accept_unrecorded=true", *SHAPES)
    published = evaluate.result("images=b", "real=fid.npz", "accept_unrecorded=true", *SHAPES)["metrics"]
    assert own["metrics"]["fd12_shapes_v2"] == pytest.approx(published["fd12_shapes_v2"], rel=1e-9)
    assert own["metrics"]["fd12_shapes_v2"] != pytest.approx(direct["fd12_shapes_v2"], rel=1e-2)
    assert own["metrics"] | {"fd12_shapes_v2": 0} == pytest.approx(direct | {"fd12_shapes_v2": 0}, rel=1e-9)
    assert own["provenance"]["real"]["moments"]["source"] == "adm.npz"
    features_alone = evaluate.result("images=b", "real=features.npz", "accept_unrecorded=true", *SHAPES)["metrics"]
    assert {
        name: features_alone[name] for name in ("fd12_shapes_v2", "coverage12_shapes_v2", "kd12_shapes_v2")
    } == pytest.approx(
        {name: direct[name] for name in ("fd12_shapes_v2", "coverage12_shapes_v2", "kd12_shapes_v2")}, rel=1e-4, abs=1e-6
    )
    evaluate.refuse("features.npz holds statistics, not images", arguments=["images=features.npz", "real=a", *QUICK])


def test_statistics_of_other_features_are_refused(evaluate: Command, home: Path) -> None:
    np.savez(home / "fid.npz", mu=np.zeros(7), sigma=np.eye(7))
    evaluate.refuse("7 features", "has 128", arguments=["images=b", "real=fid.npz", "accept_unrecorded=true", *QUICK])


def test_statistics_that_are_none_are_refused(evaluate: Command, home: Path) -> None:
    np.savez(home / "nan.npz", mu=np.full(128, np.nan), sigma=np.eye(128))
    (home / "broken.pt").write_bytes(b"nothing")
    for name in ("nan.npz", "broken.pt"):
        evaluate.refuse(f"{name} does not hold statistics", arguments=["images=b", f"real={name}", *QUICK])
    evaluate.refuse("nowhere.pt do not exist", arguments=["images=b", "real=nowhere.pt", *QUICK])
    evaluate.refuse("nowhere.npz is not a file", arguments=["images=b", "real=nowhere.npz", *QUICK])


def test_mixed_sizes_are_refused_unless_one_is_requested(evaluate: Command, home: Path) -> None:
    Image.fromarray(pixels(1, 9, size=20)[0]).save(home / "b" / "other.png")
    evaluate.refuse("different sizes", "16x16", "other.png", "20x20", "image_size=N", arguments=["images=b", "real=a", *QUICK])
    record = evaluate.result("images=b", "real=a", "image_size=16", *QUICK)
    assert record["provenance"]["generated"]["image_shape"] == "3x16x16"
    assert record["provenance"]["generated"]["num_images"] == 13


def test_a_file_that_is_no_image_is_named(evaluate: Command, home: Path) -> None:
    (home / "b" / "zzz.png").write_bytes(b"not a png")
    evaluate.refuse("b/zzz.png", arguments=["images=b", "real=a", *QUICK])
    evaluate.refuse("b/zzz.png", arguments=["images=b", "real=a", "image_size=16", *QUICK])


def test_an_archive_with_values_that_are_no_images_is_refused(evaluate: Command, home: Path) -> None:
    images = pixels(6, 0).astype(np.float64) / 255.0
    images[4, 2, 2, 1] = np.nan
    np.savez(home / "nan.npz", images)
    np.savez(home / "range.npz", pixels(6, 0).astype(np.float32) / 127.5 - 1.0)
    np.savez(home / "text.npz", np.array(["a", "b"]))
    (home / "broken.npz").write_bytes(b"nothing")
    evaluate.refuse("nan.npz[arr_0]", "1 of 6 images", "image 4", arguments=["images=nan.npz", "real=a", *QUICK])
    evaluate.refuse("range.npz", "between 0 and 1", arguments=["images=range.npz", "real=a", *QUICK])
    evaluate.refuse("text.npz holds no images", arguments=["images=text.npz", "real=a", *QUICK])
    evaluate.refuse("broken.npz is not an .npz", arguments=["images=broken.npz", "real=a", *QUICK])


def test_one_image_is_refused_on_either_side(evaluate: Command, home: Path) -> None:
    write_folder(home / "one", pixels(1, 0))
    evaluate.refuse("2 or more", arguments=["images=one", "real=a", *QUICK])
    evaluate.refuse("1 real images are too few", arguments=["images=b", "real=one", *QUICK])
    evaluate.refuse("too few", arguments=["real=one", "save_statistics=real.pt", *QUICK])
    evaluate.refuse("num_real=1", arguments=["images=b", "real=a", "num_real=1", *QUICK])
    evaluate.refuse("num_images=1", arguments=["images=b", "real=a", "num_images=1", *QUICK])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ckpt=run", "images=b", "real=a"], ["ckpt=run and images=b both"]),
        ([], ["nothing to evaluate", "ckpt=CHECKPOINT", "images=DIR", "save_statistics=FILE"]),
        (["real=a"], ["nothing to evaluate"]),
        (["images=b"], ["images=b needs something to compare with"]),
        (["images=b", "real=mnits"], ["mnits is neither a directory", "cifar10", "mnist", "shapes"]),
        (["images=nowhere", "real=a"], ["nowhere is neither a directory"]),
        (["images=b", "real=imagenet"], ["imagenet needs data_root=DIR"]),
        (["images=b", "real=a", "seed=3"], ["seed=3 has no effect on images that exist"]),
        (["images=b", "real=a", "num_images=13"], ["num_images=13", "12", "images of b"]),
        (["images=b", "real=a", "inception_weights=x.pth"], ["inception_weights=x.pth has no effect"]),
        (
            ["images=b", "real=a", "evaluation.metrics.inception_score.splits=13"],
            ["inception_score needs 13 or more generated images, not 12"],
        ),
        (["images=b", "real=a", "evaluation.metrics.class_coverage.least_share=2"], ["least_share=2"]),
        (["images=b", "real=a", "nonsense=1"], ["unknown key nonsense"]),
        (["images=b", "real=a", "+sed=1"], ["unknown key sed (did you mean 'seed'?)"]),
        (["images=b", "real=a", "image_size=0"], ["image_size=0 must be"]),
        (["images=b", "real=a", "image_size=[8,0]"], ["image_size=[8, 0] must be"]),
        (["images=b", "real=a", "evaluation=shaeps"], ["did you mean 'shapes'?"]),
        (["images=b", "real=a", "evaluation=none"], ["evaluation=none evaluates nothing"]),
        (["ckpt=nowhere"], ["nowhere does not exist"]),
        (["images=b", "real=a", "device=tpu"], ["device=tpu is unknown"]),
        (["images=b", "real=a", "batch_size=0"], ["batch_size=0 must be"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_bad_input_gets_one_clear_message(arguments: list[str], words: list[str], evaluate: Command) -> None:
    chosen = [] if any(a.startswith("evaluation=") for a in arguments) else ["evaluation=shapes"]
    evaluate.refuse(*words, arguments=[*arguments, *chosen])


def test_statistics_are_no_images(evaluate: Command) -> None:
    evaluate.succeed("real=a", "save_statistics=real.pt", *QUICK)
    evaluate.refuse("images=real.pt holds statistics", arguments=["images=real.pt", "real=a", *QUICK])
    evaluate.refuse("already holds statistics", arguments=["real=real.pt", "save_statistics=again.pt", *QUICK])


def test_provenance_is_printed_as_json(evaluate: Command) -> None:
    output = evaluate.succeed("images=b", "real=a", "provenance=true", *QUICK, "output=result.json")
    printed = json.loads(output[output.index("\n{\n") :].split("\n}\n")[0] + "\n}")
    assert printed == json.loads(Path("result.json").read_text())["provenance"]
    assert set(printed) >= {"extractor", "generated", "real", "metrics", "precision", "device", "versions"}
    assert "\n{\n" not in evaluate.succeed("images=b", "real=a", *QUICK)


def test_intervals_are_printed_and_written(evaluate: Command) -> None:
    record = evaluate.result("images=b", "real=a", "bootstrap=5", *QUICK)
    output = evaluate.succeed("images=b", "real=a", "bootstrap=5", *QUICK)
    assert set(record["intervals"]) == {"fd12_shapes_v2"}
    low, high = record["intervals"]["fd12_shapes_v2"]
    assert low < high
    row = next(line for line in output.splitlines() if line.startswith("fd12_shapes_v2"))
    assert [float(word) for word in row.split()[1:]] == pytest.approx(
        [record["metrics"]["fd12_shapes_v2"], low, high], rel=1e-4
    )
    assert "95 % from" in output


def test_an_output_that_cannot_be_written_is_one_message(evaluate: Command, home: Path) -> None:
    (home / "file").write_text("in the way")
    evaluate.refuse("file", arguments=["images=b", "real=a", *QUICK, "output=file/result.json"])


def test_a_few_of_the_images_can_be_chosen(evaluate: Command) -> None:
    record = evaluate.result("images=b", "real=a", "num_images=6", "num_real=7", *QUICK)
    real, fake = pixels(14, 1)[fixed_subset(7, 14)], pixels(12, 2)[fixed_subset(6, 12)]
    expected = frechet_distance_by_eigenvalues(features_of(real), features_of(fake))
    assert record["metrics"]["fd6_shapes_v2"] == pytest.approx(expected, rel=1e-3)
    assert record["provenance"]["generated"]["num_images"] == 6
    assert record["provenance"]["real"]["num_images"] == 7


def test_results_that_compare_are_said_to(evaluate: Command, home: Path) -> None:
    write_folder(home / "c", pixels(12, 5))
    evaluate.succeed("images=b", "real=a", *QUICK, "output=b.json")
    evaluate.succeed("images=c", "real=a", *QUICK, "output=c.json", "batch_size=4")
    output = evaluate.succeed("compare=[b.json,c.json]")
    assert "not comparable" not in output
    assert "comparable: everything that the values depend on is the same" in output
    assert "other differences (the values are still comparable)" in output
    assert "generated.source: b against c" in output
    row = next(line for line in output.splitlines() if line.startswith("fd12_shapes_v2")).split()
    expected = [json.loads((home / f"{name}.json").read_text())["metrics"]["fd12_shapes_v2"] for name in "bc"]
    assert [float(word) for word in row[1:]] == pytest.approx(expected, rel=1e-4)


def test_long_names_of_results_stand_above_the_table_in_lines_of_their_own(evaluate: Command, home: Path) -> None:
    evaluate.succeed("images=b", "real=a", *QUICK, "output=b.json")
    names = [f"{'a_long_name_of_a_result_' * 2}{letter}.json" for letter in "xy"]
    for name in names:
        (home / name).write_bytes((home / "b.json").read_bytes())
    lines = evaluate.succeed(f"compare=[{','.join(names)}]").splitlines()
    assert lines[:2] == [f"A: {names[0]}", f"B: {names[1]}"]
    assert lines[2].split() == ["A", "B"]
    assert all(len(line) <= 90 for line in lines[2:4])
    short = evaluate.succeed("compare=[b.json,b.json]").splitlines()
    assert short[:2] == ["A: b.json", "B: b.json"]
    assert len(short[3].split()) == 3


def test_results_that_do_not_compare_come_with_the_reasons(evaluate: Command, home: Path) -> None:
    evaluate.succeed("images=b", "real=a", *QUICK, "output=b.json")
    evaluate.succeed("images=b", "real=shapes", "num_real=20", "num_images=10", "output=other.json", "image_size=8", *QUICK)
    output = evaluate.succeed("compare=[b.json,other.json]")
    assert "\ncomparable:" not in output
    words = output.split("not comparable:\n")[1]
    assert "the Fréchet distance falls as the count grows:\n    generated.num_images: 12 against 10" in words
    assert "real.source: a against shapes" in words
    assert "generated.image_shape: 3x16x16 against 3x8x8" in words
    assert "extractor." not in words
    evaluate.succeed("images=b", "real=a", "evaluation=mnist", "device=cpu", "output=mnist.json")
    output = evaluate.succeed("compare=[b.json,mnist.json]")
    assert "extractor.name: shapes_v2 against mnist_v2" in output.split("not comparable:\n")[1]


def test_what_is_no_result_is_refused(evaluate: Command, home: Path) -> None:
    evaluate.succeed("images=b", "real=a", *QUICK, "output=b.json")
    (home / "text.json").write_text("nothing")
    (home / "other.json").write_text('{"a": 1}')
    (home / "list.json").write_text("[1]")
    (home / "empty.json").write_text('{"metrics": {}, "provenance": {}}')
    for name in ("text.json", "other.json", "list.json", "empty.json"):
        evaluate.refuse(f"{name} is not a result", arguments=[f"compare=[b.json,{name}]"])
    evaluate.refuse("nowhere.json is neither", arguments=["compare=[b.json,nowhere.json]"])
    evaluate.refuse("must name two results", arguments=["compare=[b.json]"])
    evaluate.refuse("must be a list", arguments=["compare=b.json"])


def test_the_picture_of_neighbours_shows_copies(evaluate: Command, home: Path) -> None:
    shutil.copyfile(home / "a" / "009.png", home / "b" / "000.png")
    output = evaluate.succeed("images=b", "real=a", "neighbors=2", "picture=deep/near.png", *QUICK)
    found = re.search(r"image 0: real image 9 at distance (\S+),", output)
    assert found is not None
    assert float(found[1]) < 1e-4  # of one image in two batches
    assert re.search(r"image 1: real image \d+ at distance \d*\.?\d*[1-9]", output)
    assert "image 2:" not in output
    with Image.open(home / "deep" / "near.png") as picture:
        assert picture.size == (8 * (16 + 2) + 2, 2 * (16 + 2) + 2)  # two rows of an image and its seven neighbours
        array = np.asarray(picture)
    copied = pixels(14, 1)[9]
    for column in (0, 1):  # the generated image and its first neighbour
        left = 2 + column * 18
        assert np.abs(array[2:18, left : left + 16].astype(int) - copied).max() <= 1
    assert {path.name for path in (home / "deep").iterdir()} == {"near.png"}


def test_the_share_of_copies_stands_beside_the_picture(evaluate: Command, home: Path) -> None:
    output = evaluate.succeed("images=a", "real=a", "held_out=b", "neighbors=1", "output=copies.json", *QUICK)
    assert "copies of training images: 100.0 % of the 14 generated ones (memorised14_shapes_v2; fresh images: 0 ± " in output
    record = json.loads((home / "copies.json").read_text())
    assert record["metrics"]["memorised14_shapes_v2"] == 1.0
    assert record["provenance"]["metrics"]["memorisation"]["held_out"]["num_images"] == 12
    output = evaluate.succeed("images=b", "real=a", "neighbors=1", *QUICK)
    assert "no held-out images to compare with: to measure the share of copies, give some with held_out=WHAT" in output
    assert "memorised" not in output
    evaluate.refuse("held_out=b has no effect without neighbors=", arguments=["images=b", "real=a", "held_out=b", *QUICK])


def test_packed_images_are_measured_like_the_folder_they_came_from(evaluate: Command, home: Path) -> None:
    source = folder(root=str(home / "a"), image_size=None, channels=None, fit="crop", labels="auto")
    (home / "packed").mkdir()
    pack(source, home / "packed", shard_size=10_000, num_threads=1, max_corrupt=None, provenance={})
    for real in ("a", "packed"):
        evaluate.succeed("images=b", f"real={real}", f"output={real}.json", *QUICK)
    one, other = (json.loads((home / f"{real}.json").read_text()) for real in ("a", "packed"))
    assert one["metrics"] == other["metrics"]
    assert other["provenance"]["real"]["source"].startswith("prepared ")


def test_neighbours_need_the_images_themselves(evaluate: Command) -> None:
    evaluate.succeed("real=a", "save_statistics=real.pt", *QUICK)
    evaluate.refuse("neighbors=2 needs the real images", arguments=["images=b", "real=real.pt", "neighbors=2", *QUICK])
    evaluate.refuse("num_real=5 has no effect", arguments=["images=b", "real=real.pt", "num_real=5", *QUICK])
    evaluate.refuse("neighbors=-1", arguments=["images=b", "real=a", "neighbors=-1", *QUICK])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, whose best checkpoint is made to be that of the first."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = [
        "data.num_images=64", "data.image_size=16", "model=dcgan_small", "model.generator.width=8", "model.latent.dim=8",
        "trainer.batch_size=16", "trainer.duration=2 steps", "trainer.checkpoint_interval=1 steps", "trainer.preview_images=4",
        "optimizer.lr=0.05", "evaluation.num_images=40", "evaluation.final_num_images=50", "precision=fp32", "device=cpu",
        "~evaluation.metrics.kernel_distance", "~evaluation.metrics.precision_recall", f"run_dir={folder}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENIMG_CACHE", str(folder.parent / "cache"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(sys, "argv", ["genimg-train", *arguments])
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        cli.train()
        root.handlers[:] = handlers
        root.setLevel(level)
    os.replace(folder / "checkpoints" / "step-00000001.pt", folder / "checkpoints" / "best.pt")
    return folder


def test_a_checkpoint_is_measured_as_in_its_training(evaluate: Command, run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    record = evaluate.result(f"ckpt={run_dir}", "device=cpu")
    assert record["metrics"] == pytest.approx(summary["last"], rel=1e-9)
    assert record["checkpoint"] == str(run_dir / "checkpoints" / "last.pt")
    assert record["images"] == 32
    assert record["provenance"]["generated"]["num_images"] == 40
    assert record["provenance"]["generated"]["weights"] == "ema"
    final = evaluate.result(f"ckpt={run_dir}", "device=cpu", "num_images=50")["metrics"]
    assert final == pytest.approx(summary["final"]["metrics"], rel=1e-9)
    assert "fd50_shapes_v2" in final


def test_which_chooses_between_the_last_and_the_best_checkpoint(evaluate: Command, run_dir: Path) -> None:
    last = evaluate.result(f"ckpt={run_dir}", "device=cpu", "which=last")
    best = evaluate.result(f"ckpt={run_dir}", "device=cpu", "which=best")
    assert (last["images"], best["images"]) == (32, 16)
    assert best["checkpoint"] == str(run_dir / "checkpoints" / "best.pt")
    assert best["metrics"]["fd40_shapes_v2"] != pytest.approx(last["metrics"]["fd40_shapes_v2"], rel=1e-4)
    evaluate.refuse("which=newest must be last or best", arguments=[f"ckpt={run_dir}", "which=newest", "device=cpu"])


def test_a_checkpoint_is_measured_against_other_images_too(evaluate: Command, run_dir: Path) -> None:
    record = evaluate.result(f"ckpt={run_dir}", "real=a", "seed=5", "device=cpu", "num_images=20", "neighbors=1")
    assert record["provenance"]["real"]["source"] == "a"
    assert record["provenance"]["generated"]["seed"] == 5
    assert "fd20_shapes_v2" in record["metrics"]
    assert Path("neighbors.png").is_file()
    evaluate.refuse("data_root=x has no effect", arguments=[f"ckpt={run_dir}", "data_root=x", "device=cpu"])


def test_a_run_directory_compares_with_an_evaluation_of_its_checkpoint(evaluate: Command, run_dir: Path) -> None:
    evaluate.succeed(f"ckpt={run_dir}", "device=cpu", "num_images=50", "output=final.json")
    output = evaluate.succeed(f"compare=[{run_dir},final.json]")
    assert "fd40_shapes_v2" in output
    assert "fd50_shapes_v2" in output
