"""``expected=`` through the command line: the lines of a run, the report, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fork_server import run_command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from genimg.config.evaluation import build_expected
from genimg.config.instantiate import Builder
from genimg.utils.paths import config_dir

SMALL = [
    "data=shapes", "data.num_images=32", "data.image_size=16", "model=dcgan_small", "model.generator.width=8",
    "model.latent.dim=8", "trainer.batch_size=8", "trainer.duration=6 steps", "trainer.preview_images=4", "precision=fp32",
    "device=cpu", "evaluation=shapes", "evaluation.num_images=20", "evaluation.num_real=20", "evaluation.interval=2 steps",
    "~evaluation.metrics.kernel_distance", "~evaluation.metrics.precision_recall",
]  # fmt: skip
EXPERIMENTS = [path.stem for path in sorted(Path(config_dir(), "experiment").glob("*.yaml")) if "expected:" in path.read_text()]


def train(folder: Path, *arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(folder / "cache")}
    done = run_command("train", *SMALL, "run_dir=run", *arguments, cwd=folder, env=environment)
    return done.returncode, done.stdout + done.stderr


def point(images: int, metric: str, value: float) -> str:
    return f"{{images: {images}, metric: {metric}, value: {value}, tolerance: 1e6, source: 'a paper (table 1)'}}"


def test_a_run_says_at_each_point_whether_it_is_on_the_curve(tmp_path: Path) -> None:
    points = [point(10, "fd20_shapes_v2", 100.0), point(16, "fd50k_shapes_v2", 5.0), point(48, "fd24_shapes_v2", -1e9)]
    code, output = train(tmp_path, f"expected=[{','.join(points)}]", "evaluation.final_num_images=24")
    assert code == 0, output
    lines = [line for line in output.splitlines() if "the curve" in line]
    assert [line.partition(":")[0] for line in lines] == ["on the curve", "not comparable with the curve", "off the curve"]
    assert "after 16 images, expected 100 ± 1e+06 after 10 images (a paper (table 1))" in lines[0]
    assert "fd24_shapes_v2 is" in lines[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(tmp_path / "cache")}
    done = run_command("eval", "ckpt=run", "num_images=24", "device=cpu", cwd=tmp_path, env=environment)
    assert [line for line in done.stdout.splitlines() if "the curve" in line] == [lines[2]]
    page = (tmp_path / "run" / "report.html").read_text()
    data = json.loads(page.partition('id="curves-data">')[2].partition("</script>")[0])
    chart = next(each for each in data["charts"] if each["name"] == "fd20_shapes_v2")
    assert chart["expected"] == [[10, 100.0, 1e6]]
    assert page.count('<path class="published"') == 1
    assert "fd50k_shapes_v2: 5 ± 1e6 after 16 images (a paper (table 1))" in page


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("[3]", "expected[0]=3 must be a mapping"),
        ("[{images: 0, metric: fid, value: 1, tolerance: 1, source: x}]", "expected[0].images=0 must be 1 or more"),
        ("[{images: 1, metric: fid, value: high, tolerance: 1, source: x}]", "expected[0].value=high must be a number"),
        ("[{images: 1, metric: fid, value: 1, tolerance: 0, source: x}]", "expected[0].tolerance=0 must be above 0"),
        ("[{images: 1, metric: fid, value: 1, tolerance: 1}]", "expected[0].source"),
        ("[{images: 1, metric: fid, value: 1, tolerance: 1, source: x, sources: y}]", "sources"),
    ],
)
def test_a_wrong_point_is_refused_by_its_key(points: str, words: str, tmp_path: Path) -> None:
    code, output = train(tmp_path, f"expected={points}")
    assert code == 2, output
    assert words in output
    assert "Traceback" not in output


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_points_of_every_experiment_are_within_its_duration(experiment: str) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=[f"experiment={experiment}"]))
    assert isinstance(config, dict)
    steps = config["trainer"]["duration"].replace("k steps", "000")
    points = build_expected(config["expected"], Builder())
    assert points
    assert max(point.images for point in points) <= int(steps) * config["trainer"]["batch_size"]
