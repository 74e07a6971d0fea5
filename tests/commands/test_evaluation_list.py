"""genimg-train and genimg-eval with evaluation=[a,b]: every value appears wherever values are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fork_server import run_command, run_commands

import genimg

SMALL = [
    "data=shapes", "data.num_images=64", "data.image_size=16", "data.validation=0.25", "model=vae_small",
    "model.encoder.width=4", "trainer.batch_size=16", "trainer.duration=2 steps", "trainer.preview_images=4", "device=cpu",
    "evaluation.num_images=40", "evaluation.num_real=30", "evaluation.reconstructions=8", "evaluation.bootstrap=3",
    "evaluation.final_num_images=50",
]  # fmt: skip
NAMES = {f"fd{count}_{extractor}_v2" for count in (40, 50) for extractor in ("shapes", "mnist")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with runs by two extractors, and by each of them alone."""
    home = tmp_path_factory.mktemp("lists")
    chosen = {"both": "[shapes,mnist]", "first": "shapes", "second": "mnist"}
    codes, output = run_commands(
        [["train", *SMALL, f"evaluation={each}", f"run_dir={home / name}"] for name, each in chosen.items()],
        home,
        environment(home),
    )
    assert codes == [0, 0, 0], output
    return home


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(home / "cache")}


def summary(home: Path, name: str) -> dict:
    return json.loads((home / name / "summary.json").read_text())


@pytest.mark.parametrize("part", ["last", "best"])
def test_a_training_measures_what_two_trainings_measure(home: Path, part: str) -> None:
    both, shapes, mnist = (summary(home, name) for name in ("both", "first", "second"))
    assert both[part] == shapes[part] | mnist[part]
    assert both["final"]["metrics"] == shapes["final"]["metrics"] | mnist["final"]["metrics"]
    assert both["primary"] == shapes["primary"] == "fd40_shapes_v2"
    assert {"reconstruction_held_out_fd8_shapes_v2", "reconstruction_held_out_fd8_mnist_v2"} <= set(both[part])


def test_every_value_is_recorded_and_reported(home: Path) -> None:
    records = [json.loads(line) for line in (home / "both" / "metrics.jsonl").read_text().splitlines()]
    recorded = {key for record in records for key in record}
    assert {f"evaluation/{name}" for name in NAMES if "40" in name} <= recorded
    assert {f"final/{name}_low" for name in NAMES if "50" in name} <= recorded
    provenance = next(record["provenance"] for record in records if "provenance" in record)
    assert provenance["extractor"]["name"] == "shapes_v2"
    assert provenance["additional"]["mnist"]["extractor"]["name"] == "mnist_v2"
    log = (home / "both" / "train.log").read_text()
    assert "measured with shapes_v2 (4a6a6c28) and mnist_v2 (708c8172), 40 generated" in log
    page = (home / "both" / "report.html").read_text()
    assert all(name in log and name in page for name in NAMES)


def test_genimg_eval_measures_the_checkpoint_with_the_same_extractors(home: Path) -> None:
    result = run_command(
        "eval", f"ckpt={home / 'both'}", "device=cpu", f"output={home / 'result.json'}", cwd=home, env=environment(home)
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((home / "result.json").read_text())
    assert found["metrics"] == pytest.approx(summary(home, "both")["last"], rel=1e-9)
    output = result.stdout + result.stderr
    assert all(name in output for name in found["metrics"])


def test_genimg_eval_takes_a_list(home: Path) -> None:
    result = run_command(
        "eval", f"ckpt={home / 'first'}", "evaluation=[mnist,shapes]", "num_images=30", "num_real=20", "device=cpu",
        f"output={home / 'list.json'}", cwd=home, env=environment(home),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    names = list(json.loads((home / "list.json").read_text())["metrics"])
    assert names[0] == "fd30_mnist_v2"
    assert "fd30_shapes_v2" in names


def test_results_compare_whatever_the_order_of_their_extractors(home: Path) -> None:
    calls = [
        ["eval", f"ckpt={home / 'first'}", f"evaluation=[{first},{second}]", "num_images=30", "num_real=20", "device=cpu",
         f"output={home / first}_first.json"] for first, second in (("shapes", "mnist"), ("mnist", "shapes"))
    ]  # fmt: skip
    comparison = ["eval", f"compare=[{home / 'shapes_first.json'},{home / 'mnist_first.json'}]"]
    codes, output = run_commands([*calls, comparison], home, environment(home))
    assert codes == [0, 0, 0], output
    assert "comparable: everything that the values depend on is the same" in output
    assert "not comparable" not in output


def test_saved_statistics_are_of_one_extractor(home: Path) -> None:
    result = run_command(
        "eval", "real=shapes", "save_statistics=real.pt", "evaluation=[mnist,shapes]", "device=cpu", cwd=home,
        env=environment(home),
    )  # fmt: skip
    assert result.returncode == 2
    assert "save_statistics=real.pt writes the statistics of one extractor" in result.stderr


def test_python_takes_a_list(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENIMG_CACHE", str(home / "cache"))
    model = genimg.load(home / "first", device="cpu")
    found = model.evaluate(evaluation=["shapes", "mnist"], num_images=20)
    assert {"fd20_shapes_v2", "fd20_mnist_v2"} <= set(found.values)
    images = model.sample(12, seed=1)
    assert {"fd12_mnist_v2", "fd12_shapes_v2"} <= set(genimg.evaluate(images, images, evaluation=["mnist", "shapes"]).values)


def test_stop_if_names_a_metric_of_either_extractor(home: Path) -> None:
    rule = "evaluation.stop_if={metric: fd40_mnist_v2, above: 0, evaluations: 1}"
    result = run_command(
        "train", *SMALL, "evaluation=[shapes,mnist]", "evaluation.interval=1 steps", rule, f"run_dir={home / 'stopped'}",
        cwd=home, env=environment(home),
    )  # fmt: skip
    assert result.returncode == 2
    assert "by evaluation.stop_if: fd40_mnist_v2 is" in result.stderr
    ambiguous = rule.replace("fd40_mnist_v2", "fd")
    result = run_command(
        "train", *SMALL, "evaluation=[shapes,mnist]", "evaluation.interval=1 steps", ambiguous, f"run_dir={home / 'refused'}",
        cwd=home, env=environment(home),
    )  # fmt: skip
    assert result.returncode == 2
    assert "stop_if.metric=fd is the beginning of several metrics: choose one of fd40_shapes_v2, fd40_mnist_v2" in result.stderr
