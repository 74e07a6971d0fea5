"""Searches by hydra/sweeper=optuna_study: a study that outlives a launch, and trials that end early."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from sweeping import TINY, launch, start, table

optuna = pytest.importorskip("optuna", reason="the extra genimg[sweep] is not installed")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from genimg.sweeps import trials as module  # noqa: E402
from genimg.sweeps.job import Job  # noqa: E402
from genimg.sweeps.queue import SweepError  # noqa: E402

STUDY = [*TINY, "hydra/sweeper=optuna_study"]


def test_a_second_launch_runs_what_failed_and_continues_what_was_killed(tmp_path: Path) -> None:
    search = [
        "hydra.launcher.n_jobs=2", "model.latent_dim=choice(3,0)", "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.seed=2", "trainer.checkpoint_interval=20 steps",
    ]  # fmt: skip
    long = "trainer.duration=600 steps"
    process = start(tmp_path, *search, long, common=STUDY)
    killed, end = "", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < end:
        found = [] if killed else sorted((tmp_path / "sweep").glob("*latent-dim-3*/checkpoints/last.pt"))
        if found:
            killed = found[0].parent.parent.name
            numbers = subprocess.run(
                ["pgrep", "-f", f"run_dir=.*{tmp_path}/.*{killed}"], capture_output=True, text=True, check=True
            )
            for number in numbers.stdout.split():
                os.kill(int(number), signal.SIGKILL)
        time.sleep(0.05)
    output = process.communicate()[0]
    assert process.returncode == 2, output
    rows = {row["directory"]: row for row in table(tmp_path)}
    assert len(rows) == 3
    assert rows[killed]["note"] == "killed by SIGKILL"
    statuses = {name: row["status"] for name, row in rows.items()}
    assert set(statuses.values()) == {"completed", "failed"}
    assert any("model.latent_dim=0 must be 1 or more" in row["note"] for row in rows.values()), "the seed must draw both"
    complete = [row["job"] for row in rows.values() if row["status"] == "completed"]

    code, output = launch(tmp_path, *search, long, common=STUDY)
    assert "3 of 3 trials exist" in output
    for number in complete:
        assert f"#{number} is complete" in output
        assert f"#{number} starts" not in output
    again = {row["directory"]: row for row in table(tmp_path)}
    assert set(again) == set(rows)
    assert again[killed]["status"] == "completed"
    assert "resuming from" in (tmp_path / "sweep" / killed / "console.log").read_text()
    assert code == 2  # the other has failed once more
    study = optuna.load_study(study_name="genimg", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert study.best_value == pytest.approx(min(summary["best"]["nll_iw2_nats"] for summary in summaries))
    assert f"#{study.best_trial.user_attrs['job']} with {study.best_value:.6g}" in output

    code, output = launch(tmp_path, *search, "trainer.duration=3 steps", common=STUDY)
    assert code == 2
    assert "there trainer.duration=600\\ steps, here trainer.duration=3\\ steps" in output


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
    assert module.distribution(OverridesParser.create().parse_override(text)) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x=tag(log,interval(0,1))", "logarithmic one"),
        ("x=interval(1e-2,1e-3)", "larger"),
        ("x=tag(log,range(1,100))", "logarithmically"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_its_name(text: str, word: str) -> None:
    with raises(ValueError, word=word) as caught:
        module.distribution(OverridesParser.create().parse_override(text))
    assert str(caught.value).startswith(text)


def trials_of(study: Any, folder: Path, **changes: Any) -> Any:
    def compose(number: int, overrides: list[str]) -> Job:
        return Job(number, overrides, folder / str(number))

    settings = {"compose": compose, "space": {"x": FloatDistribution(0, 1)}, "fixed": ["seed=3"], "n_trials": 6,
                "budget": None}  # fmt: skip
    return module.Trials(study=study, folder=folder, **settings | changes)


def finish(job: Job, value: float) -> None:
    job.folder.mkdir(exist_ok=True)
    summary = {"status": "completed", "best": {"fd": value}, "overrides": job.overrides}
    (job.folder / "summary.json").write_text(json.dumps(summary))
    job.status = "completed"


def test_a_trial_worse_than_the_median_ends(tmp_path: Path) -> None:
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=200),
    )
    trials = trials_of(study, tmp_path)

    def run(values: list[float]) -> tuple[Job, list[str | None]]:
        job = trials.next()
        assert job is not None
        job.folder.mkdir()
        said = []
        with (job.folder / "metrics.jsonl").open("a") as file:
            for place, value in enumerate(values, 1):
                file.write(json.dumps({"images": 100 * place, "evaluation/fd": value}) + "\n")
                file.flush()
                trials._next_look.clear()
                said.append(trials.why_hopeless(job))
                if said[-1]:
                    return job, said
        finish(job, min(values))
        trials.ended(job)
        return job, said

    for last in (3.0, 2.0, 4.0):
        assert run([10.0, 6.0, last])[1] == [None, None, None]
    assert run([50.0, 5.0, 2.5])[1] == [None, None, None]  # bad only before the pruning begins
    job, said = run([10.0, 7.0, 1.0])
    assert said == [None, "at 200 images no value is as good as the median trial's; the last is 7"]
    job.status, job.note = "pruned", str(said[-1])
    trials.ended(job)
    assert study.trials[-1].state == optuna.trial.TrialState.PRUNED
    run([10.0, 6.0, 2.5])
    assert trials.next() is None
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["status"] for row in rows] == ["completed"] * 4 + ["pruned", "completed"]
    assert study.best_value == 2.0

    again = trials_of(study, tmp_path)
    assert again.next() is None  # a pruned trial is left as it is
    assert again.num_done == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_a_failure(value: float, tmp_path: Path) -> None:
    study = optuna.create_study()
    trials = trials_of(study, tmp_path, n_trials=1)
    job = trials.next()
    finish(job, value)
    trials.ended(job)
    assert (job.status, study.trials[0].state) == ("failed", optuna.trial.TrialState.FAIL)
    with raises(SweepError, word="#0"):
        trials.report()


def test_overrides_that_do_not_compose_fail_and_others_go_on(tmp_path: Path) -> None:
    def compose(number: int, overrides: list[str]) -> Job:
        failed = {"status": "failed", "note": "no such option"} if number == 0 else {}
        return Job(number, overrides, tmp_path / str(number), **failed)  # type: ignore[arg-type]

    study = optuna.create_study()
    trials = trials_of(study, tmp_path, compose=compose, n_trials=2)
    job = trials.next()
    assert job.number == 1
    finish(job, 1.0)
    trials.ended(job)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["status"], row["note"]) for row in rows] == [("failed", "no such option"), ("completed", "")]


def test_a_sweep_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    study = optuna.create_study()
    trials = trials_of(study, tmp_path / "old", n_trials=2)
    (tmp_path / "old").mkdir(exist_ok=True)
    finish(trials.next(), 1.0)
    first = trials.by_number[0]
    trials.ended(first)
    trials.next()  # and the launcher is killed
    (tmp_path / "old").rename(tmp_path / "new")
    again = trials_of(study, tmp_path / "new", n_trials=2)
    assert again.by_number[0].value() == 1.0
    job = again.next()
    assert (job.number, job.folder) == (1, tmp_path / "new" / "1")
    assert job.overrides == trials.by_number[1].overrides
    assert again.next() is None


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["seed=0"], "hydra/sweeper=optuna_study"),
        (["seed=0,1", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0"),
        (["seed=0,1", "hydra.sweeper.direction=up"], "hydra.sweeper.direction=up"),
        (["seed=0,1", "hydra.sweeper.sampler=grid"], "hydra.sweeper.sampler=grid"),
        (["seed=0,1", "hydra.sweeper.prune_after=some"], "hydra.sweeper.prune_after=some"),
        (["seed=0,1", "evaluation=none"], "evaluation=none"),
        (["seed=0,1", "hydra.sweeper.direction=maximize"], "hydra.sweeper.direction=minimize"),
        (["seed=0,1", "hydra.launcher.skip_finished=false"], "hydra.launcher.skip_finished=false"),
        (["seed=0,1", "hydra/launcher=basic"], "hydra/launcher=gpu_queue"),
        (["seed=0,1", "hydra.sweeper.storage=sqlite:////no/such/folder/a.db"], "hydra.sweeper.storage=sqlite:////no/such"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(arguments: list[str], setting: str, tmp_path: Path) -> None:
    common = [each for each in STUDY if "evaluation=none" not in arguments or not each.startswith("evaluation.")]
    code, output = launch(tmp_path, *arguments, common=common)
    assert code == 2
    assert setting in output.partition("genimg-train: error:")[2]
    assert "Traceback" not in output
    assert output.count("genimg-train: error:") == 1
