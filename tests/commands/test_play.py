"""genimg-play through the command line, from its start to Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import tiny
from fork_server import run_command

PROGRAM = "import sys; sys.argv[0] = 'genimg-play'; from genimg.cli import play; play()"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run."""
    home = tmp_path_factory.mktemp("home")
    done = run_command("train", *tiny.SHORT_RUN, "trainer.duration=2 steps", "run_dir=run", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture
def process(home: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-c", PROGRAM, "ckpt=run", "device=cpu", "truncation=0.5"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    with subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_page_until_it_is_stopped(process: subprocess.Popen[str], tmp_path: Path, number: signal.Signals) -> None:
    output: IO[str] | None = process.stdout
    assert output is not None
    found = next((match for line in output if (match := re.search(r"http://127\.0\.0\.1:\d+", line))), None)
    assert found is not None
    with urllib.request.urlopen(found[0], timeout=30) as answer:
        assert b"genimg playground" in answer.read()
    assert list(tmp_path.glob("genimg-play-*"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert list(tmp_path.glob("genimg-play-*")) == []
    assert tempfile.gettempdir() != str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["ckpt=nowhere"], "ckpt=nowhere"),
        (["ckpt=run", "truncatoin=0.5"], "truncatoin"),
        (["ckpt=run", "truncation=-1"], "truncation=-1"),
        (["ckpt=run", "steps=3"], "steps"),
        (["ckpt=run", "num_images=65"], "num_images=65"),
        (["ckpt=run", f"seed={2**53}"], f"seed={2**53}"),
        (["ckpt=run", "port=0"], "port=0"),
        (["ckpt=run", "weights=nothing"], "weights=nothing"),
        (["ckpt=run", "open_browser=maybe"], "open_browser=maybe"),
    ],
)
def test_errors_end_it_before_it_serves(home: Path, arguments: list[str], key: str) -> None:
    done = run_command("play", *arguments, "device=cpu", cwd=home)
    assert done.returncode == 2, done.stdout + done.stderr
    assert key in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_options_of_the_model(home: Path) -> None:
    done = run_command("play", "ckpt=run", "--help", cwd=home)
    assert "open_browser" in done.stdout
    assert "truncation" in done.stdout
