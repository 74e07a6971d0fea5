"""A saved list is what was written, or nothing."""

import pytest

from genimg.data.saved_index import index_file, read_index, write_index


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))


def test_lists_of_one_root_are_told_apart_by_their_kind(tmp_path):
    plain, other = index_file(tmp_path), index_file(tmp_path, "other")
    assert plain != other
    assert read_index(plain) is None
    write_index(plain, b"names\n\0\xff")
    write_index(other, b"")
    assert read_index(plain) == b"names\n\0\xff"
    assert read_index(other) == b""


def test_a_damaged_list_is_not_used(tmp_path, caplog):
    file = index_file(tmp_path)
    write_index(file, b"names")
    file.write_bytes(file.read_bytes()[:-1])
    assert read_index(file) is None
    assert str(file) in caplog.text


def test_without_a_home_directory_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", "~no_such_user_of_this_machine/cache")
    file = index_file(tmp_path)
    assert file is None
    write_index(file, b"names")
    assert read_index(file) is None
