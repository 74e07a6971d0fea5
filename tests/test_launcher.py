"""Sweeps by hydra/launcher=gpu_queue: processes of their own, failures as rows, and a second launch that does what is left."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genimg import cli, launcher

PROGRAM = "import sys; from genimg import cli; sys.argv[0] = 'genimg-train'; cli.train()"
TINY = [
    "data=shapes", "data.num_images=32", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
    "model=vae_fully_connected", "model.encoder.widths=[8]", "model.decoder.widths=[8]", "device=cpu", "precision=fp32",
    "evaluation=likelihood", "evaluation.num_samples=2", "data.validation=0.25", "trainer.log_interval=1 steps",
    "hydra/launcher=gpu_queue", "hydra.sweep.dir=sweep",
]  # fmt: skip


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-m", *TINY, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def launch(folder: Path, *arguments: str) -> tuple[int, str]:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def wait_for(found: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_failing_job_is_a_row_and_a_second_launch_runs_what_is_left(tmp_path: Path) -> None:
    arguments = ["trainer.duration=2 steps", "model.latent_dim=3,0,4", "hydra.launcher.n_jobs=2"]
    code, output = launch(tmp_path, *arguments)
    assert code == 1, output
    assert "1 of 3 jobs failed, #1: the reasons are above" in output
    assert "Traceback" not in output
    assert "Error executing" not in output
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["complete", "failed", "complete"]
    assert [row["directory"] for row in rows] == [f"{i:03d}_model.latent-dim-{dim}" for i, dim in enumerate((3, 0, 4))]
    assert "model.latent_dim=0 must be 1 or more" in rows[1]["note"]
    assert "#1 failed (model.latent_dim=0 must be 1 or more): model.latent_dim=0" in output
    for row in (rows[0], rows[2]):
        folder = tmp_path / "sweep" / row["directory"]
        summary = json.loads((folder / "summary.json").read_text())
        assert float(row["best"]) == pytest.approx(summary["best"]["nll_iw2_nats"], rel=1e-6)
        assert "training for 2 steps" in (folder / "console.log").read_text()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("summary.json")}
    code, output = launch(tmp_path, *arguments)
    assert code == 1
    assert "#0 is complete" in output
    assert "#2 is complete" in output
    assert "#0 starts" not in output
    assert "#1 starts" in output
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_job_that_was_killed_is_continued_and_one_that_is_stopped_too(tmp_path: Path) -> None:
    arguments = [
        "trainer.duration=1000000 images", "trainer.checkpoint_interval=20 steps", "seed=0,1", "hydra.launcher.n_jobs=2",
        "evaluation.interval=1000000 images",
    ]  # fmt: skip
    process = start(tmp_path, *arguments)
    folders = [tmp_path / "sweep" / f"00{i}_seed-{i}" for i in range(2)]
    wait_for(lambda: all((folder / "checkpoints" / "last.pt").exists() for folder in folders))
    found = subprocess.run(["pgrep", "-f", f"run_dir=.*{folders[0].name}"], capture_output=True, text=True, check=True)
    for number in found.stdout.split():
        os.kill(int(number), signal.SIGKILL)
    wait_for(lambda: not subprocess.run(["pgrep", "-f", f"run_dir=.*{folders[0].name}"], capture_output=True).stdout)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stopping the jobs; each saves a checkpoint" in output
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["failed", "stopped"]
    assert rows[0]["note"] == "killed by SIGKILL"
    assert json.loads((folders[1] / "summary.json").read_text())["status"] == "stopped"
    before = len((folders[1] / "metrics.jsonl").read_text().splitlines())
    process = start(tmp_path, *arguments)
    wait_for(lambda: all("resuming from" in (folder / "console.log").read_text() for folder in folders))
    wait_for(lambda: len((folders[1] / "metrics.jsonl").read_text().splitlines()) > before)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def test_each_job_sees_a_gpu_of_its_own(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "trainer.duration=1 steps", "seed=0,1", "hydra.launcher.gpus=[3,5]")
    assert code == 0, output
    assert "on GPU 3" in output
    assert "on GPU 5" in output


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0 must be 1 or more jobs at a time"),
        (["hydra.launcher.n_jobs=2", "hydra.launcher.gpus=[0]"], "n_jobs=2 has no effect with hydra.launcher.gpus"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: str | list[str], message: str, tmp_path: Path) -> None:
    code, output = launch(tmp_path, "seed=0,1", *([setting] if isinstance(setting, str) else setting))
    assert code == 1
    assert message in output
    assert "Traceback" not in output


def test_a_row_says_how_far_a_job_is(tmp_path: Path) -> None:
    job = launcher.Job(3, ["seed=3"], tmp_path, own=["seed=3"], started=time.monotonic() - 10.0)
    assert launcher._row(job).split() == ["#3", "starting", "seed=3"]
    (tmp_path / "console.log").write_text("training for 2 epochs: 1000 images in 10 steps of 100\n")
    records = [{"images": 100, "loss/total": 1.0}, {"images": 200, "evaluation/fd5k": 7.25, "evaluation/is5k": 2.0},
               {"images": 250, "loss/total": 0.5}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"images": 3')
    assert job.progress() == (250, "fd5k 7.25")
    row = launcher._row(job)
    assert re.fullmatch(r"  #3     25%  00:00:(29|30) left +fd5k 7\.25 +seed=3", row), row
    job.images_before = 250  # nothing since it was continued
    assert "left" not in launcher._row(job)


def test_directories_are_called_by_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["genimg-train", "-m", "data=mnist", "trainer.duration='2 steps'", "loss=a,b", "+x=range(3)"]
    )
    assert cli._job_name(3, ["data=mnist", "trainer.duration=2 steps", "loss=a", "+x=1"]) == "003_loss-a_x-1"
    assert cli._job_name(4, ["data=mnist", "optimizer.lr=0.1"]) == "004_optimizer.lr-0.1"  # of a sweeper's own
    assert cli._job_name(0, ["data=mnist"]) == "000"
