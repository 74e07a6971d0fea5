"""What users and torchrun write, as Hydra takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from errors import raises
from fork_server import run_command

from genimg.commands.arguments import arguments_of_rank, continued_in_its_own_directory, in_hydras_order, value_of, with_runs
from genimg.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("arguments", "value"),
    [(["seed=1", "seed=2"], "2"), (["++seed='3'"], "3"), (['+seed="4"'], "4"), (["seed="], ""), (["seeds=1", "seed"], None)],
)
def test_the_last_value_of_a_key_counts_however_it_is_written(arguments: list[str], value: str | None) -> None:
    assert value_of("seed", arguments) == value


def test_overrides_may_follow_flags(tmp_path: Path) -> None:
    given = ["model=dcgan", "--config-dir", str(tmp_path), "seed=1", "-m", "--cfg", "job", "lr=0.1"]
    assert in_hydras_order(given) == ["model=dcgan", "seed=1", "lr=0.1", "--config-dir", str(tmp_path), "-m", "--cfg", "job"]
    assert in_hydras_order([f"--config-dir={tmp_path}", "seed=1"]) == ["seed=1", f"--config-dir={tmp_path}"]
    assert in_hydras_order(["--info", "config", "seed=1", "-i"]) == ["seed=1", "--info", "config", "-i"]
    assert in_hydras_order(["--config-dir", "--help"]) == ["--config-dir", "--help"]  # argparse says what is missing


@pytest.mark.parametrize("arguments", [["--config-dir", "nowhere", "a=1"], ["--config-dir=nowhere"], ["-cd", "nowhere"]])
def test_a_directory_of_configs_must_exist(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with raises(ConfigError, word="nowhere"):
        in_hydras_order(arguments)


def test_an_empty_run_dir_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        in_hydras_order(["model=dcgan", "run_dir="])
    assert caught.value.key == "run_dir"


def test_a_checkpoint_continues_in_its_run_and_one_that_lies_elsewhere_needs_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    (tmp_path / "alone.pt").touch()
    for resume in ("run", "run/checkpoints", "run/checkpoints/last.pt"):
        assert continued_in_its_own_directory([f"resume={resume}"]) == [f"resume={resume}", "run_dir='run'"]
    with raises(CheckpointError, "resume", word="run_dir") as caught:
        continued_in_its_own_directory(["resume=alone.pt"])
    assert caught.value.key == "resume"
    assert continued_in_its_own_directory(["resume=alone.pt", "run_dir=other"]) == ["resume=alone.pt", "run_dir=other"]


@pytest.mark.parametrize("argument", ["dry_run=true", "++dry_run=True", "dry_run=yes"])
def test_a_dry_run_makes_no_directory(argument: str) -> None:
    assert "hydra.output_subdir=null" in arguments_of_rank([argument])


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (["a=1"], {}, ["a=1"]),
        (["run_dir=x"], {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "0"}, ["run_dir=x"]),
        (["run_dir=x", "resume=null"], {"TORCHELASTIC_RESTART_COUNT": "1"}, ["run_dir=x"]),
        (["run_dir=x", "resume=old/last.pt"], {"TORCHELASTIC_RESTART_COUNT": "1"}, ["run_dir=x", "resume=old/last.pt"]),
        (["run_dir=full", "resume=old/last.pt"], {"TORCHELASTIC_RESTART_COUNT": "1"}, ["run_dir=full", "resume='full'"]),
    ],
)
def test_a_restarted_training_continues_from_its_newest_checkpoint(
    arguments: list[str], variables: dict[str, str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "checkpoints").mkdir(parents=True)
    (tmp_path / "full" / "checkpoints" / "step-00000003.pt").touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert arguments_of_rank(arguments) == expected


def test_restarts_without_a_run_directory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with raises(ConfigError, word="max-restarts"):
        arguments_of_rank(["model=dcgan"])


def test_other_ranks_leave_the_run_directory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "hydra.output_subdir=null" in arguments_of_rank(["run_dir=x"])
    monkeypatch.setenv("RANK", "0")
    assert arguments_of_rank(["run_dir=x"]) == ["run_dir=x"]


def test_arguments_that_are_no_overrides_become_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=1").mkdir()
    assert with_runs(["output=o.html", "--cfg", "job"]) == ["output=o.html", "--cfg", "job"]
    assert with_runs(["it's", "output=o.html", "x=1", "-h"]) == ["output=o.html", "-h", "runs=['it\\'s','x=1']"]
    assert with_runs(["hydra/job_logging=disabled", "--config-dir", "d", "a"])[:3] == [
        "hydra/job_logging=disabled", "--config-dir", "d",
    ]  # fmt: skip


def test_a_key_with_two_values_is_a_warning(tmp_path: Path) -> None:
    done = run_command("train", *tiny.SHORT_RUN, "seed=1", "seed=2", "run_dir=run", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed is given 2 times" in done.stdout + done.stderr
    assert " is given " not in run_command("train", *tiny.SHORT_RUN, "seed=2", "seed=2", "dry_run=true", cwd=tmp_path).stdout
