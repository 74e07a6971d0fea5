"""The files listed in a tar archive are those that tarfile reads, and a saved list is used only for unchanged archives."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from errors import raises

from genimg.data import tars
from genimg.data.contents import digest_of_bytes
from genimg.data.tars import TarArchive, open_archives, state_of
from genimg.errors import DataError

LONG = "deep/" * 60 + "x.png"


def write_tar(path, files, *, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    os.utime(path, (1e9, 1e9))  # long ago, so that its list may be saved
    return path


def listed(root, *names, refresh=False):
    return open_archives(root, names, key=str(root), refresh=refresh)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tars, "LEAST_SAVED", 1)


FILES = {"a.png": b"1" * 700, "a.cls": b"3", LONG: b"22", "Größe.txt": b"", "dir/b.png": bytes(range(256)) * 5}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_contents_are_those_of_the_members(tmp_path, format):
    files = {name: content for name, content in FILES.items() if name != LONG or format != tarfile.USTAR_FORMAT}
    write_tar(tmp_path / "a.tar", files, format=format)
    for refresh in (True, False):  # read, and from the saved list
        (found,) = listed(tmp_path, "a.tar", refresh=refresh)
        assert found.names == list(files)
        with found.archive.open() as file:
            read = [found.archive.read(file, *place) for place in found.places.tolist()]
        assert read == list(files.values())
        assert [found.archive.digest(*place) for place in found.places.tolist()] == [digest_of_bytes(each) for each in read]


def test_directories_and_links_are_not_listed_and_nothing_is_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("../../x.png"))
    (found,) = listed(tmp_path, "a.tar")
    assert found.names == ["../../x.png"]  # only a name: nothing is written or opened by it


def test_a_saved_list_is_used_until_an_archive_changes(tmp_path, monkeypatch):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {f"{name}.png": b"x"})
    before = listed(tmp_path, "a.tar", "b.tar")
    read = []
    members = tars._members
    monkeypatch.setattr(tars, "_members", lambda path: read.append(path.name) or members(path))
    again = listed(tmp_path, "a.tar", "b.tar")
    assert read == []
    assert [each.names for each in again] == [each.names for each in before]
    assert state_of(again) == state_of(before)
    write_tar(tmp_path / "b.tar", {"other.png": b"y"})
    os.utime(tmp_path / "b.tar", (1e9 + 1, 1e9 + 1))
    changed = listed(tmp_path, "a.tar", "b.tar")
    assert read == ["b.tar"]
    assert changed[1].names == ["other.png"]
    assert state_of(changed) != state_of(before)
    listed(tmp_path, "a.tar", refresh=True)
    assert read == ["b.tar", "a.tar"]


def test_a_recent_archive_is_listed_again(tmp_path, monkeypatch):
    os.utime(write_tar(tmp_path / "a.tar", {"a.png": b"x"}))
    listed(tmp_path, "a.tar")
    monkeypatch.setattr(tars, "_members", lambda path: (["read"], np.zeros((1, 2), dtype=np.int64)))
    assert listed(tmp_path, "a.tar")[0].names == ["read"]


def test_an_archive_that_changed_after_it_was_opened_is_not_read(tmp_path):
    write_tar(tmp_path / "a.tar", FILES)
    archive = pickle.loads(pickle.dumps(listed(tmp_path, "a.tar")[0].archive))
    archive.open().close()
    archive.read_ahead()
    os.utime(tmp_path / "a.tar")
    with raises(OSError, word="changed"):
        archive.open()
    archive.read_ahead()  # best effort


def test_a_short_read_is_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES)
    archive = TarArchive(path, "a.tar", (path.stat().st_size, path.stat().st_mtime_ns))
    with archive.open() as file, raises(OSError, word="a.tar"):
        archive.read(file, path.stat().st_size - 10, 11)


def test_damaged_archives_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES)
    content = path.read_bytes()
    for damaged in (content[:1000], content[:512], b"x" * 2000, content[:600] + b"x" * 10 + content[610:1540] + b"?" * 9, b""):
        if damaged[600:610] == b"x" * 10:  # damage of a file's content is found when it is decoded, of the next header here
            damaged += content[1549:]
        path.write_bytes(damaged)
        with raises(DataError, word="a.tar"):
            listed(tmp_path, "a.tar")
    with raises(DataError, word="absent.tar"):
        listed(tmp_path, "absent.tar")


def test_an_archive_without_an_end_is_read(tmp_path):
    """As programs write them that append to archives."""
    path = write_tar(tmp_path / "a.tar", {"a.png": b"x" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    assert listed(tmp_path, "a.tar")[0].names == ["a.png"]


def test_compressed_archives_are_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with raises(DataError, word="gzip"):
        listed(tmp_path, "a.tar")


def test_a_header_cannot_request_memory(tmp_path):
    """A PAX header states the size of its records, which a reader would read at once."""
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 2**30
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 2**30 + 2048)  # takes no space on the disk
    with raises(DataError, word="header"):
        listed(tmp_path, "a.tar")
