"""Files that a stranger has made to be opened as checkpoints: refused with one message, quickly, in little memory."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from errors import raises

from genimg.errors import CheckpointError
from genimg.training import checkpoint
from genimg.utils.verified_torch import DamagedFileError, load_verified

STATE = {"weights": torch.arange(300.0), "training": {"images": 640}, "name": "x"}
SECONDS = 5.0  # within which even a slow machine must refuse


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(STATE, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


def rewritten(path: Path, pickled: bytes, *, compression: int = zipfile.ZIP_STORED, extra: bytes | None = None) -> Path:
    """Replace what describes the tensors, with checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
        if extra is not None:
            archive.writestr("archive/data/extra", extra)
    return path


def refused(path: Path) -> str:
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert time.monotonic() - start < SECONDS
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pickled_global(module: str, name: str, argument: bytes) -> bytes:
    """Return a pickle that calls a member of a module."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("os", "system", b"X\x04\x00\x00\x00true"),
        ("builtins", "bytearray", b"\x8a\x05\x00\x00\x00\x00\x10"),  # 64 GiB, which weights_only=True makes
        ("torch", "Size", b"]"),
        ("torch.nn.parameter", "Parameter", b"N"),
        ("collections", "Counter", b"}"),
        ("torch._utils", "_rebuild_sparse_tensor", b"N"),
        ("torch.jit._script", "unpackage_script_module", b"N"),
    ],
)
def test_only_tensors_and_primitives_are_built(saved: Path, module: str, name: str, argument: bytes) -> None:
    assert f"holds {module}.{name}, not only tensors and primitives" in refused(
        rewritten(saved, pickled_global(module, name, argument))
    )


@pytest.mark.parametrize(
    "value", [{"a": Counter("aa")}, {"a": {1, 2}}, {"a": b"bytes"}, {"a": bytearray(3)}, {"a": 1j}, {"a": torch.float32},
              {"a": torch.nn.Parameter(torch.zeros(2))}, {"a": torch.zeros(2).to_sparse()}, {(1, 2): 1}, {"a": 1 << 5000}]
)  # fmt: skip
def test_other_types_are_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "types.pt"
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "state": value}, path)
    refused(path)


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02)\x81.", b"\x80\x02}}b.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b"\x80\x02(ios\nsystem\n."]
)
def test_opcodes_that_build_objects_are_refused(saved: Path, pickled: bytes) -> None:
    assert "something other than tensors and primitives" in refused(rewritten(saved, pickled))


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def test_containers_nested_without_end_are_refused(saved: Path) -> None:
    assert "nested more than" in refused(rewritten(saved, nested(20_000)))


def test_shared_containers_that_grow_without_end_are_refused(saved: Path) -> None:
    value: object = [0]
    for _ in range(40):
        value = [value, value]
    assert "more than" in refused(rewritten(saved, pickle.dumps({"format": value}, protocol=2)))


@pytest.mark.parametrize("depth", [64, 65, 3000])
def test_containers_that_are_nested_by_sharing_are_as_deep_as_others(saved: Path, depth: int) -> None:
    """Each is met at the top before it is met inside the next."""
    parts: list[object] = [[]]
    for _ in range(depth - 2):
        parts.append([parts[-1]])
    path = rewritten(saved, pickle.dumps(parts, protocol=2))
    if depth > 64:
        assert "nested more than 64 deep" in refused(path)
    else:
        assert load_verified(path) == parts


def test_a_container_that_holds_itself_is_refused(saved: Path) -> None:
    value: list[object] = []
    value.append(value)
    assert "nested more than" in refused(rewritten(saved, pickle.dumps(value, protocol=2)))


def test_a_view_of_more_elements_than_the_file_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "view.pt"
    torch.save({"format": checkpoint.FORMAT, "weights": torch.zeros(1).expand(1 << 40)}, path)
    assert path.stat().st_size < 10_000
    assert "more elements than the file" in refused(path)


def test_what_would_inflate_is_refused_before_memory_is_taken(saved: Path) -> None:
    path = rewritten(saved, b"\x80\x02}.", compression=zipfile.ZIP_DEFLATED, extra=bytes(2**28))
    assert path.stat().st_size < 2**20
    refused(path)


def test_records_that_overlap_are_refused(saved: Path) -> None:
    """One record's bytes that many entries share would inflate without any compression."""
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        first, *_, last = archive.infolist()
        end = archive.start_dir
    size = len(content)
    offset = content.index(struct.pack("<I", last.header_offset), end)
    content[offset : offset + 4] = struct.pack("<I", first.header_offset)
    saved.write_bytes(bytes(content))
    assert len(content) == size
    refused(saved)


def test_an_archive_in_front_of_which_another_lies_is_refused(saved: Path) -> None:
    """Programs differ in which of two lists of records they read."""
    saved.write_bytes(saved.read_bytes() * 2)
    refused(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe.pt"
    os.mkfifo(path)
    assert "a named pipe, not a file" in refused(path)


def test_a_link_in_a_run_directory_is_not_followed(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").symlink_to(saved)
    with raises(CheckpointError, word="link"):
        checkpoint.load_named(tmp_path / "run")
    assert checkpoint.load_named(folder / "last.pt")[0]["name"] == "x"  # a file that the user names may be a link


def test_a_directory_of_checkpoints_that_is_a_link_is_not_followed(saved: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    saved.rename(elsewhere / "last.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
    with raises(CheckpointError, word="link"):
        checkpoint.load_named(tmp_path / "run")


@pytest.mark.parametrize("key", ["config", "training", "num_images", "method"])
@pytest.mark.parametrize("value", [None, 7.5, "text", [1], {"images": "many"}])
def test_contents_of_other_types_are_refused(key: str, value: object) -> None:
    whole = {
        **{
            key: {}
            for key in ("config", "raw_config", "facts", "decisions", "method", "averages", "optimizers", "means", "hardware")
        },
        "training": {"images": 3},
        "num_images": 3,
    }
    checkpoint.require_whole(whole, Path("x.pt"))
    if key == "config" and isinstance(value, dict):
        return
    with raises(CheckpointError, word="x.pt"):
        checkpoint.require_whole({**whole, key: value}, Path("x.pt"))


def test_plain_contents_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    value = {
        "a": [1, (2.5, None), True],
        3: torch.arange(6).reshape(2, 3).t(),
        "h": torch.ones(2, dtype=torch.bfloat16),
        "e": {},
    }
    torch.save(value, tmp_path / "plain.pt")
    found = load_verified(tmp_path / "plain.pt")
    expected = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert repr(found) == repr(expected)
    assert found[3].stride() == expected[3].stride()


def test_a_buffer_in_memory_is_no_file_of_this(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer, _use_new_zipfile_serialization=False)  # the format of before torch 1.6
    (tmp_path / "old.pt").write_bytes(buffer.getvalue())
    with pytest.raises(DamagedFileError):
        load_verified(tmp_path / "old.pt")


def test_a_file_with_bytes_of_no_record_is_refused_before_it_is_read(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with open(saved, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)
        file.seek(2**40)  # takes no space on most disks
        archive.start_dir = file.tell()
    assert saved.stat().st_size > 2**40
    start = time.monotonic()
    for load in (checkpoint.load, checkpoint.load_with_digest):
        with raises(CheckpointError, word=str(saved)):
            load(saved)
    assert time.monotonic() - start < SECONDS
