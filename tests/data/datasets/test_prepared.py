"""Packed images are read back as they were, by every process, and damage is named."""

import hashlib
import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image
from torch.utils.data import DataLoader

from genimg.data.datasets.builtin import CorruptImageError, ImageDataset, folder
from genimg.data.datasets.prepared import prepared
from genimg.data.datasets.shapes import ShapesDataset
from genimg.data.loader import ImageLoader
from genimg.data.packed_files import sealed
from genimg.data.packing import pack
from genimg.errors import ConfigError, DataError
from genimg.utils.images import to_float

BYTES = 3 * 6 * 8


def packed(source: ImageDataset, path: Path, *, per_shard: int = 4) -> Path:
    path.mkdir()
    pack(source, path, shard_size=per_shard * BYTES, num_threads=2, max_corrupt=None, provenance={})
    return path


def open_packed(path: Path, **changes: object) -> ImageDataset:
    return prepared(**({"root": str(path), "image_size": [6, 8], "channels": 3} | changes))


@pytest.fixture
def original() -> ShapesDataset:
    """Eleven images of 6x8 pixels, with labels and captions."""
    return ShapesDataset(seed=0, num_images=11, image_size=[6, 8], channels=3, num_objects=2)


@pytest.fixture
def path(tmp_path, original) -> Path:
    return packed(original, tmp_path / "packed")


def test_images_labels_names_and_captions_come_back(path, original):
    source = open_packed(path)
    assert len(source) == 11
    assert source.captioned
    assert source.shape == (3, 6, 8)
    assert source.name == "prepared shapes"
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == original.labels.tolist()
    assert source.class_names == original.class_names
    for index in range(11):
        image = source.read(index)
        assert image.dtype == np.uint8
        assert np.array_equal(image, original.read(index))
        assert source.caption(index) == original.caption(index)


def test_without_labels_and_captions_there_are_none(tmp_path, original):
    original.labels, original.class_names = None, ()
    original.captioned = False
    source = open_packed(packed(original, tmp_path / "plain"))
    assert source.labels is None
    assert source.class_names == ()
    assert not source.captioned
    assert source.caption(3) is None


@pytest.mark.parametrize("indices", [[0], [10], [3, 4], [10, 0, 5, 5, 7, 3, 4, 8], range(11), []])
def test_many_images_are_those_read_one_by_one(path, original, indices):
    indices = np.array(indices, dtype=np.int64)
    many = open_packed(path).read_many(indices)
    assert many.dtype == np.uint8
    assert np.array_equal(many, ImageDataset.read_many(original, indices))
    many[:] = 0  # a copy, so that nobody can write to the files
    assert np.array_equal(open_packed(path).read_many(indices), ImageDataset.read_many(original, indices))


def test_an_index_that_is_none_is_an_error(path):
    for index in (11, 12, 1000):
        with pytest.raises(IndexError):
            open_packed(path).read(index)


def test_the_fingerprint_is_of_the_contents(path, tmp_path, original):
    fingerprint = open_packed(path).fingerprint
    shutil.copytree(path, tmp_path / "copy")
    assert open_packed(tmp_path / "copy").fingerprint == fingerprint
    assert open_packed(packed(original, tmp_path / "again")).fingerprint == fingerprint
    original.seed = 1
    assert open_packed(packed(original, tmp_path / "other")).fingerprint != fingerprint


def test_other_pixels_under_the_same_description_have_another_fingerprint(path):
    before = open_packed(path).fingerprint
    shard = path / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert open_packed(path).fingerprint != before


# Memory maps and processes


def test_shards_are_opened_when_they_are_needed(path):
    source = open_packed(path)
    assert not source._opened
    source.read(5)
    assert set(source._opened) == {1}
    assert isinstance(source._opened[1].base, np.memmap)


def test_a_pickled_source_holds_no_pixels(tmp_path, original):
    original.num_images, original.labels = 400, None
    source = open_packed(packed(original, tmp_path / "large", per_shard=100))
    source.read_many(np.arange(400))
    content = pickle.dumps(source)
    assert len(content) < 5000 < 100 * BYTES
    copy = pickle.loads(content)
    assert not copy._opened
    assert np.array_equal(copy.read(370), original.read(370))


class Reading:
    """Two images of a source, as a worker reads them."""

    def __init__(self, source: ImageDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.source.read_many(np.array([index, index + 5])))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_after_the_parent_has(path, original, context):
    source = open_packed(path)
    source.read_many(np.arange(11))
    loader = DataLoader(Reading(source), batch_size=None, num_workers=1, multiprocessing_context=context)
    for index, images in enumerate(loader):
        assert np.array_equal(images.numpy(), ImageDataset.read_many(original, np.array([index, index + 5])))


# Training


def place(source: ImageDataset, storage: str, num_workers: int) -> ImageLoader:
    return ImageLoader(
        source,
        storage=storage,
        num_workers=num_workers,
        horizontal_flip=True,
        max_corrupt=0,
        device=torch.device("cpu"),
        keys=("image", "label"),
    )


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 1), ("host", 1), ("workers", 0), ("workers", 2)])
def test_batches_are_those_of_the_folder(tmp_path, storage, num_workers):
    random = np.random.default_rng(0)
    for name in ("cat/1", "cat/2", "dog/1", "dog/2", "dog/3", "emu/1", "emu/2"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        values = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "files" / f"{name}.jpg")
    files = folder(root=str(tmp_path / "files"), image_size=[6, 8], channels=3, fit="crop", labels="auto")
    source = open_packed(packed(files, tmp_path / "packed", per_shard=3))
    streams = [place(files, "workers", 0), place(source, storage, num_workers)]
    streams = [data.batches(4, batch_size=4, seed=5) for data in streams]
    for one, other in itertools.islice(zip(*streams, strict=False), 6):
        assert one.keys() == other.keys() == {"image", "label"}
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    indices = np.array([6, 0, 3, 3])
    assert torch.equal(place(source, storage, 2).images(indices), place(files, "workers", 2).images(indices))


def test_auto_loads_what_fits_and_reads_the_rest_from_the_files(path, monkeypatch):
    monkeypatch.setattr("genimg.data.loader._RESIDENT_BYTES", 1)  # of what must be decoded
    assert place(open_packed(path), "auto", 0).storage == "device"
    monkeypatch.setattr("genimg.data.loader._available_memory", lambda: 1000)
    data = place(open_packed(path), "auto", 2)
    assert data.storage == "workers"
    assert next(data.batches(0, batch_size=4, seed=0))["image"].shape == (4, 3, 6, 8)


# What cannot be read


def test_another_size_or_number_of_channels_names_the_right_ones(path, tmp_path, original):
    with raises(ConfigError, "image_size=32"):  # fmt: skip
        open_packed(path, image_size=32)
    with raises(ConfigError, "channels=1"):
        open_packed(path, channels=1)
    with raises(ConfigError, "image_size=[8,6]"):  # fmt: skip
        open_packed(path, image_size=[8, 6], channels=4)
    square = ShapesDataset(seed=0, num_images=2, image_size=8, channels=1, num_objects=1)
    with raises(ConfigError, "image_size", word="channel"):
        open_packed(packed(square, tmp_path / "square"))
    with raises(ValueError, "image_size=0"):
        open_packed(path, image_size=0)


def test_a_directory_that_was_not_packed_is_named(path, tmp_path):
    with raises(DataError, "root", word="absent"):
        open_packed(tmp_path / "absent")
    (path / "dataset.json").unlink()
    with raises(DataError, "root", word="genimg-prepare"):
        open_packed(path)


def rewrite(path: Path, **changes: object) -> None:
    content = json.loads((path / "dataset.json").read_text())
    content.pop("sha256", None)
    (path / "dataset.json").write_text(json.dumps(sealed(content | changes)))


def accept(path: Path, name: str) -> None:
    """Write the digest of a file that was changed into the description, as who damages it on purpose would."""
    digests = json.loads((path / "dataset.json").read_text())["digests"]
    rewrite(path, digests=digests | {name: hashlib.sha256((path / name).read_bytes()).hexdigest()})


def make_older(path: Path) -> None:
    """Make the directory one of the format without checksums."""
    content = json.loads((path / "dataset.json").read_text())
    del content["digests"], content["sha256"]
    (path / "dataset.json").write_text(json.dumps(content | {"format": 1}))
    (path / "checksums.npy").unlink()


def test_a_description_of_another_format_is_refused(path):
    rewrite(path, format=3, whatever="it says")
    with raises(DataError, word="dataset.json"):
        open_packed(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"text"', b"{}", b'{"format": 1}', b'{"format": 2}', b"null"]
)
def test_a_damaged_description_is_named(path, content):
    (path / "dataset.json").write_bytes(content)
    with raises(DataError, word="genimg-prepare"):
        open_packed(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [3, 6]},
        {"shape": "3x6x8"},
        {"shape": [-3, -6, 8]},
        {"num_images": 12},
        {"num_images": "eleven"},
        {"shards": []},
        {"shards": [{"file": "shard-00000.npy"}]},
        {"shards": [{"file": "../x.npy", "num_images": 11, "num_bytes": 1, "sha256": ""}]},
        {"shards": [{"file": "x\0.npy", "num_images": 11, "num_bytes": 1, "sha256": ""}]},
        {"shards": [{"file": "shard-00000.npy", "num_images": 11, "num_bytes": 1, "sha256": 5}]},
        {"digests": {}},
        {"digests": ["checksums.npy", "labels.npy", "captions.jsonl"]},
        {"digests": {"checksums.npy": "", "labels.npy": ""}},
        {"source": {}},
        {"source": {"name": 3}},
        {"surprise": 1},
    ],
)
def test_a_description_that_does_not_add_up_is_damaged(path, changes):
    rewrite(path, **changes)
    with raises(DataError, word="dataset.json") as caught:
        open_packed(path)
    assert "its content has changed" not in str(caught.value)


def test_a_description_that_was_changed_is_damaged(path):
    file = path / "dataset.json"
    text = file.read_text()
    file.write_text(" ".join(text.split()))  # what it means is the same
    open_packed(path)
    file.write_text(text.replace("circle", "circlf", 1))
    with raises(DataError, word="dataset.json"):
        open_packed(path)


@pytest.mark.parametrize("name", ["shard-00001.npy", "labels.npy", "captions.jsonl", "checksums.npy"])
def test_a_missing_file_is_named(path, name):
    (path / name).unlink()
    with raises(DataError, word="missing"):
        open_packed(path)


@pytest.mark.parametrize("size", [0, 100, 128, 300])
def test_a_truncated_shard_is_found_at_the_start(path, size):
    file = path / "shard-00001.npy"
    file.write_bytes(file.read_bytes()[:size])
    with raises(DataError, word="dataset.json"):
        open_packed(path)


def test_a_shard_of_another_kind_is_found_at_the_start(path):
    file = path / "shard-00001.npy"
    file.write_bytes(b"x" * file.stat().st_size)
    with raises(DataError, word="damaged"):
        open_packed(path)
    np.save(file, np.zeros((4, 3, 8, 6), dtype=np.uint8))
    with raises(DataError, word="dataset"):
        open_packed(path)
    np.save(file, np.asfortranarray(np.zeros((4, 3, 6, 8), dtype=np.uint8)))
    with raises(DataError, word="packed"):
        open_packed(path)


def test_a_description_and_a_shard_that_are_both_too_short_are_refused(path):
    file = path / "shard-00001.npy"
    file.write_bytes(file.read_bytes()[:300])
    shards = json.loads((path / "dataset.json").read_text())["shards"]
    shards[1]["num_bytes"] = 300
    rewrite(path, shards=shards)
    with raises(DataError, word="damaged"):
        open_packed(path)


def test_labels_that_do_not_fit_are_named(path):
    file = path / "labels.npy"
    content = file.read_bytes()
    for damaged in (content[:100], content[:-5], content[:-8], content + bytes(8), content + bytes(10**6), b"x", b""):
        file.write_bytes(damaged)
        accept(path, "labels.npy")
        with raises(DataError, word="labels.npy"):
            open_packed(path)
    for labels, word in (
        (np.zeros(10, dtype=np.int64), "int64 [10]"),
        (np.zeros(11), "float64 [11]"),
        (np.arange(11), "0 to 10"),
        (np.arange(11) - 10, "-10 to 0"),
    ):
        np.save(file, labels)
        with raises(DataError, word="dataset.json"):
            open_packed(path)
        accept(path, "labels.npy")
        with raises(DataError, word=word):
            open_packed(path)


def test_captions_that_do_not_fit_are_named(path):
    file = path / "captions.jsonl"
    lines = file.read_text()
    file.write_text(lines[:-1])
    with raises(DataError, word="captions.jsonl"):
        open_packed(path)
    for content, word in (
        (lines + "no json\n", "damaged"),
        (lines + "[" * 100_000, "damaged"),
        (lines + '"one more"\n', "12"),
        ("\n".join(["5"] * 11), "caption is not text"),
    ):
        file.write_text(content)
        accept(path, "captions.jsonl")
        with raises(DataError, word=word):
            open_packed(path).caption(0)


# Damage of single images, and directories of before there were checksums


def damage_image(path: Path, index: int) -> None:
    """Flip one bit of an image: there are four in each shard."""
    file = path / f"shard-{index // 4:05d}.npy"
    content = bytearray(file.read_bytes())
    content[-(BYTES * (min(4, 11 - index // 4 * 4) - index % 4)) + 7] ^= 16
    file.write_bytes(bytes(content))


def test_a_damaged_image_is_named_and_the_others_are_read(path, original):
    damage_image(path, 5)
    source = open_packed(path)
    others = np.array([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])
    assert np.array_equal(source.read_many(others), ImageDataset.read_many(original, others))
    for indices in ([5], [2, 5], [9, 5, 5], list(range(11))):
        with raises(CorruptImageError, word="shard-00001.npy: image 1 "):
            source.read_many(np.array(indices))


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 1), ("host", 1), ("workers", 0), ("workers", 2)])
def test_a_damaged_image_stops_the_training_like_any_corrupt_one(path, storage, num_workers):
    damage_image(path, 5)
    settings = {"storage": storage, "num_workers": num_workers, "device": torch.device("cpu"), "horizontal_flip": False}
    with raises(DataError, "max_corrupt=0"):
        list(itertools.islice(ImageLoader(open_packed(path), max_corrupt=0, **settings).batches(0, batch_size=4, seed=0), 3))
    data = ImageLoader(open_packed(path), max_corrupt=1, keys=("image", "label"), **settings)
    batches = list(itertools.islice(data.batches(0, batch_size=4, seed=0), 3))
    pairs = [(image, int(label)) for batch in batches for image, label in zip(batch["image"], batch["label"], strict=True)]
    whole = open_packed(path)
    images = to_float(torch.from_numpy(whole.read_many(np.array([i for i in range(11) if i != 5]))))
    known = {image.contiguous().numpy().tobytes(): whole.labels[i + (i >= 5)] for i, image in enumerate(images)}
    assert len(pairs) == 12
    assert all(known[image.contiguous().numpy().tobytes()] == label for image, label in pairs)  # of what took its place


def test_a_directory_without_checksums_is_read_with_a_warning(path, original, caplog):
    fingerprint = open_packed(path).fingerprint
    make_older(path)
    caplog.clear()
    source = open_packed(path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [f"{path} was packed without checksums, so damaged images would not be noticed: pack them again"]
    assert np.array_equal(source.read_many(np.arange(11)), ImageDataset.read_many(original, np.arange(11)))
    assert source.labels.tolist() == original.labels.tolist()
    assert source.captions(np.arange(11)) == original.captions(np.arange(11))
    assert source.fingerprint == fingerprint  # so that statistics and runs of before still fit


def test_a_directory_without_checksums_can_be_packed_again(path, tmp_path, caplog):
    make_older(path)
    old = open_packed(path)
    caplog.clear()
    new = open_packed(packed(old, tmp_path / "new"))
    assert caplog.messages == []
    assert np.array_equal(new.read_many(np.arange(11)), old.read_many(np.arange(11)))
