"""A sweep's directory that a stranger has packed: its study and its table decide neither arguments nor directories."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from genimg.errors import ConfigError
from genimg.reporting.discover import find_runs
from genimg.sweeps.job import Job, table_of, write_table
from genimg.utils.csv_cells import neutral, original

TITLES = ["job", "status", "best", "directory", "note", "overrides"]


def write_rows(folder: Path, *rows: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([TITLES, *rows])


def make_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "images": 8, "loss/generator": 1.0}\n')


class TestStudy:
    optuna = pytest.importorskip("optuna", reason="the extra genimg[sweep] is not installed")

    def space(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        return {
            "optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
            "model.latent.dim": IntDistribution(2, 8),
            "loss": CategoricalDistribution(["hinge", "nonsaturating"]),
        }

    def trials(self, study: Any, folder: Path) -> Any:
        from genimg.sweeps.trials import Trials

        def compose(number: int, overrides: list[str]) -> Job:
            return Job(number, overrides, folder / f"{number:03d}")

        return Trials(compose, study, self.space(), ["seed=0"], folder, n_trials=2, budget=None)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("allow", "[os]"),
            ("loss", "hinge allow=[os]"),
            ("loss", "${oc.env:HOME}"),
            ("optimizer.lr", 0.5),
            ("model.latent.dim", 9),
        ],
    )
    @pytest.mark.parametrize("state", ["COMPLETE", "FAIL", "RUNNING"])
    def test_parameters_outside_the_search_space_become_no_arguments(
        self, tmp_path: Path, name: str, value: Any, state: str
    ) -> None:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        kind = {str: CategoricalDistribution([value]), float: FloatDistribution(0, 1), int: IntDistribution(0, 99)}[type(value)]
        study = self.optuna.create_study()
        study.add_trial(
            self.optuna.trial.create_trial(
                state=self.optuna.trial.TrialState[state], params={name: value}, distributions={name: kind},
                values=[1.0] if state == "COMPLETE" else None, user_attrs={"job": 0, "directory": "000"},
            )
        )  # fmt: skip
        with raises(ConfigError, "hydra.sweep.dir", word="search") as caught:
            self.trials(study, tmp_path)
        assert f"{name}={value}" in str(caught.value)

    def test_parameters_that_wait_for_a_trial_are_of_the_search_space(self, tmp_path: Path) -> None:
        study = self.optuna.create_study()
        study.enqueue_trial({"allow": "[os]"})
        with raises(ConfigError, "hydra.sweep.dir", word="allow=[os]"):
            self.trials(study, tmp_path)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"directory": "../elsewhere"},
            {"directory": "/etc"},
            {"directory": "link"},
            {"directory": "."},
            {"directory": 3},
            {"directory": ["a"]},
            {"job": -1},
            {"job": "0"},
            {"job": True},
            {"job": 10**9},
        ],
    )
    def test_jobs_and_directories_are_those_of_the_sweep(self, tmp_path: Path, attributes: dict[str, Any]) -> None:
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep" / "link").symlink_to(tmp_path)
        study = self.optuna.create_study()
        space = {"model.latent.dim": self.space()["model.latent.dim"]}
        study.add_trial(
            self.optuna.trial.create_trial(
                value=1.0, params={"model.latent.dim": 3}, distributions=space,
                user_attrs={"job": 0, "directory": "000", **attributes},
            )
        )  # fmt: skip
        with raises(ConfigError, "hydra.sweep.dir", word="search"):
            self.trials(study, tmp_path / "sweep")

    def test_trials_of_the_search_itself_are_taken(self, tmp_path: Path) -> None:
        study = self.optuna.create_study()
        study.add_trial(
            self.optuna.trial.create_trial(
                value=1.0, params={"optimizer.lr": 1e-3, "model.latent.dim": 3, "loss": "hinge"}, distributions=self.space(),
                user_attrs={"job": 0, "directory": "000"},
            )
        )  # fmt: skip
        trials = self.trials(study, tmp_path)
        assert trials.num_done == 1
        job = trials.next()
        assert job.number == 1
        assert [each.partition("=")[0] for each in job.overrides] == ["seed", *self.space()]


def test_a_table_pulls_no_other_directory_into_a_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = tmp_path / "sweep"
    make_run(tmp_path / "private")
    make_run(sweep / "000")
    (sweep / "001").symlink_to(tmp_path / "private")
    rows = ["000", "../private", str(tmp_path / "private"), "001", "000/../../private", ".", "no\0name"]
    write_rows(sweep, *((str(i), "completed", "1", directory, "", "seed=1") for i, directory in enumerate(rows)))
    found = find_runs([sweep])
    assert [run.folder.name for run in found] == ["000"]
    assert "private" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"job,directory\nx,000\n-1,000\n1e9,000\n", b"\xff\xfe\x00", b"job,directory\n" + b"x," * 100_000,
     b'job,directory\n1,"' + b"x" * 200_000 + b'"\n', b"job\n" * 50]
)  # fmt: skip
def test_tables_of_odd_content_are_read_as_far_as_they_make_sense(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sweep.csv").write_bytes(content)
    assert table_of(tmp_path / "sweep.csv") == {}
    write_table([Job(0, ["seed=1"], tmp_path / "000")], tmp_path / "sweep.csv")
    assert set(table_of(tmp_path / "sweep.csv")) == {"0"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_table_that_is_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sweep.csv")
    assert table_of(tmp_path / "sweep.csv") == {}


@pytest.mark.parametrize("text", ["=1+1", "+key=1", "-x", "@a", "\tx", "\r"])
def test_cells_that_a_spreadsheet_would_calculate_are_text(tmp_path: Path, text: str) -> None:
    assert neutral(text) == f"'{text}"
    job = Job(0, ["+a=1"], tmp_path / "000", note=text)
    write_table([job], tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["note"], row["overrides"]) == (f"'{text}", "'+a=1")
    assert table_of(tmp_path / "sweep.csv")["0"]["note"] == text


@pytest.mark.parametrize("text", ["", "1", "-1.5e-3", "+3", "-inf", "nan", "a=1", "'quoted'", "''=1"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert original(neutral(text)) == text
    assert neutral(text) == text
