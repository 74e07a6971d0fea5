"""genimg-augment: copies are what metadata.jsonl says, data=folder reads them, and what a user is told when there are none."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from genimg import cli
from genimg.commands.augment import augment
from genimg.data import copies
from genimg.data.copies import apply, mix
from genimg.data.datasets.builtin import ImageDataset, folder
from genimg.errors import ConfigError, DataError
from genimg.utils.paths import config_dir

EVERYTHING = ["vertical_flip=0.5", "rotation=40", "hue=0.2", "cutout=0.3", "mixup=1", "cutmix=1"]
OFF_BUT_FLIP = ["rotation=0", "crop=1", "brightness=0", "contrast=0", "saturation=0"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds pictures of three sizes, so that relative paths and caches land in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(5):
            values = random.integers(0, 256, (20 + 2 * (i % 3), 24, 3))
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path


def augment_here(*overrides: str) -> None:
    """As genimg-augment, in this process."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("augment_files", ["input=pictures", *overrides])
    augment(config)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def read(root: Path, **keywords: Any) -> ImageDataset:
    return folder(root=str(root), image_size=16, channels=3, fit="crop", labels="auto", captions="auto", **keywords)


def tensor(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


# Folders


def test_the_same_command_gives_the_same_bytes_however_many_threads_work(home: Path) -> None:
    for workers in ("1", "3"):
        augment_here(*EVERYTHING, "copies=2", f"output=with{workers}", f"num_workers={workers}")
    assert files(home / "with1") == files(home / "with3")
    assert (home / "with1.png").read_bytes() == (home / "with3.png").read_bytes()
    augment_here(*EVERYTHING, "copies=2", "output=other", "seed=1")
    assert files(home / "other")["cat/0-0.png"] != files(home / "with1")["cat/0-0.png"]


def test_a_copy_depends_on_its_path_and_number_alone(home: Path) -> None:
    augment_here("output=all", "copies=3")
    (home / "pictures" / "cat" / "1.png").unlink()
    (home / "pictures").rename(home / "moved")
    augment_here("input=moved", "output=fewer", "copies=2")
    all_files = files(home / "all")
    images = {name: content for name, content in files(home / "fewer").items() if name.endswith(".png")}
    assert len(images) == 9 * 2
    assert all(all_files[name] == content for name, content in images.items())
    assert len(set(images.values())) == len(images)


def test_labels_captions_and_operations_are_read_back(home: Path) -> None:
    records = [
        {"file_name": f"{name}/{i}.png", "caption": f"the {name} « {i} »", "other": 3}
        for name in ("cat", "dog")
        for i in range(5)
    ]
    (home / "pictures" / "captions.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    augment_here(*EVERYTHING, "output=more", "copies=2", "originals=true")
    source = read(home / "more")
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 15 + [1] * 15
    paths = [f"{name}/{i}{end}.png" for name in ("cat", "dog") for i in range(5) for end in ("-0", "-1", "")]
    assert [source.caption(index) for index in range(30)] == [f"the {path[:3]} « {path[4]} »" for path in paths]

    recorded = {line["file_name"]: line for line in lines(home / "more")}
    assert list(recorded) == [f"{name}/{i}{end}.png" for name in ("cat", "dog") for i in range(5) for end in ("", "-0", "-1")]
    kinds = set()
    for path, line in recorded.items():
        image, own = tensor(home / "pictures" / line["source"]), line["source"][:3]
        assert line["source"] == f"{path[:5]}.png"
        if path == line["source"]:
            assert line["operations"] == {}
            assert (home / "more" / path).read_bytes() == (home / "pictures" / path).read_bytes()
            continue
        single = {name: value for name, value in line["operations"].items() if name not in ("mixup", "cutmix")}
        ((name, mixed),) = (item for item in line["operations"].items() if item[0] in ("mixup", "cutmix"))
        kinds.add(name)
        other, share = mixed["with"][:3], mixed["share"]
        assert mixed["with"] != line["source"]
        assert line["labels"] == ({own: 1.0} if other == own else {own: share, other: pytest.approx(1 - share)})
        assert max(line["labels"], key=line["labels"].get) == path[:3]
        partner = tensor(home / "pictures" / mixed["with"])
        if partner.shape == image.shape:  # what is recorded is what was done
            assert torch.equal(tensor(home / "more" / path), mix(apply(image, single), partner, name, mixed))
        assert tensor(home / "more" / path).shape == image.shape
    assert kinds == {"mixup", "cutmix"}


def test_text_files_become_captions_and_null_leaves_them_out(home: Path) -> None:
    for path in (home / "pictures").glob("*/*.png"):
        path.with_suffix(".txt").write_text(f"a {path.parent.name}\n")
    augment_here("output=more", "copies=1")
    assert read(home / "more").caption(9) == "a dog"
    augment_here("output=without", "copies=1", "captions=null")
    assert not read(home / "without").captioned
    assert "text" not in lines(home / "without")[0]


@pytest.mark.parametrize("flip", ["horizontal_flip", "vertical_flip"])
def test_captions_that_a_flip_makes_untrue_are_warned_of_once(flip: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = {"horizontal_flip": "Left of", "vertical_flip": "above"}
    for path in (home / "pictures").glob("*/*.png"):
        text = f"{words[flip]} a tree" if path.parent.name == "dog" else "its leftovers"
        path.with_suffix(".txt").write_text(text)
    augment_here("horizontal_flip=0", f"{flip}=0.5", "output=more", "copies=1")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"{flip}=0.5 does not change captions, but 5 of them say " in warnings[0]
    assert f"dog/0.png ('{words[flip]} a tree'): set {flip}=0" in warnings[0]
    caplog.clear()
    augment_here("horizontal_flip=0", "output=still", "copies=1")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_every_kind_of_file_keeps_its_size_and_channels(home: Path) -> None:
    (home / "kinds").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (10, 14, 4)).astype(np.uint8)
    Image.fromarray(values).save(home / "kinds" / "alpha.png")
    Image.fromarray(values[:, :, 0]).save(home / "kinds" / "grey.bmp")
    Image.fromarray(values[:, :, :3]).convert("CMYK").save(home / "kinds" / "print.tiff")
    Image.fromarray(values[:, :, 0].astype(np.uint16) * 257).save(home / "kinds" / "deep.png")
    Image.fromarray(values[:, :, :3]).convert("P").save(home / "kinds" / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values[:, :, :3]).save(home / "kinds" / "phone.jpg", exif=exif)
    augment_here("input=kinds", "output=more", "copies=1", *EVERYTHING)
    found = {path.stem: (image.mode, image.size) for path in (home / "more").glob("*.png") if (image := Image.open(path))}
    wide = (14, 10)
    assert found == {
        "alpha-0": ("RGBA", wide), "grey-0": ("L", wide), "print-0": ("RGB", wide), "deep-0": ("L", wide),
        "palette-0": ("RGB", wide), "phone-0": ("RGB", (10, 14)),
    }  # fmt: skip
    assert "labels" not in lines(home / "more")[0]
    augment_here("input=kinds", "output=same", "copies=1", "horizontal_flip=1", *OFF_BUT_FLIP)
    deep = np.asarray(Image.open(home / "same" / "deep-0.png"))
    assert np.array_equal(deep, values[:, ::-1, 0])  # 16 bits are scaled, not clipped


def test_the_preview_shows_originals_and_their_copies(home: Path) -> None:
    augment_here("output=more", "copies=2", "horizontal_flip=1", *OFF_BUT_FLIP)
    picture = np.asarray(Image.open(home / "more.png")).astype(int)
    assert picture.shape == (8 * 130 + 2, 3 * 130 + 2, 3)
    for row in range(8):
        original, *copies = (picture[2 + 130 * row :, 2 + 130 * column :][:128, :128] for column in range(3))
        for copy in copies:
            assert np.abs(copy[:, ::-1] - original).mean() < 8  # levels; scaled with hard edges, and padded alike
    assert not list((home / "more").glob("*.png"))


def test_a_name_that_is_not_utf8_is_read_back(home: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        (home / "pictures" / "cat" / "0.png").rename(home / "pictures" / "cat" / f"{name}.png")
    except OSError:
        pytest.skip("this file system holds UTF-8 alone")
    for path in (home / "pictures").glob("*/*.png"):
        path.with_suffix(".txt").write_text("é", encoding="utf-8")
    augment_here("output=more", "copies=1")
    assert read(home / "more").caption(0) == "é"
    assert f"cat/{name}-0.png" in {line["file_name"] for line in lines(home / "more")}


# Corrupt images


def test_corrupt_files_stop_the_command_or_are_left_out_and_listed(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "pictures" / "cat" / "1.png").write_bytes(b"not a png")
    whole = (home / "pictures" / "dog" / "2.png").read_bytes()
    (home / "pictures" / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    with raises(DataError, "max_corrupt", word="pictures/cat/1.png"):
        augment_here("output=more")
    assert sorted(path.name for path in home.iterdir()) == ["pictures"]
    augment_here("output=more", "copies=1", "originals=true", "max_corrupt=2", "mixup=1")
    assert "2 corrupt images skipped: more/corrupt.txt" in caplog.text
    listed = (home / "more" / "corrupt.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == ["pictures/cat/1.png", "pictures/dog/2.png"]
    source = read(home / "more")
    assert len(source) == 16
    for index in range(len(source)):
        source.read(index)
    assert not any("cat/1" in str(line) or "dog/2" in str(line) for line in lines(home / "more"))


def test_when_no_image_can_be_decoded_there_is_no_output(home: Path) -> None:
    for path in (home / "pictures").glob("*/*.png"):
        path.write_bytes(b"not a png")
    with raises(DataError, "input=pictures"):
        augment_here("output=more", "max_corrupt=null")
    assert sorted(path.name for path in home.iterdir()) == ["pictures"]


# What is refused


REFUSED: list[tuple[list[str], str]] = [
    ([], "output is required: set output=VALUE"),
    (["output=more", "+nonsense=1"], "unknown key nonsense: nothing reads it"),
    (["output=more", "+rotaton=1"], "unknown key rotaton (did you mean 'rotation'?)"),
    (["input=nowhere", "output=more"], "input=nowhere does not exist: give a directory of images"),
    (["input=pictures/cat/0.png", "output=more"], "input=pictures/cat/0.png is a file, not a directory"),
    (["input=empty", "output=more"], "input=empty holds no images: expected files such as .png or .jpg"),
    (["output=more", "copies=0"], "copies=0 must be 1 or more copies of each image"),
    (["output=more", "captions=no.jsonl"], "captions=no.jsonl is not a file"),
    (["output=more", "max_corrupt=-1"], "max_corrupt=-1 must be 0 or more images, or null"),
    (["output=more", "num_workers=0"], "num_workers=0 must be auto, or 1 or more threads"),
    (["output=more", "horizontal_flip=1.5"], "horizontal_flip=1.5 must be a number from 0 to 1"),
    (["output=more", "rotation=181"], "rotation=181 must be a number from 0 to 180"),
    (["output=more", "crop=0"], "crop=0 must be a number from 0.01 to 1"),
    (["output=more", "hue=nan"], "hue=nan must be a finite number"),
    (["output=more", "cutout=1"], "cutout=1 must be a number from 0 to 0.9"),
    (["output=more", "mixup=-0.1"], "mixup=-0.1 must be a number from 0 to 100"),
    (["output=more", "horizontal_flip=0", *OFF_BUT_FLIP], "every operation is switched off"),
    (["input=single", "output=more", "cutmix=1"], "cutmix=1 mixes two images, but input=single holds only one"),
    (["output=pictures"], "is the input itself: name another directory"),
    (["output=pictures/more"], "lies inside input=pictures, and would become part of it"),
    (["input=pictures/cat", "output=pictures"], "input=pictures/cat lies inside output="),
    (["output=single"], "single exists and is not empty: remove it, or choose another output"),
    (["output=single/a.png"], "a.png is a file: name a directory that does not exist yet"),
    (["output=single/a.png/x"], "a.png/x cannot be written"),
    (["output=single/a"], "single/a.png: move that away"),
    (["input=twice", "output=more"], "copies of a.bmp and of a.png would both be called a-0.png: rename one of them"),
    (["input=again", "output=more", "originals=true"], "a copy of a.bmp would be called a-0.png, which is also an original"),
    (["input=captioned", "output=more"], "line 1 of the file captioned/metadata.jsonl is not JSON"),
]  # fmt: skip


@pytest.fixture
def strange(home: Path) -> Path:
    """Folders of which no copies can be made."""
    for name in ("empty", "single", "twice", "again", "captioned"):
        (home / name).mkdir()
    image = Image.new("RGB", (8, 8))
    for name in ("single/a.png", "twice/a.png", "twice/a.bmp", "again/a.bmp", "again/a-0.png", "captioned/a.png"):
        image.save(home / name)
    (home / "captioned" / "metadata.jsonl").write_text("nonsense")
    return home


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_cannot_be_is_refused_by_name_and_leaves_nothing(arguments: list[str], words: str, strange: Path) -> None:
    before = files(strange)
    with raises((ValueError, FileNotFoundError), word=words) as refused:
        augment_here(*arguments)
    assert str(refused.value).count("\n") == 0
    assert not re.search(r"\bdata\.|conditioning", str(refused.value))  # keys of other commands
    assert files(strange) == before
    assert not (strange / "more").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["input=pictures", "outptu=more"], "unknown key outptu (did you mean 'output'?)"),
        (["output=more"], "input is required: set input=VALUE"),
        (["input=pictures", "output=more", "rotation=181"], "rotation=181 must be a number from 0 to 180"),
        (["input=pictures", "output=single/a.png/x"], "single/a.png/x cannot be written"),
        (["input=pictures", "output=out", "copies=1"], ""),
    ],
)
def test_the_command_ends_with_one_message(
    arguments: list[str], words: str, strange: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (strange / "out").mkdir()  # an empty directory may be the output
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["genimg-augment", *arguments])
    if words:
        with pytest.raises(SystemExit) as ended:
            cli.augment()
        assert ended.value.code == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith("genimg-augment: error: ")
        assert words in errors
        assert errors.count("\n") == 1
    else:
        cli.augment()
        output = capsys.readouterr().out
        assert "10 copies of 10 images in " in output
        assert output.endswith("some of them: out.png\nto train on it: genimg-train data=folder data.root=out\n")
        assert len(read(strange / "out")) == 10


# Disks and signals


def test_a_disk_that_becomes_full_is_named_and_nothing_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    write = copies._write_image
    monkeypatch.setattr(copies, "_write_image", lambda image, path: write(image, Path("/dev/full")))
    with raises(ConfigError, word="full"):
        augment_here("output=more")
    assert sorted(path.name for path in home.iterdir()) == ["pictures"]


def test_ctrl_c_leaves_no_output(home: Path) -> None:
    arguments = ["input=pictures", "output=more", "copies=100000"]
    # A shell has its background jobs ignore Ctrl-C, and what they start, as these tests may be.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = [sys.executable, "-c", heard + "from genimg import cli; cli.augment()", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            end = time.monotonic() + 300
            while not list(home.glob("more.*.tmp/*/*.png")) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
    assert sorted(path.name for path in home.iterdir()) == ["pictures"]
