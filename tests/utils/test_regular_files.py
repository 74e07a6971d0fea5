from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from genimg.utils.regular_files import UnsafeFileError, open_regular, read_regular, refuse_links, require_plain

NEEDS_LINKS = pytest.mark.skipif(os.name != "posix", reason="needs links and named pipes")


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", most=5) == b"12345"
    assert read_regular(tmp_path / "file", below=tmp_path, most=5) == b"12345"
    with pytest.raises(UnsafeFileError, match="5 bytes, but may have at most 4"):
        read_regular(tmp_path / "file", most=4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent", below=tmp_path, most=4)


@NEEDS_LINKS
def test_only_a_file_that_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "folder").symlink_to(tmp_path)
    assert open_regular(run / "link").read() == b"secret"
    for path in (run / "link", run / "folder" / "secret", run / "checkpoints" / ".." / ".." / "secret", tmp_path / "secret"):
        with pytest.raises(UnsafeFileError):
            open_regular(path, below=run)
    (tmp_path / "own").symlink_to(run)
    (run / "file").write_text("own")
    assert open_regular(tmp_path / "own" / "file", below=tmp_path / "own").read() == b"own"
    refuse_links(run / "absent" / "file", below=run)


@NEEDS_LINKS
@pytest.mark.parametrize("kind", ["directory", "named pipe", "socket", "device"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))  # whose names are short
    else:
        path = Path("/dev/zero")
    with pytest.raises(UnsafeFileError, match=f"is a {kind}, not a file"):
        open_regular(path)


@NEEDS_LINKS
def test_a_directory_to_write_to_holds_no_links_where_files_will_be(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "samples" / "a.png").touch()
    names = ("samples", "train.log", "checkpoints")
    require_plain(run, names)
    require_plain(tmp_path / "absent", names)
    (run / "notes").symlink_to(tmp_path)  # no name that is written to
    require_plain(run, names)
    (run / "train.log").symlink_to(tmp_path / "elsewhere")  # also where it leads nowhere
    with pytest.raises(UnsafeFileError, match=r"train\.log is a link"):
        require_plain(run, names)
    (run / "train.log").unlink()
    os.mkfifo(run / "samples" / "b.png")
    with pytest.raises(UnsafeFileError, match=r"b\.png is a named pipe"):
        require_plain(run, names)
