"""What packing writes, read back with NumPy, JSON and hashlib alone."""

import errno
import hashlib
import json
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from errors import raises

import genimg
from genimg.data import packing
from genimg.data.datasets.builtin import ArrayDataset, CorruptImageError, ImageDataset
from genimg.data.datasets.shapes import ShapesDataset
from genimg.data.packing import pack
from genimg.errors import DataError

SHAPE = (3, 4, 6)
BYTES = 3 * 4 * 6


class ToyDataset(ImageDataset):
    """Random images that must be decoded one by one, some of which cannot be."""

    def __init__(self, count: int = 10, *, corrupt: tuple[int, ...] = (), labels: bool = True, captions: bool = False) -> None:
        self.name = "toy"
        self.values = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        self.shape = SHAPE
        self.labels = np.arange(count, dtype=np.int64) % 3 if labels else None
        self.class_names = ("a", "b", "ç") if labels else ()
        self.fingerprint = "a fingerprint"
        self.corrupt = corrupt
        self.captioned = captions
        self.threads: set[int] = set()
        self.num_reads = 0

    def __len__(self) -> int:
        return len(self.values)

    def read(self, index: int) -> np.ndarray:
        self.num_reads += 1
        self.threads.add(threading.get_ident())
        if index in self.corrupt:
            raise CorruptImageError(f"/toy/{index}.png: broken\nin two lines")
        return self.values[index]

    def caption(self, index: int) -> str | None:
        return f"number {index},\n\u2028« ç » \\" if self.captioned and index % 4 else None


def packed(source: ImageDataset, folder: Path, **changes: object):
    folder.mkdir()
    settings = {"shard_size": 4 * BYTES, "num_threads": 2, "max_corrupt": None, "provenance": {"fit": "pad"}}
    return pack(source, folder, **(settings | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 10])
@pytest.mark.parametrize("piece", [1, 3, 64])
def test_shards_hold_all_images_in_order(tmp_path, monkeypatch, count, piece):
    monkeypatch.setattr(packing, "_PIECE_IMAGES", piece)
    source = ToyDataset(count)
    packed(source, tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("shard-*.npy"))
    assert [path.name for path in shards] == [f"shard-{i:05d}.npy" for i in range(-(-count // 4))]
    arrays = [np.load(path) for path in shards]
    assert [len(array) for array in arrays] == [min(4, count - 4 * i) for i in range(len(shards))]
    assert all(array.dtype == np.uint8 for array in arrays)
    assert np.array_equal(np.concatenate(arrays), source.values)
    assert np.array_equal(np.load(tmp_path / "out" / "labels.npy"), source.labels)


@pytest.mark.parametrize(
    ("shard_size", "counts"), [(1, [1] * 10), (BYTES, [1] * 10), (5 * BYTES - 1, [4, 4, 2]), (2**40, [10])]
)
def test_shards_are_as_large_as_requested(tmp_path, shard_size, counts):
    description, _ = packed(ToyDataset(), tmp_path / "out", shard_size=shard_size)
    assert [shard.num_images for shard in description.shards] == counts


def test_the_description_says_what_there_is(tmp_path):
    source = ToyDataset()
    description, num_corrupt = packed(source, tmp_path / "out")
    assert num_corrupt == 0
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content.pop("shards") == [
        {
            "file": f"shard-{i:05d}.npy",
            "num_images": count,
            "num_bytes": (tmp_path / "out" / f"shard-{i:05d}.npy").stat().st_size,
            "sha256": hashlib.sha256((tmp_path / "out" / f"shard-{i:05d}.npy").read_bytes()).hexdigest(),
        }
        for i, count in enumerate([4, 4, 2])
    ]
    seal = content.pop("sha256")
    canonical = json.dumps({**content, "shards": [vars(shard) for shard in description.shards]}, sort_keys=True)
    assert seal == hashlib.sha256(canonical.encode()).hexdigest()
    assert content == {
        "format": 2,
        "num_images": 10,
        "shape": [3, 4, 6],
        "class_names": ["a", "b", "ç"],
        "labelled": True,
        "captioned": False,
        "source": {"name": "toy", "fingerprint": "a fingerprint", "num_images": 10, "fit": "pad"},
        "genimg_version": genimg.__version__,
        "digests": {
            name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() for name in ("checksums.npy", "labels.npy")
        },
    }
    checksums = np.load(tmp_path / "out" / "checksums.npy")
    assert checksums.dtype == np.uint32
    assert checksums.tolist() == [zlib.crc32(image.tobytes()) for image in source.values]
    assert description.num_images == 10
    assert names(tmp_path / "out") == [
        "checksums.npy", "dataset.json", "labels.npy", "shard-00000.npy", "shard-00001.npy", "shard-00002.npy"
    ]  # fmt: skip


def test_without_labels_there_is_no_file_of_them(tmp_path):
    description, _ = packed(ToyDataset(labels=False), tmp_path / "out")
    assert not description.labelled
    assert "labels.npy" not in names(tmp_path / "out")


def test_captions_are_json_lines_and_null_where_there_is_none(tmp_path):
    source = ToyDataset(corrupt=(2, 5), captions=True)
    description, _ = packed(source, tmp_path / "out")
    assert description.captioned
    lines = (tmp_path / "out" / "captions.jsonl").read_bytes().decode("ascii").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [source.caption(i) for i in (0, 1, 3, 4, 6, 7, 8, 9)]
    assert lines[0] == "null"


def test_captions_that_cannot_be_read_stop_before_an_image_is_decoded(tmp_path):
    source = ToyDataset(captions=True)
    source.caption = lambda index: 1 / 0
    with pytest.raises(ZeroDivisionError):
        packed(source, tmp_path / "out")
    assert source.num_reads == 0
    assert names(tmp_path / "out") == []


def test_the_same_source_makes_the_same_bytes(tmp_path, monkeypatch):
    for name, threads, piece in (("one", 1, 64), ("two", 4, 3)):
        monkeypatch.setattr(packing, "_PIECE_IMAGES", piece)
        packed(ToyDataset(23, corrupt=(5, 20), captions=True), tmp_path / name, num_threads=threads)
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_images_in_memory_and_drawn_ones_are_packed_too(tmp_path):
    values = ToyDataset().values
    packed(ArrayDataset("array", values), tmp_path / "array")
    found = [np.load(path) for path in sorted((tmp_path / "array").glob("shard-*.npy"))]
    assert np.array_equal(np.concatenate(found), values)
    shapes = ShapesDataset(seed=0, num_images=6, image_size=8, channels=3, num_objects=2)
    packed(shapes, tmp_path / "shapes", shard_size=2**20)
    assert np.array_equal(np.load(tmp_path / "shapes" / "shard-00000.npy"), np.stack([shapes.read(i) for i in range(6)]))
    captions = (tmp_path / "shapes" / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in captions] == [shapes.caption(i) for i in range(6)]


# Corrupt images


@pytest.mark.parametrize("piece", [1, 3, 64])
def test_corrupt_images_are_left_out_with_their_labels_and_listed(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(packing, "_PIECE_IMAGES", piece)
    source = ToyDataset(corrupt=(0, 4, 5, 9))
    description, num_corrupt = packed(source, tmp_path / "out")
    kept = [1, 2, 3, 6, 7, 8]
    assert (description.num_images, num_corrupt) == (6, 4)
    assert description.source["num_images"] == 10
    found = [np.load(path) for path in sorted((tmp_path / "out").glob("shard-*.npy"))]
    assert [len(array) for array in found] == [4, 2]
    assert np.array_equal(np.concatenate(found), source.values[kept])
    assert np.load(tmp_path / "out" / "labels.npy").tolist() == source.labels[kept].tolist()
    lines = (tmp_path / "out" / "corrupt.txt").read_text().splitlines()
    assert lines == [f"/toy/{i}.png: broken in two lines" for i in (0, 4, 5, 9)]


def test_more_corrupt_images_than_allowed_stop_and_are_named(tmp_path):
    assert packed(ToyDataset(corrupt=(2, 7)), tmp_path / "two", max_corrupt=2)[1] == 2
    source = ToyDataset(4000, corrupt=(2, 7))
    with raises(DataError, "max_corrupt=1"):
        packed(source, tmp_path / "one", max_corrupt=1)
    assert source.num_reads < 2000, "the rest is not decoded first"
    assert "dataset.json" not in names(tmp_path / "one")


@pytest.mark.parametrize("max_corrupt", [None, 10])
def test_when_none_can_be_decoded_there_is_nothing_to_write(tmp_path, max_corrupt):
    with raises(DataError, word="decoded"):
        packed(ToyDataset(corrupt=tuple(range(10))), tmp_path / "out", max_corrupt=max_corrupt)
    assert "dataset.json" not in names(tmp_path / "out")


# Memory and threads


def test_decoding_goes_ahead_of_a_slow_disk_only_a_little(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_PIECE_IMAGES", 2)
    source, ahead, write = ToyDataset(400), [], packing._ShardWriter.write
    written = 0

    def slow_write(self, images):
        nonlocal written
        time.sleep(0.002)
        ahead.append(source.num_reads - written)
        written += len(images)
        write(self, images)

    monkeypatch.setattr(packing._ShardWriter, "write", slow_write)
    packed(source, tmp_path / "out")
    assert len(source.threads) == 2
    assert 2 < max(ahead) <= 2 * (4 * 2 + 1)


def test_large_images_are_handed_over_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_PIECE_BYTES", 2 * BYTES)
    sizes, write = [], packing._ShardWriter.write
    monkeypatch.setattr(packing._ShardWriter, "write", lambda self, images: (sizes.append(len(images)), write(self, images)))
    packed(ToyDataset(7), tmp_path / "out")
    assert sizes == [2, 2, 2, 1]


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(packing._ShardWriter, "_path", lambda self: Path("/dev/full"))
    with raises(OSError, word="space") as caught:
        packed(ToyDataset(1000), tmp_path / "out", shard_size=2**20)
    assert caught.value.errno == errno.ENOSPC
    assert "dataset.json" not in names(tmp_path / "out")
