"""Folders and files that commands replace whole, and those that they must not touch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image

from genimg.data.datasets.builtin import folder as folder_of_images
from genimg.errors import ConfigError, DataError
from genimg.utils.images import write_png
from genimg.utils.outputs import (
    MARK,
    exif_of,
    is_unfinished,
    own_folder,
    read_mark,
    record_of,
    require_own_export,
    require_own_file,
    require_own_folder,
    stamp_archive,
    stamp_of,
)

COMMAND = "genimg-sample"
KILLED = """
import os, signal, sys
from pathlib import Path
from PIL import Image
from genimg.utils import files
from genimg.utils.outputs import own_folder, record_of
path, when = Path(sys.argv[1]), sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    if str(self) == str(path):
        die()
if when == "between the renames":
    Path.rename = rename_and_die
if when == "after the renames":
    done = path.joinpath("1.png").exists
    files.shutil.rmtree = lambda tree, **_: die() if done() and str(tree).endswith(".old") else None
with own_folder(path, record_of("genimg-sample")) as made:
    for i in range(2):
        Image.new("L", (4, 4), 9).save(made / f"{i}.png")
        if when == "in the middle":
            die()
"""


def write(path: Path, count: int, level: int, **about: object) -> None:
    with own_folder(path, record_of(COMMAND, **about)) as made:
        for i in range(count):
            write_png(torch.full((1, 4, 4), level, dtype=torch.uint8), made / "a" / f"{i}.png")


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_replaced_with_all_that_it_held(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, 5, 1, checkpoint="first")
    require_own_folder(out, COMMAND)
    write(out, 2, 2, checkpoint="second")
    assert listed(out) == ["a/0.png", "a/1.png", MARK]
    assert np.asarray(Image.open(out / "a" / "0.png")).max() == 2
    mark = read_mark(out)
    assert mark is not None
    assert (mark["checkpoint"], mark["complete"], mark["files"]) == ("second", True, ["a/0.png", "a/1.png"])
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "out", 2, 1)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in listed(tmp_path / "out")}

    def fail() -> None:
        with own_folder(tmp_path / "out", record_of(COMMAND)) as made:
            (made / "9.png").write_bytes(b"")
            raise RuntimeError("diverged")

    with raises(RuntimeError, word="diverged"):
        fail()
    assert {name: (tmp_path / "out" / name).read_bytes() for name in listed(tmp_path / "out")} == before
    assert os.listdir(tmp_path) == ["out"]


def test_folders_with_files_of_others_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    require_own_folder(out, COMMAND)  # an empty one
    require_own_folder(tmp_path / "absent", COMMAND)
    (out / "metadata.jsonl").write_text("mine")
    with raises(ConfigError, "output", word="genimg-sample"):
        require_own_folder(out, COMMAND)
    (out / MARK).write_text("[1]")
    with raises(ConfigError, "output", word="genimg-sample"):
        require_own_folder(out, COMMAND)
    write(tmp_path / "made", 2, 1)
    with raises(ConfigError, "output", word="genimg-sample"):
        require_own_folder(tmp_path / "made", "genimg-translate")
    (tmp_path / "made" / "a" / "notes.txt").write_text("mine")
    with raises(ConfigError, "output", word="a/notes.txt"):
        require_own_folder(tmp_path / "made", COMMAND)
    (tmp_path / "file").write_text("")
    with raises(ConfigError, "output", word="directory"):
        require_own_folder(tmp_path / "file", COMMAND)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
@pytest.mark.parametrize("when", ["in the middle", "between the renames", "after the renames"])
def test_whenever_a_command_is_killed_a_folder_is_whole_or_known_to_be_unfinished(tmp_path: Path, when: str) -> None:
    out = tmp_path / "out"
    write(out, 3, 1)
    result = subprocess.run([sys.executable, "-c", KILLED, str(out), when], capture_output=True, text=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr
    if when == "in the middle":
        assert listed(out) == ["a/0.png", "a/1.png", "a/2.png", MARK]  # the old one
        (left,) = (path for path in tmp_path.iterdir() if path != out)
        assert left.name.endswith(".tmp")
        assert is_unfinished(left)
        settings = {"image_size": 4, "channels": 1, "fit": "crop", "labels": "none"}
        with raises(DataError, word="unfinished"):
            folder_of_images(root=str(left), **settings)
        assert len(folder_of_images(root=str(out), **settings)) == 3
        write_png(torch.zeros(1, 4, 4, dtype=torch.uint8), tmp_path / "photo.png")
        assert folder_of_images(root=str(tmp_path), **settings).file_names() == ["photo.png"]  # neither what is unfinished
        (tmp_path / "photo.png").unlink()
    elif when == "between the renames":
        assert not out.exists()
    else:
        assert listed(out) == ["0.png", "1.png", MARK]
    write(out, 1, 7)  # whatever was left, the next command puts in order
    assert listed(out) == ["a/0.png", MARK]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".old")]


def test_pictures_and_archives_of_others_are_refused(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    write_png(picture, tmp_path / "own.png", stamp_of(COMMAND))
    write_png(picture, tmp_path / "other.png")
    frames = [Image.new("RGB", (4, 4), (i * 80, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "own.webp", save_all=True, append_images=frames[1:], exif=exif_of(COMMAND))
    frames[0].save(tmp_path / "other.webp", save_all=True, append_images=frames[1:])
    for name in ("own.npz", "other.npz"):
        np.savez(tmp_path / name, np.arange(4))
    stamp_archive(tmp_path / "own.npz", record_of(COMMAND, options={"seed": 1}))
    (tmp_path / "broken.npz").write_text("no archive")
    (tmp_path / "directory.png").mkdir()
    for name in ("own.png", "own.webp", "own.npz", "absent.png"):
        require_own_file(tmp_path / name, "the grid")
    for name in ("other.png", "other.webp", "other.npz", "broken.npz", "directory.png"):
        with raises(ConfigError, "output", word=name):
            require_own_file(tmp_path / name, "the grid")
    with np.load(tmp_path / "own.npz") as archive:  # still one
        assert archive["arr_0"].tolist() == [0, 1, 2, 3]


def test_exports_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"weights")
    with raises(ConfigError, "output", word="genimg-export"):
        require_own_export(tmp_path / "other.onnx")
    (tmp_path / "own.onnx").write_bytes(json.dumps({"genimg_version": "1"}).encode())
    require_own_export(tmp_path / "own.onnx")
    require_own_export(tmp_path / "absent.onnx")
