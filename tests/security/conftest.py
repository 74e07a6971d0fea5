"""A run to tamper with."""

from pathlib import Path

import pytest
import tiny
from fork_server import run_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a GAN's run after two steps; tests tamper with copies."""
    home = tmp_path_factory.mktemp("trained")
    done = run_command("train", *tiny.SHORT_RUN, "trainer.duration=2 steps", "run_dir=run", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "run"
