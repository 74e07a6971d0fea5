"""A training that is refused at its start leaves its run directory as it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from fork_server import run_command

import genimg
from genimg.api.train import alone_in_run
from genimg.errors import ConfigError
from genimg.training import checkpoint
from genimg.utils.files import InUseError, alone_in


def everything(folder: Path) -> dict[str, object]:
    """Return the content and the time of change of all that is in a directory."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def downloaded(trained: Path, home: Path, *, whole: bool = True) -> Path:
    """Return a copy of the run, as it would be packed with or without hidden files."""
    shutil.copytree(trained, home / "run")
    (home / "run" / "checkpoints" / "notes.txt").write_text("theirs")
    if not whole:
        shutil.rmtree(home / "run" / ".hydra")
        (home / "run" / "train.log").unlink()
    return home / "run"


REFUSED = {
    "another model": ["model.generator.width=8", "trainer.duration=4 steps"],
    "an unknown key": ["model.generator.wdith=8"],
    "other data": ["data=folder", "data.root=absent", "trainer.duration=4 steps"],
    "a bad duration": ["trainer.duration=4 stps"],
    "no device": ["device=cuda:99", "trainer.duration=4 steps"],
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without .hydra"])
@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_resume_changes_nothing(trained: Path, tmp_path: Path, reason: str, whole: bool) -> None:
    run = downloaded(trained, tmp_path, whole=whole)
    before = everything(run)
    done = run_command("train", f"resume={run}", *REFUSED[reason], cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert everything(run) == before
    assert list(tmp_path.iterdir()) == [run]


def test_a_damaged_or_hostile_checkpoint_changes_nothing(trained: Path, tmp_path: Path) -> None:
    run = downloaded(trained, tmp_path)
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    state["raw_config"]["seed"] = state["config"]["seed"] = "${oc.env:HOME}"
    for path in (run / "checkpoints").glob("*.pt"):
        path.unlink()
    kept = {key: value for key, value in state.items() if key not in ("format", "version")}
    checkpoint.save(kept, run / "checkpoints" / "last.pt")
    before = everything(run)
    for word in ("resume=run", "resume=run/checkpoints/last.pt"):
        done = run_command("train", word, "trainer.duration=4 steps", cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert everything(run) == before


@pytest.mark.skipif(os.name != "posix", reason="needs sparse files")
def test_records_without_end_change_nothing(trained: Path, tmp_path: Path) -> None:
    run = downloaded(trained, tmp_path)
    os.truncate(run / "metrics.jsonl", 1 << 40)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = run_command("train", "resume=run", "trainer.duration=4 steps", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "metrics.jsonl has 1,099,511,627,776 bytes" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_python_leaves_it_as_it_was_too(trained: Path, tmp_path: Path) -> None:
    run = downloaded(trained, tmp_path, whole=False)
    before = everything(run)
    with pytest.raises(ConfigError):
        genimg.train([f"resume={run}", "model.generator.width=8", "trainer.duration=4 steps", "device=cpu"])
    assert everything(run) == before


def test_a_refused_new_run_leaves_no_directory(tmp_path: Path) -> None:
    refused = ["data=folder", "data.root=absent", "data.image_size=16", "data.channels=3", "evaluation=none", "device=cpu"]
    for words in (refused, [*refused, "run_dir=mine"]):
        done = run_command("train", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "absent does not exist" in done.stderr
        assert not list(tmp_path.iterdir())


def test_an_accepted_run_has_what_hydra_writes_and_its_whole_log(trained: Path, tmp_path: Path) -> None:
    run = downloaded(trained, tmp_path)
    log = (run / "train.log").read_text()
    assert "run directory: " in log
    assert "finished: 16 images" in log
    assert {path.name for path in (run / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml", "lock"}
    assert "- data.num_images=16" in (run / ".hydra" / "overrides.yaml").read_text()
    done = run_command("train", "resume=run", "trainer.duration=4 steps", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "train.log").read_text().startswith(log)
    assert "resuming from" in (run / "train.log").read_text()
    assert "trainer.duration=4 steps" in (run / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    """A refused run removes its lock while others wait for it: they must not each hold another file of this name."""
    held, leave, entered = threading.Event(), threading.Event(), threading.Event()

    def refused() -> None:
        with contextlib.suppress(ConfigError), alone_in_run(tmp_path):
            held.set()
            leave.wait(10)
            raise ConfigError("x=1 is refused")

    def waiting() -> None:
        with alone_in(tmp_path / ".hydra" / "lock", "in use", patience=10):
            entered.set()
            leave2.wait(10)

    leave2 = threading.Event()
    first, second = threading.Thread(target=refused), threading.Thread(target=waiting)
    first.start()
    held.wait(10)
    second.start()
    assert not entered.wait(0.5)
    leave.set()
    assert entered.wait(10)
    with pytest.raises(InUseError), alone_in(tmp_path / ".hydra" / "lock", "in use"):
        pass
    leave2.set()
    first.join()
    second.join()
