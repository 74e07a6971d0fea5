"""genimg-eval surface=...: measured points, their commands, resumption, files, and messages, on tiny trained models."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from fork_server import run_command, run_commands
from PIL import Image

from genimg.api.surface import _command
from genimg.reporting.surface import read_surface

COMMON = [
    "data=shapes", "data.num_images=32", "data.image_size=16", "trainer.batch_size=4", "trainer.preview_images=4",
    "precision=fp32", "device=cpu", "trainer.duration=4 steps", "evaluation=shapes", "evaluation.num_images=20",
    "~evaluation.metrics.kernel_distance", "~evaluation.metrics.precision_recall",
]  # fmt: skip
FLOW = ["model=flow_small", "conditioning=label", "ema=[exponential,power]", "evaluation.sampling={steps: 2}", *tiny.DIFFUSION]
GAN = ["model=dcgan_small", "model.generator.width=8", "model.latent.dim=8"]
METRIC = "fd20_shapes_v2"


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(home / "cache")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of a conditional flow model, with two averages, and one of a GAN."""
    home = tmp_path_factory.mktemp("surface")
    runs = {"flow": FLOW, "gan": GAN}
    codes, output = run_commands(
        [["train", *COMMON, *each, f"run_dir={home / name}"] for name, each in runs.items()], home, environment(home)
    )
    assert codes == [0, 0], output
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    for name in ("flow", "gan", "cache"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def evaluate(home: Path) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        done = run_command("eval", *arguments, "device=cpu", cwd=home, env=environment(home))
        return done.returncode, done.stdout + done.stderr

    return run


def surface_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_every_point_is_what_its_command_measures_bit_for_bit(evaluate: Callable[..., tuple[int, str]], home: Path) -> None:
    code, output = evaluate(
        "ckpt=flow",
        "seed=3",
        "bootstrap=5",
        "sampling={sampler: euler}",
        "surface={steps:[1,3],guidance:[1,2],weights:[raw,power_010]}",
    )
    assert code == 0, output
    assert "surface: 8 points, 0 of them already measured" in output
    found = surface_of(home / "flow" / "surface.json")
    points = found["points"]
    assert [tuple(point["setting"].values()) for point in points] == [
        (steps, guidance, weights) for weights in ("raw", "power_010") for steps in (1, 3) for guidance in (1, 2)
    ]
    assert [point["num_evaluations"] for point in points] == [1, 2, 3, 6] * 2
    assert all(point["seconds_per_image"] > 0 for point in points)
    assert all(point["options"]["sampler"] == "euler" for point in points)
    for point in (points[0], points[-1]):
        program, *arguments = shlex.split(point["command"])
        assert program == "genimg-eval"
        code, output = evaluate(*arguments[:-1], arguments[-1], "output=result.json")
        assert code == 0, output
        result = json.loads((home / "result.json").read_text())
        assert {name: result["metrics"][name] for name in point["metrics"]} == point["metrics"]
        assert {name: result["intervals"][name] for name in point["intervals"]} == point["intervals"]
        assert point["intervals"].keys() >= {METRIC}
    assert len({json.dumps(point["metrics"]) for point in points}) == len(points)


def test_a_weaker_model_guides_all_points_and_is_recorded_by_its_digest(
    evaluate: Callable[..., tuple[int, str]], home: Path
) -> None:
    shutil.copytree(home / "flow", home / "weak")
    code, output = evaluate("ckpt=flow", "sampling.autoguidance=weak", "surface={guidance:[1.5,2]}")
    assert code == 0, output
    assert "%%" not in output
    points = surface_of(home / "flow" / "surface.json")["points"]
    digest = hashlib.sha256((home / "weak/checkpoints/last.pt").read_bytes()).hexdigest()
    assert [point["options"]["autoguidance"] for point in points] == [f"weak (SHA-256 {digest[:12]})"] * 2
    code, output = evaluate("ckpt=flow", "surface={guidance:[2],autoguidance:[null,weak]}", "output=axis.json")
    assert code == 0, output
    without, guided = surface_of(home / "axis.json")["points"]
    assert without["metrics"] != guided["metrics"]
    assert guided["metrics"] == points[1]["metrics"]
    assert guided["options"]["autoguidance"] == f"weak (SHA-256 {digest[:12]})"


def test_measured_points_are_kept_and_the_files_show_all(evaluate: Callable[..., tuple[int, str]], home: Path) -> None:
    code, output = evaluate("ckpt=flow", "surface.steps=[1,2]", "surface.guidance=[2]")
    assert code == 0, output
    first = surface_of(home / "flow" / "surface.json")["points"]
    code, output = evaluate("ckpt=flow", "surface={steps:[2,4],guidance:[2]}")
    assert code == 0, output
    assert "surface: 2 points, 1 of them already measured" in output
    points = surface_of(home / "flow" / "surface.json")["points"]
    assert points[:2] == [{**point, "optimal": points[i]["optimal"]} for i, point in enumerate(first)]  # also the times
    assert [point["setting"]["steps"] for point in points] == [1, 2, 4]
    rows = list(csv.DictReader((home / "flow" / "surface.csv").open(newline="")))
    assert [row["steps"] for row in rows] == ["1", "2", "4"]
    assert [float(row[METRIC]) for row in rows] == [point["metrics"][METRIC] for point in points]
    assert [row["command"] for row in rows] == [point["command"] for point in points]
    assert Image.open(home / "flow" / "surface.png").size == (2080, 600)
    lines = [line.split() for line in output.splitlines() if re.match(r"\d+  +2 ", line)]
    assert [line[0] for line in lines] == ["1", "2", "4"]
    best = min(rows, key=lambda row: float(row[METRIC]))
    assert "evaluations" in best["pareto_optimal_in"]
    assert "evaluations" in rows[0]["pareto_optimal_in"]  # the cheapest

    done = run_command("report", "flow", cwd=home, env=environment(home))
    assert done.returncode == 0, done.stdout + done.stderr
    page = (home / "flow" / "report.html").read_text()
    assert '<section id="surface"' in page
    assert page.count("<circle cx=") == 6  # three points in two charts
    assert f"{METRIC} against network evaluations per image" in page
    assert "## Operating surface" in (home / "flow" / "report.md").read_text()


def test_an_interrupted_surface_continues(evaluate: Callable[..., tuple[int, str]], home: Path) -> None:
    code, output = evaluate("ckpt=flow", "surface={steps:[1,2]}", "output=whole.json")
    assert code == 0, output
    whole = surface_of(home / "whole.json")
    partial = {**whole, "points": whole["points"][:1]}
    (home / "partial.json").write_text(json.dumps(partial))
    code, output = evaluate("ckpt=flow", "surface={steps:[1,2]}", "output=partial.json")
    assert code == 0, output
    assert "surface: 2 points, 1 of them already measured" in output
    found = surface_of(home / "partial.json")["points"]
    assert [each["metrics"] for each in found] == [each["metrics"] for each in whole["points"]]
    assert (home / "partial.csv").is_file()
    assert not (home / "flow" / "surface.json").exists()


def test_a_gan_has_a_surface_over_its_own_options(evaluate: Callable[..., tuple[int, str]], home: Path) -> None:
    code, output = evaluate("ckpt=gan", "surface={truncation:[null,0.5]}")
    assert code == 0, output
    path = home / "gan" / "surface.json"
    surface = read_surface(path, below=home)
    assert surface is not None
    assert [point.num_evaluations for point in surface.points] == [None, None]
    assert surface.front("num_evaluations") == []
    assert surface.front("seconds_per_image")
    assert "sampling.truncation=null" in surface.points[0].command
    assert Image.open(path.with_suffix(".png")).size == (1040, 600)


def test_another_protocol_or_file_is_refused_before_any_work(evaluate: Callable[..., tuple[int, str]], home: Path) -> None:
    assert evaluate("ckpt=flow", "surface={steps:[1]}")[0] == 0
    before = (home / "flow" / "surface.json").read_bytes()
    code, output = evaluate("ckpt=flow", "surface={steps:[1]}", "num_images=24")
    assert code == 2
    assert "were measured with other settings (num_images)" in output
    assert (home / "flow" / "surface.json").read_bytes() == before
    (home / "other.json").write_text("{}")
    code, output = evaluate("ckpt=flow", "surface={steps:[1]}", "output=other.json")
    assert code == 2
    assert "other.json is not a surface that genimg-eval wrote" in output
    (home / "third.csv").write_text("name,age\n")
    code, output = evaluate("ckpt=flow", "surface={steps:[1]}", "output=third.json")
    assert code == 2
    assert "third.csv, which genimg did not write" in output
    assert (home / "third.csv").read_text() == "name,age\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["surface={step:[1]}"], ["surface.step is not an axis (did you mean 'steps'?)", "weights", "guidance"]),
        (["surface={}"], ["surface={} has no axes"]),
        (["surface={steps:[]}"], ["surface.steps=[] must be a list of one or more values"]),
        (["surface={steps:3}"], ["surface.steps=3 must be a list of one or more values"]),
        (["surface={steps:[[1],2]}"], ["surface.steps=[[1], 2] must be a list of single values"]),
        (["surface={steps:[2,2]}"], ["surface.steps=[2, 2] has the same value twice"]),
        (["surface={steps:[1,0]}"], ["surface.steps=0 must be 1 or more"]),
        (["surface={steps:[1,many]}"], ["surface.steps=many must be a whole number"]),
        (["surface={sampler:[ddim,euler],eta:[0.5]}"], ["surface: sampler=euler, eta=0.5 is invalid"]),
        (["surface={autoguidance:[null,nowhere]}"], ["surface.autoguidance=nowhere"]),
        (["surface={negative:[circle]}"], ["surface.negative=", "without guidance"]),
        (["surface={spacing:[null,uniform]}", "sampling.steps=2"], None),
        (["surface={weights:[raw,other]}"], ["surface: weights=other is unknown", "exponential"]),
        (["surface={weights:[ema,exponential]}"], ["are the same point"]),
        (["surface={weights:[0.001]}"], ["surface: weights=0.001"]),
        (["surface={weights:[null,raw]}"], None),
        (["surface={steps:[1]}", "sampling.steps=2"], ["sampling.steps=2 and surface.steps both set it"]),
        (["surface={weights:[raw]}", "weights=ema"], ["weights=ema and surface.weights both set it"]),
        (["surface={steps:[1]}", "neighbors=2"], ["neighbors=2 has no effect with surface="]),
        (["surface={steps:[1]}", "output=x.png"], ["output=x.png must end in .json"]),
        (["surface={steps:[1]}", "evaluation=likelihood"], ["needs generated images"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_any_point_is_measured(
    arguments: list[str], words: list[str] | None, evaluate: Callable[..., tuple[int, str]], home: Path
) -> None:
    code, output = evaluate("ckpt=flow", *arguments)
    if words is None:
        assert code == 0, output
        return
    assert code == 2, output
    assert "Traceback" not in output
    assert all(word in output for word in words), output
    assert not (home / "flow" / "surface.json").exists()


def test_images_and_python_have_no_surface(evaluate: Callable[..., tuple[int, str]]) -> None:
    code, output = evaluate("images=a", "real=b", "surface={steps:[1]}")
    assert code == 2
    assert "surface={steps:[1]} has no effect on images that exist already" in output


def test_commands_are_quoted_for_hydra_and_the_shell() -> None:
    given = ["ckpt=a b", "++sampling.steps=3", "surface={x:[1]}", "++surface.x=[1]", "output=o.json", "~evaluation.metrics.kd"]
    command = _command({"x": 1e-05, "name": "a,b", "word": "null", "flag": True, "none": None, "weights": "ema"}, given)
    assert shlex.split(command) == [
        "genimg-eval", "ckpt=a b", "sampling.steps=3", "~evaluation.metrics.kd", "sampling.x=1e-05", "sampling.name='a,b'",
        "sampling.word='null'", "sampling.flag=true", "sampling.none=null", "weights=ema",
    ]  # fmt: skip
