"""Checkpoints: whole or not at all, and read without running anything."""

import hashlib
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from errors import raises

from genimg.errors import CheckpointError
from genimg.training import checkpoint
from genimg.training.checkpoint import CheckpointFolder

SMALL_STATE = {"weights": torch.arange(300.0), "training": {"images": 640, "last": {"fid": 1.5}}, "name": "x"}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.pt"
    checkpoint.save(SMALL_STATE, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_state_is_loaded_as_it_was(saved):
    state = checkpoint.load(saved)
    assert torch.equal(state["weights"], SMALL_STATE["weights"])
    assert state["training"] == SMALL_STATE["training"]
    assert names(saved.parent) == ["saved.pt"]


def test_a_digest_is_that_of_the_loaded_bytes_also_if_the_file_changes_meanwhile(saved, monkeypatch):
    before, load = saved.read_bytes(), torch.load

    def replacing(*arguments, **settings):
        saved.write_bytes(bytes(len(before)))  # in place, so its inode stays the same
        return load(*arguments, **settings)

    monkeypatch.setattr(torch, "load", replacing)
    state, digest = checkpoint.load_with_digest(saved)
    assert saved.read_bytes() != before
    assert digest == hashlib.sha256(before).hexdigest()
    assert torch.equal(state["weights"], SMALL_STATE["weights"])
    with raises(CheckpointError, word="saved.pt"):
        checkpoint.load_with_digest(saved)


def test_a_damaged_file_has_no_digest(saved):
    whole = saved.read_bytes()
    place = whole.index(SMALL_STATE["weights"].numpy().tobytes())
    saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with raises(CheckpointError, word="damaged"):
        checkpoint.load_with_digest(saved)


def test_a_save_replaces_the_file_that_was_there(saved):
    checkpoint.save({"weights": torch.zeros(3)}, saved)
    assert torch.equal(checkpoint.load(saved)["weights"], torch.zeros(3))
    assert names(saved.parent) == ["saved.pt"]


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_other(saved):
    resource = pytest.importorskip("resource")
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # in the middle of the 4 MB below
    try:
        with pytest.raises(OSError, match="cannot save the checkpoint") as caught:
            checkpoint.save({"weights": torch.zeros(1_000_000)}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(saved)
    assert "run_dir" in caught.value.strerror
    assert saved.read_bytes() == before
    assert names(saved.parent) == ["saved.pt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_of_the_system_after_writing_leaves_the_old_file_and_no_other(saved, monkeypatch, failing):
    before = saved.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
        with raises(OSError, word="space") as caught:
            checkpoint.save({"weights": torch.zeros(3)}, saved)
    assert caught.value.errno == 28
    assert saved.read_bytes() == before
    assert names(saved.parent) == ["saved.pt"]


def test_a_state_that_cannot_be_pickled_leaves_the_old_file_and_no_other(saved):
    before = saved.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError, OSError, ValueError)):
        checkpoint.save({"weights": torch.zeros(3), "function": lambda: None}, saved)
    assert saved.read_bytes() == before
    assert names(saved.parent) == ["saved.pt"]


def test_saving_makes_a_directory_that_was_removed(tmp_path):
    checkpoint.save(SMALL_STATE, tmp_path / "absent" / "a.pt")
    assert checkpoint.load(tmp_path / "absent" / "a.pt")["format"] == checkpoint.FORMAT


def test_saving_where_there_can_be_no_directory_says_so(tmp_path):
    (tmp_path / "file").touch()
    with raises(OSError, word="checkpoint") as caught:
        checkpoint.save(SMALL_STATE, tmp_path / "file" / "a.pt")
    assert caught.value.filename == str(tmp_path / "file" / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with raises(CheckpointError, word="absent.pt"):
        checkpoint.load(tmp_path / "absent.pt")


def test_every_truncation_is_refused_by_name_and_size(saved):
    whole = saved.read_bytes()
    for size in [0, 1, 2, 4, *range(10, len(whole), 97), len(whole) - 1]:
        saved.write_bytes(whole[:size])
        with raises(CheckpointError, word="truncated"):
            checkpoint.load(saved)


def test_random_bytes_are_refused(tmp_path):
    path = tmp_path / "random.pt"
    for seed in range(60):
        path.write_bytes(random.Random(seed).randbytes(200))
        with raises(CheckpointError, word="torch.save"):
            checkpoint.load(path)


@pytest.mark.parametrize("content", [{"weights": torch.zeros(3)}, {"format": "another"}, [1, 2], torch.zeros(3)])
def test_a_torch_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with raises(CheckpointError, word="other.pt"):
        checkpoint.load(tmp_path / "other.pt")


def test_another_version_is_refused_and_both_are_named(tmp_path):
    record = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION + 1, "genimg_version": "9.8.7"}
    torch.save(record, tmp_path / "new.pt")
    with raises(CheckpointError, word="9.8.7"):
        checkpoint.load(tmp_path / "new.pt")


def test_a_checkpoint_without_a_version_is_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT}, tmp_path / "no_version.pt")
    with raises(CheckpointError, word="version"):
        checkpoint.load(tmp_path / "no_version.pt")


class RunsCode:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, write):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    write({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "weights": RunsCode(marker)}, path)
    with raises(CheckpointError, word="evil.pt"):
        checkpoint.load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists()  # the file was dangerous


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints", keep_last=2)


def save_steps(folder, *steps, best=()):
    for step in steps:
        folder.save({"step": step}, step, best=step in best)


def test_the_last_few_checkpoints_and_the_best_are_kept(folder):
    save_steps(folder, 10, 20, 30, 40, best=(20,))
    assert names(folder.path) == ["best.pt", "last.pt", "step-00000030.pt", "step-00000040.pt"]
    assert checkpoint.load(folder.path / "best.pt")["step"] == 20
    assert checkpoint.load(folder.path / "last.pt")["step"] == 40


def test_a_checkpoint_by_time_is_replaced_by_the_next_and_pushes_none_of_the_interval_out(folder):
    save_steps(folder, 10, 20, best=(10,))
    for step in (23, 26):
        folder.save({"step": step}, step, best=False, timed=True)
        timed = f"step-{step:08d}-timed.pt"
        assert names(folder.path) == ["best.pt", "last.pt", "step-00000010.pt", "step-00000020.pt", timed]
        assert checkpoint.load(folder.path / "last.pt")["step"] == step
        assert folder.load_last()[0]["step"] == step
    save_steps(folder, 26)  # an evaluation of the same step
    assert names(folder.path) == ["best.pt", "last.pt", "step-00000020.pt", "step-00000026.pt"]
    assert checkpoint.step_of(Path("step-00000023-timed.pt")) == 23
    assert checkpoint.load(folder.path / "best.pt")["step"] == 10


def test_a_better_checkpoint_replaces_the_best(folder):
    save_steps(folder, 10, 20, 30, best=(10, 30))
    assert checkpoint.load(folder.path / "best.pt")["step"] == 30


def test_last_and_best_are_copies_where_the_file_system_has_no_links(folder, monkeypatch):
    def no_links(*arguments):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    save_steps(folder, 10, 20, 30, best=(10,))
    assert names(folder.path) == ["best.pt", "last.pt", "step-00000020.pt", "step-00000030.pt"]
    assert checkpoint.load(folder.path / "best.pt")["step"] == 10


def test_a_new_run_has_no_last_checkpoint(folder):
    assert folder.load_last() is None


def test_the_last_checkpoint_is_the_one_of_the_greatest_step(folder):
    save_steps(folder, 10, 20)
    state, path = folder.load_last()
    assert (state["step"], path.name) == (20, "step-00000020.pt")


def test_a_truncated_newest_checkpoint_gives_way_to_the_one_before(folder, caplog):
    save_steps(folder, 10, 20)
    newest = folder.path / "step-00000020.pt"
    os.truncate(newest, 100)
    state, path = folder.load_last()
    assert (state["step"], path.name) == (10, "step-00000010.pt")
    assert "step-00000020.pt" in caplog.text


def test_without_one_readable_checkpoint_the_newest_is_named(folder):
    save_steps(folder, 10, 20)
    for path in folder.path.glob("step-*.pt"):
        os.truncate(path, 100)
    with raises(CheckpointError, word="truncated"):
        folder.load_last()


def test_what_a_killed_save_left_is_removed(folder):
    save_steps(folder, 10)
    left = folder.path / "step-00000020.pt.genimg-0123456789abcdef.tmp"
    left.mkdir()
    (left / "step-00000020.pt").write_bytes(b"half")
    assert folder.load_last()[0]["step"] == 10
    assert names(folder.path) == ["last.pt", "step-00000010.pt"]


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with raises(ValueError, "keep_last=0"):
        CheckpointFolder(tmp_path, keep_last=0)


def test_find_takes_a_file_a_run_directory_or_its_folder(folder):
    save_steps(folder, 10)
    last = folder.path / "last.pt"
    assert checkpoint.find(last) == checkpoint.find(folder.path) == checkpoint.find(folder.path.parent) == last


def test_find_names_what_is_missing(tmp_path):
    with raises(CheckpointError, word="absent.pt"):
        checkpoint.find(tmp_path / "absent.pt")
    with raises(CheckpointError, word="last.pt"):
        checkpoint.find(tmp_path)


def test_a_best_checkpoint_of_a_run_without_evaluations_is_the_last(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    with raises(CheckpointError, "which=best"):
        checkpoint.find(tmp_path, "best")
