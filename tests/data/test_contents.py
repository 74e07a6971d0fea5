"""What a digest of files' contents sees, by a closed form and by changes of single bytes."""

import hashlib
import os

import pytest

from genimg.data import contents
from genimg.data.contents import digest_of_contents

PIECE = 16 * 1024


def write(root, **files):
    for name, content in files.items():
        (root / name).write_bytes(content)
    return list(files)


def test_small_files_count_whole_and_large_ones_by_three_pieces(tmp_path):
    small, large = os.urandom(3 * PIECE), os.urandom(10 * PIECE + 1)
    paths = write(tmp_path, a=small, b=large, c=b"")
    middle = (len(large) - PIECE) // 2
    pieces = large[:PIECE] + large[middle : middle + PIECE] + large[-PIECE:]
    parts = [f"{len(small)}\0".encode() + small, f"{len(large)}\0".encode() + pieces, b"0\0"]
    expected = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    assert digest_of_contents(tmp_path, paths) == expected


@pytest.mark.parametrize("size", [1, 3 * PIECE, 3 * PIECE + 1, 100 * PIECE])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_byte_at_the_head_in_the_middle_or_at_the_tail_counts(tmp_path, size, place):
    content = bytearray(size)
    paths = write(tmp_path, a=bytes(content), b=b"other")
    before = digest_of_contents(tmp_path, paths)
    content[int(place * (size - 1))] ^= 1
    write(tmp_path, a=bytes(content))
    assert digest_of_contents(tmp_path, paths) != before


def test_files_that_change_places_count(tmp_path):
    paths = write(tmp_path, a=b"one", b=b"two")
    before = digest_of_contents(tmp_path, paths)
    write(tmp_path, a=b"two", b=b"one")
    assert digest_of_contents(tmp_path, paths) != before


def test_of_many_files_a_fixed_sample_is_read_that_has_no_period(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MOST_FILES", 100)
    paths = write(tmp_path, **{f"{i:04d}": b"a" for i in range(300)})
    before = digest_of_contents(tmp_path, paths)
    assert digest_of_contents(tmp_path, paths) == before
    read = []
    for i in range(300):
        (tmp_path / f"{i:04d}").write_bytes(b"b")
        if digest_of_contents(tmp_path, paths) != before:
            read.append(i)
        (tmp_path / f"{i:04d}").write_bytes(b"a")
    assert len(read) == 100
    for period in (2, 3, 5):
        for phase in range(period):
            share = sum(i % period == phase for i in read) / len(read)
            assert 0.4 / period < share < 1.8 / period


def test_a_file_that_is_gone_or_a_pipe_does_not_stop_the_digest(tmp_path):
    paths = write(tmp_path, a=b"one")
    os.mkfifo(tmp_path / "pipe")
    before = digest_of_contents(tmp_path, [*paths, "pipe", "gone"])
    (tmp_path / "a").unlink()
    assert digest_of_contents(tmp_path, [*paths, "pipe", "gone"]) != before
