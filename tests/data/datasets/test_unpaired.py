from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.datasets.unpaired import UnpairedDataset, unpaired
from genimg.data.tasks.base import Unpaired
from genimg.errors import ConfigError, DataError

DEFAULTS = {
    "root": None, "a": None, "b": None, "image_size": [4, 6], "channels": 3, "channels_a": None, "channels_b": None,
    "fit": "crop",
}  # fmt: skip


def build(**changes: Any) -> UnpairedDataset:
    return unpaired(**(DEFAULTS | {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}))


def fill(folder: Path, levels: list[int], *, subdirectories: bool = False) -> Path:
    """Plain grey images of these levels."""
    for i, level in enumerate(levels):
        path = folder / (f"class{i % 2}" if subdirectories else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (level, level, level)).save(path)
    return folder


def arrays(count: int, channels: int, start: int, size: tuple[int, int] = (2, 3)) -> ArrayDataset:
    """Image i is plain, of level start + i."""
    levels = np.arange(start, start + count, dtype=np.uint8)[:, None, None, None]
    return ArrayDataset(f"arrays {start}", np.broadcast_to(levels, (count, channels, *size)).copy())


def levels_of(source: UnpairedDataset, index: int, channels_a: int) -> tuple[int, int]:
    image = source.read(index)
    assert image.dtype == np.uint8
    parts = image[:channels_a], image[channels_a:]
    for part in parts:
        assert (part == part[0, 0, 0]).all()
    return int(parts[0][0, 0, 0]), int(parts[1][0, 0, 0])


@pytest.mark.parametrize(("counts", "channels"), [((5, 2), (3, 1)), ((2, 5), (1, 3)), ((3, 3), (3, 3))])
def test_an_item_is_an_image_of_each_domain_and_the_smaller_one_begins_again(counts, channels):
    source = UnpairedDataset(arrays(counts[0], channels[0], 0), arrays(counts[1], channels[1], 100))
    assert len(source) == max(counts)
    assert source.shape == (sum(channels), 2, 3)
    assert isinstance(source.task, Unpaired)
    assert source.task.channels(source.shape) == channels
    expected = [(i % counts[0], 100 + i % counts[1]) for i in range(max(counts))]
    assert [levels_of(source, i, channels[0]) for i in range(len(source))] == expected
    many = source.read_many(np.array([1, 0, 1]))
    assert np.array_equal(many, np.stack([source.read(i) for i in (1, 0, 1)]))


def test_items_have_neither_labels_nor_captions():
    labels = np.array([0, 1])
    domains = [ArrayDataset("x", arrays(2, 3, 0).images, labels, ("cat", "dog"), ["a", "b"]) for _ in range(2)]
    source = UnpairedDataset(*domains)
    assert source.labels is None
    assert source.class_names == ()
    assert not source.captioned
    assert source.caption(0) is None


def test_the_fingerprint_tells_which_images_and_which_way_round():
    a, b, c = arrays(3, 3, 0), arrays(3, 3, 100), arrays(4, 3, 100)
    prints = [UnpairedDataset(*pair).fingerprint for pair in ((a, b), (b, a), (a, c), (a, a))]
    assert len(set(prints)) == 4
    assert prints[0] == UnpairedDataset(arrays(3, 3, 0), arrays(3, 3, 100)).fingerprint


def test_two_folders_are_the_domains(tmp_path):
    source = build(a=fill(tmp_path / "a", [10, 20, 30]), b=fill(tmp_path / "b", [200, 210]))
    assert [levels_of(source, i, 3) for i in range(len(source))] == [(10, 200), (20, 210), (30, 200)]
    assert source.validation is None


def test_a_root_has_the_domains_and_those_of_validation_below_it(tmp_path):
    for name, levels in {"trainA": [1, 2], "trainB": [101], "testA": [11], "testB": [111, 112]}.items():
        fill(tmp_path / name, levels)
    source = build(root=tmp_path)
    assert [levels_of(source, i, 3) for i in range(len(source))] == [(1, 101), (2, 101)]
    held_out = source.validation
    assert isinstance(held_out, UnpairedDataset)
    assert [levels_of(held_out, i, 3) for i in range(len(held_out))] == [(11, 111), (11, 112)]
    assert held_out.fingerprint != source.fingerprint


@pytest.mark.parametrize("present", ["testA", "testB"])
def test_half_a_validation_is_none(tmp_path, present):
    for name in ("trainA", "trainB", present):
        fill(tmp_path / name, [1, 2])
    assert build(root=tmp_path).validation is None


@pytest.mark.parametrize(
    ("changes", "channels"), [({}, (3, 3)), ({"channels": 1}, (1, 1)), ({"channels_a": 1}, (1, 3)), ({"channels_b": 1}, (3, 1))]
)
def test_the_domains_may_have_different_channels(tmp_path, changes, channels):
    for name in ("trainA", "trainB", "testA", "testB"):
        fill(tmp_path / name, [1, 2])
    for source in (build(root=tmp_path, **changes), build(root=tmp_path, **changes).validation):
        assert source.task.channels(source.shape) == channels
        assert source.shape == (sum(channels), 4, 6)


def test_subdirectories_of_a_domain_are_no_classes(tmp_path):
    source = build(a=fill(tmp_path / "a", [1, 2, 3, 4], subdirectories=True), b=fill(tmp_path / "b", [9]))
    assert len(source) == 4
    assert source.a.labels is None


@pytest.mark.parametrize(
    "folders", [{}, {"a": "x"}, {"b": "x"}, {"root": "x", "a": "x", "b": "x"}, {"root": "x", "a": "x"}, {"root": "x", "b": "x"}]
)
def test_folders_are_given_in_one_way(folders):
    with raises(ConfigError, "root", word="trainA"):
        build(**folders)


def test_missing_and_empty_folders_are_named_by_their_key(tmp_path):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "a", [1])
    fill(tmp_path / "half" / "trainA", [1])
    with raises(DataError, "b", word="nowhere"):
        build(a=tmp_path / "a", b=tmp_path / "nowhere")
    with raises(DataError, word="empty"):
        build(a=tmp_path / "empty", b=tmp_path / "a")
    with raises(DataError, "root", word="trainB"):
        build(root=tmp_path / "half")
