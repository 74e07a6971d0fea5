"""What a walk finds, and when a list that was kept is trusted."""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets import file_index
from genimg.data.datasets.builtin import folder
from genimg.data.datasets.file_index import list_images
from genimg.errors import DataError
from genimg.utils.outputs import own_folder, record_of

DAY = 86_400


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache in which even the smallest folder is kept; returns where its files appear."""
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "LEAST_SAVED", 1)
    return tmp_path / "cache" / "index"


def make(root: Path, *names: str) -> Path:
    """Files with their names as their content, in directories that were last changed a day ago."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    settle(root)
    return root


def settle(root: Path, days: int = 1) -> None:
    for directory, _, _ in os.walk(root):
        modified = os.stat(directory).st_mtime - days * DAY
        os.utime(directory, (modified, modified))


def reference(root: Path) -> tuple[list[str], str]:
    """By pathlib alone, without links, of small files: names, and the digest as it is documented."""
    found = [path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    names = sorted(path.relative_to(root).as_posix() for path in found)
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    lines = "".join(f"{name}\0{(root / name).stat().st_size}\n" for name in names)
    listed = hashlib.sha256(lines.encode()).hexdigest()
    held = b"".join(
        hashlib.sha256(f"{(root / name).stat().st_size}\0".encode() + (root / name).read_bytes()).digest() for name in names
    )  # of small files
    return names, hashlib.sha256(f"{listed}\n{hashlib.sha256(held).hexdigest()}".encode()).hexdigest()


def refuse_to_walk(monkeypatch) -> None:
    def walk(*arguments):
        raise AssertionError("listed anew")

    monkeypatch.setattr(file_index, "_walk", walk)


# The walk


def test_a_walk_finds_what_is_there_in_order_of_name(tmp_path):
    names = ["b/2.png", "b/10.png", "b.png", "a/deep/er/x.JPG", "a.b/1.jpeg", "B/1.png"]
    names += [".hidden/1.png", "b/.1.png", "b/notes.txt"]
    root = make(tmp_path / "root", *names)
    found = list_images(root, refresh=False)
    assert (found.paths, found.digest) == reference(root)
    assert found.paths == ["B/1.png", "a.b/1.jpeg", "a/deep/er/x.JPG", "b.png", "b/10.png", "b/2.png"]


def test_links_are_followed_and_none_twice(tmp_path):
    make(tmp_path / "elsewhere", "1.png")
    root = make(tmp_path / "root", "dog/2.png")
    for name, target in (("cat", tmp_path / "elsewhere"), ("dog/loop", root), ("emu", tmp_path / "elsewhere"), ("zoo", root)):
        (root / name).symlink_to(target)
    (root / "one.png").symlink_to(root / "dog" / "2.png")
    assert list_images(root, refresh=False).paths == ["cat/1.png", "dog/2.png", "one.png"]


def test_a_root_that_is_a_link_or_ends_in_a_slash_is_the_same_folder(tmp_path, cache):
    root = make(tmp_path / "root", "a/1.png")
    (tmp_path / "link").symlink_to(root)
    found = [list_images(Path(name), refresh=False) for name in (root, f"{root}/", tmp_path / "link")]
    assert found[0] == found[1] == found[2]
    assert len(list(cache.iterdir())) == 1


def test_a_link_that_leads_nowhere_is_listed_and_nothing_is_kept(tmp_path, cache):
    for name in ("gone.png", "gone"):
        root = make(tmp_path / name, "a.png")
        (root / name).symlink_to(tmp_path / "nowhere" / name)
        settle(root)
        assert list_images(root, refresh=False).paths == ["a.png", "gone.png"][: 1 + name.endswith("png")]
        assert not cache.exists()
        (root / name).unlink()
        settle(root)
        list_images(root, refresh=False)
        assert cache.exists()
        next(cache.iterdir()).unlink()
        cache.rmdir()


def test_a_directory_that_cannot_be_read_is_named_and_nothing_is_kept(tmp_path, cache, monkeypatch, caplog):
    root, scandir = make(tmp_path / "root", "a/1.png", "b/2.png"), os.scandir

    def refuse_b(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_b)
    assert list_images(root, refresh=False).paths == ["a/1.png"]
    assert f"{root}/b cannot be listed (Permission denied): its images are skipped" in caplog.text
    assert not cache.exists()


# What is kept


def test_a_second_listing_is_read_from_the_cache_and_equals_the_first(tmp_path, monkeypatch):
    root = make(tmp_path / "root", "a/1.png", "b/c/2.png", "3.png")
    first = list_images(root, refresh=False)
    refuse_to_walk(monkeypatch)
    assert list_images(root, refresh=False) == first
    assert (first.paths, first.digest) == reference(root)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such names")
def test_names_of_any_bytes_are_kept(tmp_path, monkeypatch):
    names = [b"line\nbreak.png", b"\xff\xfe.png", "Größe \U0001f600.png".encode(), b'"{}\\.png', b"d\xe9j\xe0/vu.png"]
    root = make(tmp_path / "root", *map(os.fsdecode, names))
    first = list_images(root, refresh=False)
    assert sorted(map(os.fsencode, first.paths)) == sorted(names)
    refuse_to_walk(monkeypatch)
    assert list_images(root, refresh=False) == first


CHANGES = {
    "a new file": lambda root: (root / "b" / "new.png").write_text("new"),
    "a new file far below": lambda root: (root / "a" / "deep" / "new.png").write_text("new"),
    "a removed file": lambda root: (root / "b" / "1.png").unlink(),
    "a renamed file": lambda root: (root / "b" / "1.png").rename(root / "b" / "2.png"),
    "a file in place of another": lambda root: (root / "spare.jpg").rename(root / "b" / "1.png"),
    "a new directory": lambda root: make(root, "c/1.png"),
    "a renamed directory": lambda root: (root / "b").rename(root / "c"),
    "a file moved elsewhere": lambda root: (root / "b" / "1.png").rename(root / "a" / "moved.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_directory_is_noticed(tmp_path, change):
    root = make(tmp_path / "root", "a/1.png", "a/deep/1.png", "b/1.png", "spare.jpg")
    before = list_images(root, refresh=False)
    CHANGES[change](root)
    after = list_images(root, refresh=False)
    assert after != before
    assert (after.paths, after.digest) == reference(root)


def test_another_directory_with_the_same_time_in_its_place_is_noticed(tmp_path):
    root = make(tmp_path / "root", "a/1.png")
    make(tmp_path / "other", "2.png")
    list_images(root, refresh=False)
    times = {path: os.stat(path).st_mtime_ns for path in (root, root / "a")}
    (root / "a").rename(tmp_path / "old")
    (tmp_path / "other").rename(root / "a")
    for path, modified in times.items():
        os.utime(path, ns=(modified, modified))
    assert list_images(root, refresh=False).paths == ["a/2.png"]


def test_a_file_rewritten_in_place_is_noticed(tmp_path, caplog):
    root = make(tmp_path / "root", "a/1.png", "a/2.png")
    before = list_images(root, refresh=False)
    times = (root / "a" / "1.png").stat()
    (root / "a" / "1.png").write_text("A/1.png")  # of equal length
    os.utime(root / "a" / "1.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    caplog.set_level(logging.INFO)
    after = list_images(root, refresh=False)
    assert after.digest == reference(root)[1] != before.digest
    assert "were rewritten in place" in caplog.text
    caplog.clear()
    assert list_images(root, refresh=False) == after, "the new list is kept"
    assert "from the saved file list" in caplog.text


@pytest.mark.parametrize("days", [0, -1])
@pytest.mark.parametrize("directory", [".", "a"])
def test_what_changed_just_now_or_in_the_future_is_not_kept(tmp_path, cache, days, directory):
    root = make(tmp_path / "root", "a/1.png", "b/1.png")
    now = os.stat(tmp_path / "root" / "a" / "1.png").st_mtime - days * DAY
    os.utime(root / directory, (now, now))
    found = list_images(root, refresh=False)
    assert not cache.exists()
    assert (found.paths, found.digest) == reference(root)
    settle(root, days=2)
    list_images(root, refresh=False)
    assert cache.exists()


def test_small_folders_are_not_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(file_index, "LEAST_SAVED", 3)
    list_images(make(tmp_path / "two", "1.png", "2.png", "notes.txt"), refresh=False)
    assert not cache.exists()
    list_images(make(tmp_path / "three", "1.png", "2.png", "3.png"), refresh=False)
    assert cache.exists()


def test_other_extensions_make_another_list(tmp_path, monkeypatch):
    root = make(tmp_path / "root", "1.png", "2.sketch")
    assert list_images(root, refresh=False).paths == ["1.png"]
    monkeypatch.setitem(Image.EXTENSION, ".sketch", "PNG")
    assert list_images(root, refresh=False).paths == ["1.png", "2.sketch"]


# A cache that is of no use


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-3],
    "a byte changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "its header changed": lambda content: content.replace(b'"contents"', b'"cotnents"'),
    "something else": lambda content: b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_a_warning(tmp_path, cache, caplog, damage):
    root = make(tmp_path / "root", "a/1.png", "b/2.png")
    first = list_images(root, refresh=False)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    assert list_images(root, refresh=False) == first
    assert f"{file} is damaged and is rebuilt" in caplog.text
    assert file.read_bytes() == content


def test_a_file_of_another_format_is_made_again(tmp_path, cache):
    root = make(tmp_path / "root", "a/1.png")
    first = list_images(root, refresh=False)
    (file,) = cache.iterdir()
    _, header, names = file.read_bytes().split(b"\n")
    content = json.dumps(json.loads(header) | {"format": 1}).encode() + b"\n" + names
    file.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    assert list_images(root, refresh=False) == first
    assert file.read_bytes().split(b"\n")[1] == header


def test_a_cache_that_cannot_be_read_or_written_costs_warnings(tmp_path, cache, monkeypatch, caplog):
    root = make(tmp_path / "root", "a/1.png")
    first = list_images(root, refresh=False)
    (file,) = cache.iterdir()
    file.unlink()
    file.mkdir()
    assert list_images(root, refresh=False) == first
    assert f"{file} cannot be read (Is a directory)" in caplog.text
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "file"))
    caplog.clear()
    assert list_images(root, refresh=False) == first
    assert "set GENIMG_CACHE to a writable directory" in caplog.text


def test_without_a_home_directory_there_is_no_cache(tmp_path, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GENIMG_CACHE")
    monkeypatch.setattr(Path, "home", home)
    assert list_images(make(tmp_path / "root", "a/1.png"), refresh=False).paths == ["a/1.png"]


# Of a folder


def test_a_folder_from_the_cache_equals_one_that_was_listed(tmp_path, monkeypatch, caplog):
    root = make(tmp_path / "root", "cat/1.png", "dog/1.png", "dog/2.png")
    settings = {"root": str(root), "image_size": 8, "channels": 3, "fit": "crop", "labels": "auto"}
    first = folder(**settings)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        refuse_to_walk(patch)
        second = folder(**settings)
    assert "3 files of" in caplog.text
    assert "refresh_index=true lists them again" in caplog.text
    assert second.paths == first.paths
    assert second.labels.tolist() == first.labels.tolist() == [0, 1, 1]
    assert second.class_names == first.class_names
    assert second.fingerprint == first.fingerprint
    (root / "cat" / "1.png").write_text("another picture")
    assert folder(**settings).fingerprint != first.fingerprint


# What genimg wrote


RUNS = {
    "a run": [".hydra/config.yaml", "config.yaml", "train.log", "samples/real-000000000.png"],
    "a run that has just begun": [".hydra/config.yaml", "train.log", "samples/real-000000000.png"],
    "a run copied without its hidden files": ["config.yaml", "checkpoints/last.pt", "samples/samples-000000064.png"],
    "a run whose checkpoints were removed": ["config.yaml", "metrics.jsonl", "samples-seed0/000000.png", "samples-seed0.png"],
    "a sweep": ["multirun.yaml", "0/config.yaml", "0/summary.json", "0/samples/real-000000000.png"],
}


@pytest.mark.parametrize("kind", RUNS)
def test_what_genimg_wrote_is_left_out_and_named_once(tmp_path, kind, caplog):
    root = make(tmp_path / "root", "cat/1.png", "dog/1.png", "outputs/photo.png")
    make(root, *(f"outputs/2026-11-28/12-00-00/{name}" for name in RUNS[kind]))
    for _ in range(2):  # the second time from the list that was kept
        assert list_images(root, refresh=False).paths == ["cat/1.png", "dog/1.png", "outputs/photo.png"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "outputs/2026-11-28/12-00-00" in caplog.text


@pytest.mark.parametrize("command", ["genimg-sample", "genimg-translate"])
def test_what_a_model_made_is_left_out_with_the_grid_beside_it_unless_it_is_named(tmp_path, command):
    root = make(tmp_path / "root", "cat/1.png", "made.png", "cat/made.png")
    with own_folder(root / "cat" / "made", record_of(command)) as folder:
        make(folder, "000000.png", "dog/000000.png")
    settle(root, days=2)
    for _ in range(2):
        assert list_images(root, refresh=False).paths == ["cat/1.png", "made.png"]
    assert list_images(root / "cat" / "made", refresh=False).paths == ["000000.png", "dog/000000.png"]


def test_copies_that_genimg_augment_made_are_data(tmp_path):
    root = make(tmp_path / "root", "cat/1.png")
    with own_folder(root / "dog", record_of("genimg-augment")) as folder:
        make(folder, "1-0.png")
    assert list_images(root, refresh=False).paths == ["cat/1.png", "dog/1-0.png"]


def test_a_picture_called_like_a_run_stays(tmp_path):
    root = make(tmp_path / "root", "run.png", "run/.hydra/config.yaml", "run/train.log", "run/real.png")
    assert list_images(root, refresh=False).paths == ["run.png"]


@pytest.mark.parametrize(
    "names",
    [["config.yaml"], ["checkpoints/1.png", "summary.json"], ["metrics.jsonl"], [".hydra/config.yaml", "multirun.yaml"]],
)
def test_a_directory_that_only_resembles_a_run_is_data(tmp_path, names):
    root = make(tmp_path / "root", "cat/1.png", *(f"dog/{name}" for name in ["2.png", *names]))
    expected = ["cat/1.png", "dog/2.png", *(f"dog/{name}" for name in names if name.endswith("png"))]
    assert list_images(root, refresh=False).paths == expected


def test_a_run_is_no_folder_of_images_but_its_subdirectories_are(tmp_path):
    run = make(tmp_path / "run", *RUNS["a run"])
    with raises(DataError, word="train.log"):
        list_images(run, refresh=False)
    assert list_images(run / "samples", refresh=False).paths == ["real-000000000.png"]


def test_a_directory_that_becomes_a_run_is_noticed(tmp_path):
    root = make(tmp_path / "root", "cat/1.png", "dog/1.png")
    assert len(list_images(root, refresh=False).paths) == 2
    make(root, "dog/config.yaml", "dog/summary.json")
    assert list_images(root, refresh=False).paths == ["cat/1.png"]
