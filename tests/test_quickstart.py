"""scripts/quickstart.sh passes its arguments on, with settings of its own where these do not set the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from genimg.api.train import compose

ROOT = Path(__file__).resolve().parent.parent
TIMES = ["trainer.duration=100 seconds", "evaluation.interval=100 epochs", "trainer.preview_seconds=10"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a genimg-train that prints its arguments, one a line."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(shutil.which("true") or "/bin/true")
    (folder / "bin/genimg-train").write_text('#!/bin/sh\nprintf "> %s\\n" "$@"\n')
    (folder / "bin/genimg-train").chmod(0o755)
    shutil.copy(ROOT / "pyproject.toml", folder / "genimg-installed")
    return {**os.environ, "GENIMG_VENV": str(folder)}


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], TIMES),
        (["model=vae_small"], TIMES),
        (["trainer.preview_seconds=5"], TIMES[:2]),
        (["trainer.duration=5 epochs"], []),
        (["experiment=vae_mnist"], []),
        (["evaluation=none"], []),
        (["debug=two_steps"], []),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_settings_fill_in_for_arguments(arguments: list[str], settings: list[str], environment: dict[str, str]) -> None:
    command = ["bash", str(ROOT / "scripts/quickstart.sh"), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    passed = [line[2:] for line in run.stdout.splitlines() if line.startswith("> ")]
    assert passed[:-1] == [*arguments, *settings]
    assert passed[-1].startswith("run_dir=outputs/quickstart-")
    assert ("training for about 100 seconds" in run.stdout) == bool(settings)
    assert passed[-1].removeprefix("run_dir=") in run.stdout.partition("Next:")[2]
    compose(passed)


@pytest.mark.parametrize("arguments", [["resume=outputs/first"], ["-m", "seed=0,1"], ["--help"]])
def test_commands_without_a_directory_of_their_own_are_passed_on_unchanged(
    arguments: list[str], environment: dict[str, str]
) -> None:
    command = ["bash", str(ROOT / "scripts/quickstart.sh"), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"> {argument}" for argument in arguments]
