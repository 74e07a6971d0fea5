"""Searches by hydra/sweeper=optuna_study: a study that outlives a launch, and trials that end early."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="the extra genimg[sweep] is not installed")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from genimg.sweeps import study as module  # noqa: E402
from genimg.sweeps.job import Job  # noqa: E402

PROGRAM = "import sys; from genimg import cli; sys.argv[0] = 'genimg-train'; cli.train()"
TINY = [
    "data=shapes", "data.num_images=32", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
    "model=vae_fully_connected", "model.encoder.widths=[8]", "model.decoder.widths=[8]", "device=cpu", "precision=fp32",
    "evaluation=likelihood", "evaluation.num_samples=2", "data.validation=0.25", "trainer.log_interval=1 steps",
    "hydra/launcher=gpu_queue", "hydra.sweep.dir=sweep", "hydra/sweeper=optuna_study",
]  # fmt: skip


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-m", *TINY, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_launch_runs_what_failed_and_continues_what_was_killed(tmp_path: Path) -> None:
    search = [
        "hydra.launcher.n_jobs=2", "model.latent_dim=choice(3,0)", "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.seed=2", "trainer.checkpoint_interval=20 steps",
    ]  # fmt: skip
    long = "trainer.duration=2000 steps"
    process = launch(tmp_path, *search, long)
    killed, end = "", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < end:
        found = [] if killed else sorted((tmp_path / "sweep").glob("*latent-dim-3*/checkpoints/last.pt"))
        if found:
            killed = found[0].parent.parent.name
            numbers = subprocess.run(["pgrep", "-f", f"run_dir=.*{killed}"], capture_output=True, text=True, check=True)
            for number in numbers.stdout.split():
                os.kill(int(number), signal.SIGKILL)
        time.sleep(0.05)
    output = process.communicate()[0]
    assert process.returncode == 1, output
    rows = {row["directory"]: row for row in table(tmp_path)}
    assert len(rows) == 3
    assert rows[killed]["note"] == "killed by SIGKILL"
    statuses = {name: row["status"] for name, row in rows.items()}
    assert set(statuses.values()) == {"complete", "failed"}
    assert any("model.latent_dim=0 must be 1 or more" in row["note"] for row in rows.values()), "the seed must draw both"
    complete = [row["job"] for row in rows.values() if row["status"] == "complete"]

    process = launch(tmp_path, *search, long)
    output, _ = process.communicate(timeout=200)
    assert "3 of 3 trials there" in output
    for number in complete:
        assert f"#{number} is complete" in output
        assert f"#{number} starts" not in output
    again = {row["directory"]: row for row in table(tmp_path)}
    assert set(again) == set(rows)
    assert again[killed]["status"] == "complete"
    assert "resuming from" in (tmp_path / "sweep" / killed / "console.log").read_text()
    assert process.returncode == 1  # the other has failed once more
    study = optuna.load_study(study_name="genimg", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert study.best_value == pytest.approx(min(summary["best"]["nll_iw2_nats"] for summary in summaries))
    assert f"#{study.best_trial.user_attrs['job']} with {study.best_value:.6g}" in output

    process = launch(tmp_path, *search, "trainer.duration=3 steps")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "is of jobs with other settings (trainer.duration=2000\\ steps trainer.duration=3\\ steps)" in output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("x=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("x=int(interval(1,8))", IntDistribution(1, 8)),
        ("x=range(1,10,2)", IntDistribution(1, 9, step=2)),
        ("loss=hinge,wasserstein", CategoricalDistribution(["hinge", "wasserstein"])),
        ("x=choice(true,1.5)", CategoricalDistribution(["True", "1.5"])),
        ("optimizer.betas=[0.0,0.9],[0.5,0.999]", CategoricalDistribution(["[0.0,0.9]", "[0.5,0.999]"])),
        ("x=range(0,1,0.5)", CategoricalDistribution(["0.0", "0.5"])),
    ],
)
def test_hydras_syntax_says_what_is_searched(text: str, expected: Any) -> None:
    assert module._distribution(OverridesParser.create().parse_override(text)) == expected


def test_an_interval_of_logarithms_begins_above_0() -> None:
    with pytest.raises(ValueError, match="begins above 0"):
        module._distribution(OverridesParser.create().parse_override("x=tag(log,interval(0,1))"))


class Sweeper:
    n_trials, higher_is_better = 6, False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def job(self, number: int, overrides: list[str]) -> Job:
        return Job(number, overrides, self._folder / str(number))


def test_a_trial_worse_than_the_median_ends(tmp_path: Path) -> None:
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=200),
    )
    trials = module._Trials(Sweeper(tmp_path), study, {"x": FloatDistribution(0, 1)}, ["seed=3"], tmp_path)  # type: ignore[arg-type]

    def run(values: list[float]) -> tuple[Job, list[str | None]]:
        job = trials.next()
        assert job is not None
        (job.folder / ".hydra").mkdir(parents=True)
        (job.folder / ".hydra" / "overrides.yaml").write_text(json.dumps(job.overrides))
        said = []
        with (job.folder / "metrics.jsonl").open("a") as file:
            for place, value in enumerate(values, 1):
                file.write(json.dumps({"images": 100 * place, "evaluation/fd": value}) + "\n")
                file.flush()
                trials._next_look.clear()
                said.append(trials.why_hopeless(job))
                if said[-1]:
                    return job, said
        (job.folder / "summary.json").write_text(json.dumps({"status": "completed", "best": {"fd": min(values)}}))
        job.status = "complete"
        trials.ended(job)
        return job, said

    for last in (3.0, 2.0, 4.0):
        assert run([10.0, 6.0, last])[1] == [None, None, None]
    assert run([50.0, 5.0, 2.5])[1] == [None, None, None]  # bad only before the pruning begins
    job, said = run([10.0, 7.0, 1.0])
    assert said == [None, "7 at 200 images is worse than the median trial"]
    job.status, job.note = "pruned", "7 at 200 images is worse than the median trial"
    trials.ended(job)
    assert study.trials[-1].state == optuna.trial.TrialState.PRUNED
    run([10.0, 6.0, 2.5])
    assert trials.next() is None
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["status"] for row in rows] == ["complete"] * 4 + ["pruned", "complete"]
    assert study.best_value == 2.0

    again = module._Trials(Sweeper(tmp_path), study, {"x": FloatDistribution(0, 1)}, ["seed=3"], tmp_path)  # type: ignore[arg-type]
    assert again.next() is None  # a pruned trial is left as it is
    assert again.num_done == 6


def test_the_wrong_direction_is_told(tmp_path: Path) -> None:
    study = optuna.create_study()
    trials = module._Trials(Sweeper(tmp_path), study, {"x": FloatDistribution(0, 1)}, [], tmp_path)  # type: ignore[arg-type]
    job = trials.next()
    assert job is not None
    (job.folder / ".hydra").mkdir(parents=True)
    (job.folder / ".hydra" / "overrides.yaml").write_text(json.dumps(job.overrides))
    summary = {"status": "completed", "best": {"is5k": 3.0}, "primary": "is5k", "higher_is_better": True}
    (job.folder / "summary.json").write_text(json.dumps(summary))
    job.status = "complete"
    with pytest.raises(ValueError, match=r"is5k is better where it is higher: give .*=maximize"):
        trials.ended(job)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=0"], "nothing is searched for"),
        (["seed=0,1", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 must be 1 or more trials"),
        (["seed=0,1", "hydra.sweeper.direction=up"], "hydra.sweeper.direction=up must be minimize or maximize"),
        (["seed=0,1", "hydra.sweeper.sampler=grid"], "hydra.sweeper.sampler=grid must be tpe or random"),
        (["seed=0,1", "hydra.sweeper.prune_after=some"], "hydra.sweeper.prune_after=some must be a number of images"),
        (["seed=0,1", "hydra/launcher=basic"], "add hydra/launcher=gpu_queue"),
        (["seed=0,1", "hydra.sweeper.storage=sqlite:////no/such/folder/a.db"], "hydra.sweeper.storage=sqlite:////no/such"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    process = launch(tmp_path, *arguments)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert message in output
    assert "Traceback" not in output
    assert output.count("genimg-train: error:") == 1
