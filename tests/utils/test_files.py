from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genimg.utils.files import atomically, directory_atomically, naming_full_disk, new_directory


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
    with pytest.raises(ValueError, match="make room"), naming_full_disk("make room"):
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
