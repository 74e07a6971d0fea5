"""genimg-verify: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from fork_server import run_command, run_commands

from genimg.commands.arguments import with_run
from genimg.errors import ConfigError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("verified")
    words = ["train", *tiny.SHORT_RUN, "trainer.duration=3 steps", "trainer.checkpoint_interval=1 steps", "run_dir=run"]
    codes, output = run_commands([words], home, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert codes == [0], output
    return home / "run"


def test_the_command_prints_and_writes_a_certificate_and_its_exit_code_is_the_result(run: Path) -> None:
    done = run_command("verify", "run", "first=0", "output=certificate.json", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    record = json.loads((run.parent / "certificate.json").read_text())
    assert record["certified"] is True
    (interval,) = record["intervals"]
    assert (interval["first"]["step"], interval["last"]["step"]) == (0, 3)
    lines = done.stdout.splitlines()
    assert lines[0] == "certified: the initialisation leads to step 3, bit for bit"
    assert any(interval["last"]["sha256"] in line for line in lines)
    path = run / "checkpoints/step-00000003.pt"
    state = torch.load(path, weights_only=True)
    state["training"]["threads"], state["method"] = [(0, 1)], {key: value + 1 for key, value in state["method"].items()}
    torch.save(state, path)
    done = run_command("verify", "run", "output=other.json", cwd=run.parent)
    assert done.returncode == 3
    assert "Traceback" not in done.stdout + done.stderr
    record = json.loads((run.parent / "other.json").read_text())
    assert record["certified"] is False
    assert record["intervals"][record["first_bad_interval"]]["differences"]
    assert sorted(path.name for path in run.parent.iterdir()) == ["certificate.json", "other.json", "run"]


@pytest.mark.parametrize(
    "words", [[], ["nowhere"], ["run", "output=certificate.txt"], ["run", "firts=1"], ["run", "other"], ["run", "first=7"]]
)
def test_errors_have_the_exit_code_2_and_write_nothing(words: list[str], run: Path) -> None:
    before = sorted(path.name for path in run.parent.iterdir())
    done = run_command("verify", *words, cwd=run.parent)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("genimg-verify: error: ")
    assert sorted(path.name for path in run.parent.iterdir()) == before


def test_a_directory_without_a_key_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1").mkdir()
    assert with_run(["lr=1", "all=true", "--cfg", "job"]) == ["all=true", "--cfg", "job", "run='lr=1'"]
    assert with_run(["run=a", "first=0"]) == ["run=a", "first=0"]
    for words in (["a", "b"], ["a", "run=b"]):
        with pytest.raises(ConfigError):
            with_run(words)
