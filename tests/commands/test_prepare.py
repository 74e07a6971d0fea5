"""genimg-prepare: packed images train as the files do, and what a user is told when they cannot be packed."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from fork_server import run_commands
from hydra import compose, initialize_config_dir
from PIL import Image

from genimg import cli
from genimg.commands import prepare as command
from genimg.commands.prepare import prepare
from genimg.data import packing
from genimg.data.datasets.prepared import prepared
from genimg.data.datasets.shapes import ShapesDataset
from genimg.errors import ConfigError, DataError
from genimg.utils.paths import config_dir

STOPPED = """
import glob, json, os, signal, sys, time
from genimg import cli
import genimg.commands.prepare  # imported once; every run is a fork
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
statuses = {}
for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
    os.mkdir(sent.name)
    child = os.fork()
    if child == 0:
        os.chdir(sent.name)
        cli.prepare()
        sys.exit()
    while not glob.glob(f"{sent.name}/PACKED.*.tmp/shard-00001.npy"):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(child, sent)
    statuses[sent.name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""
PICTURES = ["data=folder", "data.root=pictures", "data.image_size=16"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds pictures, so that relative paths and caches land in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    random = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            values = random.integers(0, 150, (20, 24, 3)) + 100 * number
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i:02d}.png")
    return tmp_path


def run(program: str, *arguments: str) -> str:
    """What a program prints."""
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert process.returncode == 0, process.stdout
    return process.stdout


def train(*runs: list[str]) -> None:
    """One genimg-train after the other."""
    codes, output = run_commands(["train", *arguments] for arguments in runs)
    assert codes == [0] * len(runs), output


def prepare_here(*overrides: str) -> None:
    """As genimg-prepare, in this process."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("prepare", [*overrides])
    prepare(config)


def beside_pictures(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name != "pictures")


# Packing and training


def test_packed_images_train_as_the_files_do_also_when_resumed(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        prepare_here(*PICTURES, "output='a folder/PACKED'", "shard_size=8000")
    assert "24 images of 3x16x16 in 3 files, 18816 bytes, in " in caplog.text
    assert "genimg-train data=prepared 'data.root='\"'\"'a folder/PACKED'\"'\"'' data.image_size=16" in caplog.text
    assert [path.name for path in (home / "a folder").iterdir()] == ["PACKED"]
    shutil.move(home / "a folder" / "PACKED", home / "moved")  # a directory that can be copied anywhere

    base = ["data.image_size=16", "data.horizontal_flip=true", "model.generator.width=8", "model.latent.dim=8", "device=cpu"]
    base += ["trainer.batch_size=8", "trainer.log_interval=1 steps", "trainer.preview_images=4", "evaluation=none"]
    packed = ["data=prepared", "data.root=moved", "data.storage=workers", "data.num_workers=1"]
    train(
        ["data=folder", "data.root=pictures", *base, "trainer.duration=6 steps", "run_dir=files"],
        [*packed, *base, "trainer.duration=3 steps", "run_dir=packed"],
        ["resume=packed", "trainer.duration=6 steps"],
    )
    records = []
    for run in ("files", "packed"):
        lines = [json.loads(line) for line in (home / run / "metrics.jsonl").read_text().splitlines()]
        records.append([{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines])
    assert len(records[0]) >= 6
    assert records[0] == records[1]
    weights = [torch.load(home / run / "checkpoints" / "last.pt", weights_only=True)["method"] for run in ("files", "packed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_labels_class_names_and_captions_travel_along(home: Path) -> None:
    prepare_here("data=shapes", "data.num_images=9", "data.num_objects=2", "data.labels=color_shape", "output=PACKED")
    original = ShapesDataset(seed=0, num_images=9, image_size=32, channels=3, num_objects=2, labels="color_shape")
    source = prepared(root="PACKED", image_size=32, channels=3)
    assert source.class_names == original.class_names
    assert source.labels is not None
    assert source.labels.tolist() == original.labels.tolist()
    assert [source.caption(i) for i in range(9)] == [original.caption(i) for i in range(9)]
    assert source.caption(0) is not None


def test_the_captions_of_a_folder_travel_along(home: Path) -> None:
    for path in (home / "pictures").glob("*/*.png"):
        path.with_suffix(".txt").write_text(f"the {path.parent.name} of « {path.stem} »\n", encoding="utf-8")
    (home / "pictures" / "cat" / "03.png").write_bytes(b"not a png")
    prepare_here(*PICTURES, "output=PACKED")
    names = sorted(path.relative_to(home / "pictures") for path in (home / "pictures").glob("*/*.png"))
    expected = [f"the {name.parent.name} of « {name.stem} »" for name in names if name != Path("cat/03.png")]
    source = prepared(root="PACKED", image_size=16, channels=3)
    assert source.captions(np.arange(23)) == expected
    prepare_here(*PICTURES, "output=without", "data.captions=null")
    assert not prepared(root="without", image_size=16, channels=3).captioned


def test_where_the_images_came_from_is_recorded(home: Path) -> None:
    prepare_here(*PICTURES, "data.fit=pad", "output=PACKED")
    recorded = json.loads((home / "PACKED" / "dataset.json").read_text())["source"]
    assert recorded.pop("fingerprint")
    assert recorded == {"name": "folder", "num_images": 24, "fit": "pad"}


def test_packed_images_can_be_packed_again(home: Path) -> None:
    prepare_here(*PICTURES, "output=OLD")
    prepare_here("data=prepared", "data.root=OLD", "data.image_size=16", "output=NEW")
    for name in ("shard-00000.npy", "labels.npy", "checksums.npy"):
        assert (home / "NEW" / name).read_bytes() == (home / "OLD" / name).read_bytes()


def test_an_empty_directory_may_be_the_output(home: Path) -> None:
    (home / "PACKED").mkdir()
    prepare_here(*PICTURES, "output=PACKED")
    assert (home / "PACKED" / "dataset.json").is_file()


def test_corrupt_files_are_left_out_counted_and_listed(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat/03.png", "dog/07.png"):
        (home / "pictures" / name).write_bytes(b"not a png")
    prepare_here(*PICTURES, "output=PACKED", "max_corrupt=2")
    assert "2 corrupt images skipped: PACKED/corrupt.txt" in caplog.text
    lines = (home / "PACKED" / "corrupt.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["pictures/cat/03.png", "pictures/dog/07.png"]
    assert all("its format is not one that genimg reads" in line for line in lines)
    source = prepared(root="PACKED", image_size=16, channels=3)
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 11 + [1] * 11
    with raises(DataError, "max_corrupt=1", word="dog/07.png"):
        prepare_here(*PICTURES, "output=other", "max_corrupt=1")
    assert beside_pictures(home) == ["PACKED"]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*PICTURES], "required"),
        (["output=PACKED"], "data.root"),
        ([*PICTURES, "output=''"], "must name a directory"),
        ([*PICTURES, "output=PACKED", "+nonsense=1"], "nonsense"),
        ([*PICTURES, "output=PACKED", "+max_corupt=1"], "max_corupt"),
        ([*PICTURES, "output=PACKED", "+data.chanels=1"], "data.chanels"),
        ([*PICTURES, "output=PACKED", "shard_size=0"], "shard_size=0"),
        ([*PICTURES, "output=PACKED", "shard_size=767"], "shard_size=767"),
        ([*PICTURES, "output=PACKED", "max_corrupt=-1"], "max_corrupt=-1"),
        ([*PICTURES, "output=PACKED", "data.num_workers=0"], "data.num_workers=0"),
        ([*PICTURES, "output=PACKED", "data.horizontal_flip=true"], "data.horizontal_flip=True"),
        ([*PICTURES, "output=PACKED", "data.storage=host"], "data.storage=host"),
        ([*PICTURES, "output=PACKED", "data.max_corrupt=3"], "data.max_corrupt=3"),
        ([*PICTURES, "output=PACKED", "data.validation=0.25"], "data.validation=0.25"),
        (["data=paired", "data.root=pictures", "data.image_size=16", "output=PACKED"], "data=paired"),
        ([*PICTURES, "output=PACKED", "data.root=nowhere"], "data.root=nowhere"),
        ([*PICTURES, "output=PACKED", "data.captions=nowhere.jsonl"], "data.captions=nowhere.jsonl"),
        ([*PICTURES, "output=PACKED", "data.image_size=0"], "size"),
        ([*PICTURES, "output=PACKED", "data._target_=os.system"], "data._target_=os.system"),
        ([*PICTURES, "output=pictures"], "exists"),
        ([*PICTURES, "output=pictures/cat/00.png"], "file"),
        ([*PICTURES, "output=pictures/cat/00.png/x"], "written"),
        ([*PICTURES, "output=/dev/shm"], "mount"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_leaves_nothing(arguments: list[str], words: str, home: Path) -> None:
    with raises(ValueError, word=words):
        prepare_here(*arguments)
    assert beside_pictures(home) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["outptu=PACKED"], ["unknown key outptu", "did you mean 'output'?"]),
        (["output=PACKED", "shard_size=1GiB"], ["shard_size=1GiB must be a whole number"]),
    ],
)
def test_the_command_ends_with_one_message(
    arguments: list[str], words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["genimg-prepare", *PICTURES, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.prepare()
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "Traceback" not in errors
    assert errors.startswith("genimg-prepare: error: ")
    for word in words:
        assert word in errors
    assert beside_pictures(home) == []


def test_when_no_image_can_be_decoded_there_is_no_output(home: Path) -> None:
    for path in (home / "pictures").glob("*/*.png"):
        path.write_bytes(b"not a png")
    with raises(DataError, word="folder"):
        prepare_here(*PICTURES, "output=PACKED")
    assert beside_pictures(home) == []


# Disks and signals


def test_a_disk_without_room_is_refused_before_the_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 24 * 3 * 16 * 16
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed - 1))
    decoded: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(command, "pack", lambda *arguments, **keywords: decoded.append(arguments))
        with raises(ConfigError, "output", word=str(needed)):
            prepare_here(*PICTURES, "output=new/PACKED")
    assert not decoded
    assert beside_pictures(home) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed))
    prepare_here(*PICTURES, "output=new/PACKED")


def test_a_disk_that_becomes_full_is_named_with_the_bytes_needed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(packing._ShardWriter, "_path", lambda self: Path("/dev/full"))
    with raises(ConfigError, "output", word="full"):
        prepare_here(*PICTURES, "output=PACKED")
    assert beside_pictures(home) == []


@pytest.mark.exhaustive
def test_a_stop_while_packing_leaves_no_output(home: Path) -> None:
    output = run(STOPPED, "data=shapes", "data.num_images=1000000", "output=PACKED", "shard_size=20000")
    assert "Traceback" not in output, output
    assert json.loads(output.splitlines()[-1]) == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}
    for name in ("SIGINT", "SIGTERM"):
        assert list((home / name).iterdir()) == []
    (left,) = (home / "SIGKILL").iterdir()
    assert left.name != "PACKED"
    with raises(DataError, "root", word="dataset.json"):
        prepared(root=str(left), image_size=32, channels=3)


def test_what_a_killed_process_left_does_not_stand_in_the_way(home: Path) -> None:
    left = home / "PACKED.genimg-0123456789abcdef.tmp"
    left.mkdir()
    (left / "shard-00009.npy").write_bytes(b"half")
    prepare_here(*PICTURES, "output=PACKED")
    assert not left.exists()
    assert sorted(path.name for path in (home / "PACKED").iterdir()) == [
        "checksums.npy", "dataset.json", "labels.npy", "shard-00000.npy"
    ]  # fmt: skip
