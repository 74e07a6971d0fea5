from __future__ import annotations

import pytest

from genimg.files import atomically


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_with_its_directories_when_the_block_ends(tmp_path, durable):
    path = tmp_path / "new" / "folder" / "file"
    with atomically(path, durable=durable) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.parent == path.parent
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
