import json
import logging
from pathlib import Path

import numpy as np
import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets.builtin import ImageDataset, folder
from genimg.data.datasets.caption_files import find_captions
from genimg.data.subsets import fixed_subset
from genimg.errors import DataError

NAMES = ["a.png", "b/c.png", "b/d.jpg"]


@pytest.fixture
def root(tmp_path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def open_folder(root: Path, captions: str | None = "auto") -> ImageDataset:
    return folder(root=str(root), image_size=4, channels=3, fit="crop", labels="none", captions=captions)


def texts(source: ImageDataset) -> list[str | None]:
    assert source.captioned
    found = source.captions(np.arange(len(source)))
    assert found == [source.caption(i) for i in range(len(source))]
    return found


def write_lines(file: Path, *lines: object) -> None:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")


def entries(*names: str, key: str = "text") -> list[dict[str, str]]:
    return [{"file_name": name, key: f"this is {name}"} for name in names]


def write_beside(root: Path, *names: str) -> None:
    for name in names:
        (root / name).with_suffix(".txt").write_text(f"this is {name}\n", encoding="utf-8")


EXPECTED = [f"this is {name}" for name in NAMES]


# Where they are


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.jsonl"])
@pytest.mark.parametrize("key", ["text", "caption"])
def test_a_file_of_lines_in_the_root_is_found(root, name, key):
    write_lines(root / name, *entries(*reversed(NAMES), key=key))
    assert texts(open_folder(root)) == EXPECTED


def test_text_files_beside_the_images_are_found(root):
    write_beside(root, *NAMES)
    assert texts(open_folder(root)) == EXPECTED


@pytest.mark.parametrize("lacking", [0, 30, 59])
def test_they_are_found_whichever_image_lacks_its_own(tmp_path, lacking):
    names = [f"{i:03d}.png" for i in range(60)]
    for name in names:
        (tmp_path / name).touch()
    write_beside(tmp_path, *(name for name in names if name != names[lacking]))
    with raises(DataError, "captions", word=f"the first is {names[lacking]}"):
        open_folder(tmp_path).caption(0)


@pytest.mark.parametrize("count", [99, 100, 101, 1999])
def test_no_more_than_a_hundred_images_are_looked_at_to_find_them(tmp_path, monkeypatch, count):
    paths = [f"{i:04d}.png" for i in range(count)]
    seen = []
    monkeypatch.setattr(Path, "is_file", lambda path: seen.append(path.name))
    assert find_captions(tmp_path, paths, "auto") is None
    texts = [int(name[:4]) for name in seen if name.endswith(".txt")]
    assert texts == fixed_subset(min(100, count), count).tolist()


def test_lines_go_before_text_files_and_metadata_before_captions(root):
    write_beside(root, *NAMES)
    write_lines(root / "captions.jsonl", *({**entry, "text": "of captions"} for entry in entries(*NAMES)))
    assert texts(open_folder(root)) == ["of captions"] * 3
    write_lines(root / "metadata.jsonl", *({**entry, "text": "of metadata"} for entry in entries(*NAMES)))
    assert texts(open_folder(root)) == ["of metadata"] * 3


@pytest.mark.parametrize("captions", ["auto", None])
def test_a_folder_without_any_has_none(root, captions):
    source = open_folder(root, captions)
    assert not source.captioned
    assert source.caption(0) is None


def test_null_ignores_what_is_there(root):
    write_beside(root, *NAMES)
    assert not open_folder(root, None).captioned
    assert not folder(root=str(root), image_size=4, channels=3, fit="crop", labels="none").captioned


def test_metadata_without_captions_is_none_of_our_business(root, caplog):
    write_lines(root / "metadata.jsonl", {"file_name": "a.png", "label": 3})
    with caplog.at_level(logging.INFO):
        assert not open_folder(root).captioned
    assert f"{root}/metadata.jsonl holds no captions: its first line has neither text nor caption" in caplog.messages
    write_beside(root, *NAMES)
    assert texts(open_folder(root)) == EXPECTED


def test_a_file_may_lie_anywhere_and_is_named_as_seen_from_the_root(root, tmp_path_factory, monkeypatch):
    write_lines(root / "b" / "english.jsonl", *entries(*NAMES))
    assert texts(open_folder(root, "b/english.jsonl")) == EXPECTED
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_lines(elsewhere / "lines", *entries(*NAMES))
    assert texts(open_folder(root, str(elsewhere / "lines"))) == EXPECTED
    monkeypatch.setenv("HOME", str(elsewhere))
    assert texts(open_folder(root, "~/lines")) == EXPECTED


# What they may look like


def test_lines_may_have_other_keys_blank_lines_a_mark_of_utf8_and_names_with_a_dot(root):
    lines = [json.dumps({"text": "  « ç » \u2028 日本 ", "file_name": "./a.png", "width": 4}, ensure_ascii=False), "", "  "]
    lines += [json.dumps(entry) for entry in entries("b/c.png", "b//d.jpg")]
    (root / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert texts(open_folder(root)) == ["« ç » \u2028 日本", "this is b/c.png", "this is b//d.jpg"]


def test_a_text_file_may_have_a_mark_of_utf8_and_several_lines(root):
    write_beside(root, *NAMES)
    (root / "a.txt").write_text("\nnaïve\nart\n", encoding="utf-8-sig")
    assert texts(open_folder(root))[0] == "naïve\nart"


def test_captions_change_neither_images_nor_fingerprint(root):
    before = open_folder(root)
    write_beside(root, *NAMES)
    write_lines(root / "metadata.jsonl", *entries(*NAMES))
    for captions in ("auto", None, "metadata.jsonl"):
        after = open_folder(root, captions)
        assert after.fingerprint == before.fingerprint
        assert after.paths == before.paths


def test_captions_are_read_once_and_only_when_requested(root, monkeypatch):
    write_lines(root / "metadata.jsonl", *entries(*NAMES), "this is not JSON")
    source = open_folder(root)
    source.read(0)
    write_lines(root / "metadata.jsonl", *entries(*NAMES))
    assert texts(source) == EXPECTED
    (root / "metadata.jsonl").unlink()
    assert texts(source) == EXPECTED


# What is wrong with them


@pytest.mark.parametrize("captions", ["absent.jsonl", "b"])
def test_a_missing_file_is_named_before_anything_else(root, captions):
    with raises(DataError, f"captions={captions}"):
        open_folder(root, captions)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("this is not JSON", "metadata.jsonl"),
        ("[1, 2]", "JSON"),
        ("{}", "file_name"),
        ({"file_name": "b/d.jpg"}, "string"),
        ({"file_name": "b/d.jpg", "text": None}, "string"),
        ({"file_name": "b/d.jpg", "text": ["a", "b"]}, "string"),
        ({"file_name": 3, "text": "x"}, "file_name"),
        ({"file_name": "a.png", "text": "x"}, "second"),
    ],
)
def test_a_line_that_is_none_is_named_with_its_file(root, line, words):
    write_lines(root / "metadata.jsonl", *entries("a.png", "b/c.png"), line)
    with raises(DataError, word=words) as caught:
        open_folder(root).caption(0)
    assert "or ignore captions with captions=null" in str(caught.value)
    assert f"the file {root}/metadata.jsonl " in str(caught.value)
    assert caught.value.key == "captions"


def test_names_that_no_image_has_are_counted_and_the_first_is_named(root):
    write_lines(root / "metadata.jsonl", *entries("a.png", "c.png", *NAMES[1:], "/b/c.png"))
    with raises(DataError, "captions", word="c.png in line 2"):
        open_folder(root).caption(0)


@pytest.mark.parametrize("beside", [False, True])
def test_images_without_a_caption_are_counted_and_the_first_is_named(root, beside):
    if beside:
        write_beside(root, "a.png")
    else:
        write_lines(root / "metadata.jsonl", *entries("a.png"))
    with raises(DataError, "captions", word=".txt" if beside else f"{root}/metadata.jsonl"):
        open_folder(root).caption(0)


@pytest.mark.parametrize("beside", [False, True])
def test_one_image_in_a_hundred_may_lack_its_caption(tmp_path, caplog, beside):
    names = [f"{i:03d}.png" for i in range(200)]
    for name in names:
        (tmp_path / name).touch()
    if beside:
        write_beside(tmp_path, names[0], *names[3:])
    else:
        write_lines(tmp_path / "metadata.jsonl", *entries(names[0], *names[3:]))
    with caplog.at_level(logging.WARNING):
        found = texts(open_folder(tmp_path))
    assert found[1:3] == ["", ""]
    assert found[0] == "this is 000.png"
    (message,) = caplog.messages
    assert message.startswith(f"2 of the 200 images of {tmp_path} have no caption and get an empty one; the first is 001.png")
    if beside:
        (tmp_path / "003.txt").unlink()
    else:
        write_lines(tmp_path / "metadata.jsonl", *entries(names[0], *names[4:]))
    with raises(DataError, "captions", word="images"):
        open_folder(tmp_path).caption(0)


def test_what_is_not_utf8_is_named(root):
    write_beside(root, *NAMES)
    (root / "b" / "c.txt").write_bytes("naïve".encode("latin-1"))
    with raises(DataError, "captions", word="save"):
        open_folder(root).caption(0)
    (root / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "naïve"}'.encode("latin-1"))
    with raises(DataError, "captions", word="metadata.jsonl"):
        open_folder(root).caption(0)


def test_an_empty_file_of_lines_leaves_all_images_out(root):
    (root / "metadata.jsonl").touch()
    with raises(DataError, "captions", word="images"):
        open_folder(root).caption(0)
