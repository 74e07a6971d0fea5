"""A run directory that a stranger has packed: a training writes through no link in it, and hangs on no pipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
from errors import raises
from fork_server import run_command

from genimg.errors import UserError
from genimg.utils.paths import RUN_FILES
from genimg.utils.regular_files import require_plain

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links and named pipes")


def everything(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", RUN_FILES)
def test_links_are_refused_in_the_place_of_every_file_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with raises(UserError, word="link"):
        require_plain(tmp_path / "run", RUN_FILES)


@pytest.mark.parametrize(
    "name", ["train.log", ".hydra", "config.yaml", "metrics.jsonl", "checkpoints", "samples", "tensorboard"]
)
def test_a_training_changes_nothing_where_a_link_leads_out(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.tmp").write_text("mine")
    (tmp_path / "run").mkdir()
    target = elsewhere / "mine.tmp" if "." in name.lstrip(".") else elsewhere
    (tmp_path / "run" / name).symlink_to(target)
    before = everything(tmp_path)
    done = run_command("train", *tiny.SHORT_RUN, "trainer.duration=2 steps", "run_dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{name} is a link" in done.stderr
    assert everything(tmp_path) == before


def test_a_named_pipe_in_the_place_of_the_log_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "train.log")
    done = run_command("train", *tiny.SHORT_RUN, "trainer.duration=2 steps", "run_dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "train.log is a named pipe" in done.stderr


def test_what_other_programs_and_users_keep_in_a_run_is_theirs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "wandb").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to(run)
    (run / "notes").symlink_to(tmp_path)
    require_plain(run, RUN_FILES)
