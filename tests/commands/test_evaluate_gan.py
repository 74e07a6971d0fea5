"""genimg-eval per_class=true and evaluation=path_length, through the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
from fork_server import run_command
from PIL import Image

SMALL = ["data=shapes", "data.num_images=128", "data.image_size=16", "trainer.batch_size=16", "trainer.duration=1 steps"]
SMALL += ["trainer.preview_images=4", "evaluation=shapes", "evaluation.num_images=60", "evaluation.interval=1 steps"]
SMALL += ["~evaluation.metrics.kernel_distance", "~evaluation.metrics.precision_recall", "device=cpu", "precision=fp32"]
RUNS = {
    "gan": [*SMALL, "model=dcgan_small", *tiny.SIZES["dcgan_small"], "conditioning=projection"],
    "part": [*SMALL, "model=dcgan_small", *tiny.SIZES["dcgan_small"], "conditioning=projection", "data.classes=[ring,circle]"],
    "vae": [*SMALL, "model=vae_small", *tiny.AUTOENCODERS["vae_small"]],
}
PIXELS = "evaluation.distance={_target_: genimg.losses.image_distance.PixelDistance}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home")
    for name, arguments in RUNS.items():
        done = run_command("train", *arguments, f"run_dir={root / name}", env=environment(root))
        assert done.returncode == 0, done.stdout + done.stderr
    return root


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(home / "cache")}


def evaluate(home: Path, *arguments: str, code: int = 0) -> str:
    done = run_command("eval", *arguments, "device=cpu", cwd=home, env=environment(home))
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_distance_of_each_class_is_a_value_a_row_and_a_bar(home: Path) -> None:
    output = evaluate(home, "ckpt=gan", "per_class=true", "output=result.json")
    found = json.loads((home / "result.json").read_text())
    described = found["provenance"]["per_class"]
    names = ["circle", "square", "triangle", "cross", "ring"]
    assert [each["name"] for each in described] == names
    assert sum(each["num_generated"] for each in described) == 60
    assert sum(each["num_real"] for each in described) == 128
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.split()[:1] and line.split()[0] in names}
    for each in described:
        assert float(rows[each["name"]][3]) == pytest.approx(found["metrics"][each["metric"]], rel=1e-5)
        assert each["metric"] == f"fd{each['num_generated']}_shapes_v2_class{each['label']}"
    with Image.open(home / "result_per_class.png") as picture:
        assert picture.info["Software"].startswith("genimg-eval")
    plain = evaluate(home, "ckpt=gan", "output=plain.json")
    assert "class0" not in plain
    first = json.loads((home / "plain.json").read_text())["metrics"]
    assert {name: found["metrics"][name] for name in first} == first


def test_classes_that_cannot_be_compared_are_refused(home: Path) -> None:
    assert "labels" in evaluate(home, "ckpt=vae", "per_class=true", code=2)
    evaluate(home, "real=shapes", "save_statistics=real.pt", "evaluation=shapes", "num_real=64")
    assert "statistics" in evaluate(home, "ckpt=gan", "real=real.pt", "per_class=true", code=2)
    (home / "per_class.png").write_bytes(b"mine")
    assert "per_class.png" in evaluate(home, "ckpt=gan", "per_class=true", code=2)
    assert (home / "per_class.png").read_bytes() == b"mine"


def test_real_images_of_other_classes_than_the_chosen_ones_are_a_warning(home: Path) -> None:
    assert "square" not in evaluate(home, "ckpt=part")
    other = ["real=shapes", "image_size=16", "num_real=64"]
    assert "square" in evaluate(home, "ckpt=part", *other)
    assert "square" not in evaluate(home, "ckpt=gan", *other)


def test_path_lengths_need_no_images(home: Path) -> None:
    text = evaluate(home, "ckpt=gan", "evaluation=path_length", PIXELS, "num_images=20", "output=lengths.json")
    found = json.loads((home / "lengths.json").read_text())
    assert list(found["metrics"]) == ["path_length20_z_end_pixels"]
    assert found["provenance"]["path_length"]["way"] == "spherical"
    assert "path_length20_z_end_pixels" in text
    for more, word in (("real=shapes", "real=shapes"), ("evaluation.space=w", "space"), ("per_class=true", "per_class")):
        assert word in evaluate(home, "ckpt=gan", "evaluation=path_length", PIXELS, more, code=2)
    assert "GAN" in evaluate(home, "ckpt=vae", "evaluation=path_length", PIXELS, code=2)
