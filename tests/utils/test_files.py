from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from genimg.errors import ConfigError
from genimg.utils.files import (
    atomically,
    directory_atomically,
    is_temporary,
    naming_full_disk,
    new_directory,
    remove_leftovers,
    sha256_of,
)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_with_its_directories_when_the_block_ends(tmp_path, durable):
    path = tmp_path / "new" / "folder" / "file"
    with atomically(path, durable=durable) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.parent.parent == path.parent  # on the same file system
    assert path.read_text() == "content"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("error", [OSError("full"), ValueError("no"), KeyboardInterrupt()], ids=["disk", "error", "interrupt"])
def test_an_old_file_stays_when_the_block_fails(tmp_path, error, durable):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)):
        _fail(path, error, durable)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _fail(path, error, durable):
    with atomically(path, durable=durable) as temporary:
        temporary.write_text("half")
        raise error


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_block_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomically(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_appears_when_the_block_ends(tmp_path, exists):
    path = tmp_path / "new" / "output"
    if exists:
        path.mkdir(parents=True)
    with directory_atomically(path) as temporary:
        (temporary / "file").write_text("content")
        assert temporary.parent == path.parent
        assert path.exists() == exists
    assert (path / "file").read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), ValueError("no"), KeyboardInterrupt()], ids=["disk", "error", "interrupt"])
def test_nothing_is_left_of_a_directory_when_the_block_fails(tmp_path, error):
    with pytest.raises(type(error)):
        _fail_in_directory(tmp_path / "output", error)
    assert not list(tmp_path.iterdir())


def _fail_in_directory(path, error):
    with directory_atomically(path) as temporary:
        (temporary / "file").write_text("half")
        raise error


def test_sigterm_leaves_no_directory_and_ends_as_a_shell_expects(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, directory_atomically(tmp_path / "output"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_directory_that_a_killed_process_left_is_replaced(tmp_path):
    left = tmp_path / "output.genimg-0123456789abcdef.tmp"
    left.mkdir()
    (left / "old").touch()
    with directory_atomically(tmp_path / "output"):
        pass
    assert not list((tmp_path / "output").iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["output"]


def test_only_a_full_disk_is_named_as_one():
    with raises(ConfigError, word="room"), naming_full_disk("make room"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), naming_full_disk("make room"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_processes_that_want_one_new_directory_at_once_get_one_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(new_directory, [str(tmp_path / "deep" / "run")] * 32))
    names = {Path(path).name for path in made}
    assert names == {"run", *(f"run-{number}" for number in range(2, 33))}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == names


def test_a_directory_that_cannot_be_made_is_left_to_its_first_use(tmp_path):
    (tmp_path / "file").touch()
    assert new_directory(str(tmp_path / "file" / "run")) == str(tmp_path / "file" / "run")


def test_a_file_system_that_cannot_be_told_to_write_is_no_reason_to_stop(tmp_path, monkeypatch):
    def unknown(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    with atomically(tmp_path / "file", durable=True) as temporary:
        temporary.write_text("content")
    assert (tmp_path / "file").read_text() == "content"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with atomically(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_no_two_temporary_names_are_alike(tmp_path):
    names = set()
    for _ in range(20):
        with atomically(tmp_path / "file") as temporary:
            names.add(temporary.parent.name)
            temporary.touch()
    assert len(names) == 20
    assert all(is_temporary(name) for name in names)


@pytest.mark.skipif(os.name != "posix", reason="there are no locks")
def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    (tmp_path / "mine.tmp").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.genimg-0123456789abcdef.tmp").mkdir()
        (tmp_path / f"{name}.genimg-0123456789abcdef.tmp" / "part").write_text("half")
    (tmp_path / "c.genimg-0123456789abcdef.tmp").symlink_to(tmp_path / "mine.tmp")
    with atomically(tmp_path / "a") as temporary:
        temporary.write_text("content")
        with atomically(tmp_path / "a") as other:  # of another process
            other.write_text("content")
        assert temporary.exists()
        assert not (tmp_path / "a.genimg-0123456789abcdef.tmp").exists()
        assert (tmp_path / "b.genimg-0123456789abcdef.tmp").exists()
        remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c.genimg-0123456789abcdef.tmp", "mine.tmp"]
    remove_leftovers(tmp_path / "absent")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 264960 vs 264912"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("writing", [atomically, directory_atomically])
def test_a_full_disk_is_told_of_what_was_to_be_written(tmp_path: Path, error: Exception, writing: Any) -> None:
    with pytest.raises(OSError) as caught, writing(tmp_path / "made"):  # noqa: PT011
        raise error
    assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
    assert caught.value.filename == str(tmp_path / "made")
    assert not list(tmp_path.iterdir())
    with raises(RuntimeError, word="bug"), writing(tmp_path / "made"):
        raise RuntimeError("a bug")


def test_sha256_is_that_of_the_files_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
