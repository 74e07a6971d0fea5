"""Statistics and packed datasets that are damaged or of odd content: noticed, in one message."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import flip

from genimg.api.inputs import ImageReader
from genimg.config.instantiate import ALLOWED, Builder
from genimg.data.datasets.builtin import CorruptImageError, mnist
from genimg.data.datasets.prepared import is_prepared, prepared
from genimg.data.datasets.shapes import ShapesDataset
from genimg.data.packed_files import DESCRIPTION, sealed
from genimg.data.packing import pack
from genimg.errors import DataError
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.stats_cache import SavedStatistics, read_cache


def write_statistics(path: Path) -> SavedStatistics:
    moments = GaussianStatistics.of(torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    statistics = SavedStatistics(FeatureStats(moments), {"name": "x"}, {"source": "y"})
    statistics.write(path)
    return statistics


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_of_statistics_is_noticed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "statistics.pt"
    written = write_statistics(path)
    flip(path, random.Random(seed).randrange(8 * path.stat().st_size))
    try:
        found = SavedStatistics.read(path)
    except DataError:
        assert read_cache(path) is None  # and is computed again
        return
    assert torch.equal(found.summary.moments.covariance, written.summary.moments.covariance)
    assert torch.equal(found.summary.moments.mean, written.summary.moments.mean)
    assert (found.extractor, found.images) == (written.extractor, written.images)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    folder.mkdir()
    source = ShapesDataset(seed=0, num_images=6, image_size=16, channels=3, num_objects=1)
    about = {"name": "shapes", "fingerprint": "x", "num_images": 6, "fit": "x"}
    description, _ = pack(source, folder, shard_size=4096, num_threads=1, max_corrupt=0, provenance=about)
    description.write(folder)
    return folder


def open_packed(folder: Path) -> None:
    source = prepared(root=str(folder), image_size=16, channels=3)
    source.read_many(np.arange(len(source)))


def everything(folder: Path) -> dict[str, Any]:
    """Whatever a training could read of a packed directory."""
    source = prepared(root=str(folder), image_size=16, channels=3)
    assert source.labels is not None
    return {
        "name": source.name,
        "images": source.read_many(np.arange(len(source))).tolist(),
        "labels": source.labels.tolist(),
        "captions": source.captions(np.arange(len(source))),
        "class_names": source.class_names,
        "fingerprint": source.fingerprint,
    }


def test_every_flipped_bit_of_a_packed_image_is_noticed(packed: Path) -> None:
    shards = sorted(packed.glob("shard-*.npy"))
    headers = {path: path.stat().st_size - np.load(path).nbytes for path in shards}
    chance = random.Random(0)
    for _ in range(200):
        path = chance.choice(shards)
        before = flip(path, chance.randrange(8 * headers[path], 8 * path.stat().st_size))
        with pytest.raises(CorruptImageError, match=rf"^{path}: image \d of this file differs from the packed one"):
            open_packed(packed)
        path.write_bytes(before)
    open_packed(packed)


@pytest.mark.parametrize("name", ["checksums.npy", "labels.npy", "captions.jsonl"])
def test_every_flipped_bit_beside_the_images_is_noticed_when_the_dataset_is_opened(packed: Path, name: str) -> None:
    chance = random.Random(1)
    for _ in range(100):
        before = flip(packed / name, chance.randrange(8 * (packed / name).stat().st_size))
        with pytest.raises(DataError, match=rf"^the file {packed}/{name} is damaged"):
            prepared(root=str(packed), image_size=16, channels=3)
        (packed / name).write_bytes(before)
    open_packed(packed)


@pytest.mark.parametrize("name", ["dataset.json", "shard-00000.npy"])
def test_a_flipped_bit_of_the_description_or_of_a_header_changes_nothing_unnoticed(packed: Path, name: str) -> None:
    chance, written = random.Random(2), everything(packed)
    size = 128 if name.endswith(".npy") else (packed / name).stat().st_size
    num_refused = 0
    for _ in range(300):
        before = flip(packed / name, chance.randrange(8 * size))
        try:
            found = everything(packed)
        except DataError as error:
            assert str(packed) in str(error)  # noqa: PT017 - either is right
            num_refused += 1
        else:
            assert {**found, "fingerprint": ""} == {**written, "fingerprint": ""}
        (packed / name).write_bytes(before)
    assert num_refused > 150
    assert everything(packed) == written


def test_a_replaced_image_is_noticed_where_the_size_is_the_same(packed: Path) -> None:
    path = packed / "shard-00000.npy"
    images = np.load(path)
    assert len(images) > 1
    np.save(path, images[::-1])
    with pytest.raises(CorruptImageError, match=rf"^{path}: image 0 of this file"):
        open_packed(packed)


@pytest.mark.parametrize("key", ["images", "real"])
def test_a_damaged_image_ends_an_evaluation_with_the_names_of_file_and_image(packed: Path, key: str) -> None:
    path = packed / "shard-00000.npy"
    flip(path, 8 * (path.stat().st_size - 1))
    side = ImageReader(Builder(ALLOWED), torch.device("cpu")).read(key, str(packed))
    assert side.images is not None
    with pytest.raises(
        DataError, match=rf"cannot be measured: .*\n  {path}: image \d of this file differs from the packed one"
    ):
        side.images.images(np.arange(6))


@pytest.mark.parametrize("removed", [1, 128, 1000])
def test_a_truncated_shard_is_refused_when_the_dataset_is_opened(packed: Path, removed: int) -> None:
    path = sorted(packed.glob("shard-*.npy"))[-1]
    path.write_bytes(path.read_bytes()[:-removed])
    with pytest.raises(DataError, match=rf"^the file {path} has \d+ bytes, but dataset\.json says"):
        prepared(root=str(packed), image_size=16, channels=3)


@pytest.mark.parametrize(
    "changes",
    [{"num_images": 6.0}, {"num_images": True}, {"num_images": -6}, {"shape": [3, float("inf"), 16]}, {"shape": "abc"},
     {"labelled": "no"}, {"captioned": 1}, {"source": []}, {"class_names": 5}, {"shards": [{"file": "a"}]}, {"shards": {}}]
)  # fmt: skip
def test_descriptions_of_odd_content_are_refused(packed: Path, changes: dict[str, Any]) -> None:
    open_packed(packed)
    content = json.loads((packed / DESCRIPTION).read_text())
    content.pop("sha256")
    (packed / DESCRIPTION).write_text(json.dumps(sealed(content | changes)))
    with pytest.raises(DataError):
        open_packed(packed)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"format":' + "9" * 10_000 + "}", "[]", "null", "\ufeff{}"]
)
def test_descriptions_that_are_deep_or_no_mapping_are_refused(packed: Path, content: str) -> None:
    (packed / DESCRIPTION).write_text(content)
    is_prepared(packed)
    with pytest.raises(DataError):
        open_packed(packed)


def test_a_truncated_file_of_mnist_is_damaged_and_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr("urllib.request.urlopen", connect)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sizes = {"images-idx3": (3, [60, 28, 28]), "labels-idx1": (1, [60])}
    for prefix in ("train", "t10k"):
        for name, (dimensions, shape) in sizes.items():
            header = bytes([0, 0, 8, dimensions]) + b"".join(size.to_bytes(4, "big") for size in shape)
            length = int(np.prod(shape)) // (2 if dimensions == 3 else 1)
            (raw / f"{prefix}-{name}-ubyte").write_bytes(header + bytes(length))
    with pytest.raises(DataError, match="holds damaged files of mnist"):
        mnist(root=str(tmp_path), split="train", image_size=28, channels=1, fit="crop")
