"""Hugging Face datasets give the rows that were saved, without a network connection."""

import io
import multiprocessing
import pickle
import socket
import sys

import numpy as np
import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets import huggingface as module
from genimg.data.datasets.builtin import CorruptImageError
from genimg.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")
COUNT = 12


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(i):
    buffer = io.BytesIO()
    Image.fromarray(pixels(i)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows(count=COUNT, *, images=("img",), classes=("label",), texts=("text",), **columns):
    features = {name: datasets.Image() for name in images}
    features |= {name: datasets.ClassLabel(names=["cat", "dog", "emu"]) for name in classes}
    features |= {name: datasets.Value("string") for name in texts} | {"number": datasets.Value("int64")}
    values = {name: [encoded(i) for i in range(count)] for name in images}
    values |= {name: [i % 3 for i in range(count)] for name in classes}
    values |= {name: [f"{name} {i}" for i in range(count)] for name in texts} | {"number": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def saved(data, path):
    data.save_to_disk(str(path))
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *arguments, **settings: pytest.fail("a connection is opened"))
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: pytest.fail("a connection is opened"))
    datasets.disable_progress_bars()


def open_rows(root=None, **changes):
    settings = {"root": None if root is None else str(root), "image_size": 8, "channels": 3, "fit": "crop"}
    return module.huggingface(**(settings | changes))


def test_images_labels_and_captions_are_those_of_the_rows(tmp_path):
    source = open_rows(saved(rows(), tmp_path / "a"))
    assert np.array_equal(source.read_many(np.arange(COUNT)), np.stack([pixels(i).transpose(2, 0, 1) for i in range(COUNT)]))
    assert source.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert source.class_names == ("cat", "dog", "emu")
    assert source.captions(np.array([0, 11])) == ["text 0", "text 11"]
    assert source.title(3) == "row 3"
    assert open_rows(tmp_path / "a", image_size=None, channels=None).shape == (3, 8, 8)


def test_a_selection_of_rows_is_read_in_its_order(tmp_path):
    """``shuffle`` and ``select`` keep the table and add an indirection."""
    order = [5, 0, 11, 3]
    data = rows().select(order)
    assert data._indices is not None
    source = open_rows(saved(data, tmp_path / "a"))
    assert np.array_equal(source.read_many(np.arange(4)), np.stack([pixels(i).transpose(2, 0, 1) for i in order]))
    assert source.labels.tolist() == [i % 3 for i in order]


def test_splits(tmp_path):
    root = saved(datasets.DatasetDict({"train": rows(), "test": rows(4)}), tmp_path / "a")
    assert len(open_rows(root)) == len(open_rows(root, split="train")) == COUNT
    assert len(open_rows(root, split="test")) == 4
    with raises(ConfigError, "split=val", word="train, test"):
        open_rows(root, split="val")
    assert len(open_rows(saved(datasets.DatasetDict({"only": rows(2)}), tmp_path / "b"))) == 2
    with raises(ConfigError, "split=null", word="a, b"):
        open_rows(saved(datasets.DatasetDict({"a": rows(2), "b": rows(2)}), tmp_path / "c"))
    with raises(ConfigError, "split=train"):
        open_rows(saved(rows(2), tmp_path / "d"), split="train")


def test_columns_are_found_or_chosen(tmp_path):
    root = saved(rows(images=("photo", "mask"), classes=("fine", "coarse"), texts=("title", "note")), tmp_path / "a")
    with raises(ConfigError, "image_column=null", word="photo, mask"):
        open_rows(root)
    with raises(ConfigError, "image_column=fine", word="photo, mask"):
        open_rows(root, image_column="fine")
    with raises(ConfigError, "label_column=auto", word="fine, coarse"):
        open_rows(root, image_column="photo")
    source = open_rows(root, image_column="mask", label_column="coarse", caption_column="note")
    assert source.class_names == ("cat", "dog", "emu")
    assert source.caption(2) == "note 2"
    numbers = open_rows(root, image_column="mask", label_column="number")
    assert (numbers.labels.tolist(), numbers.class_names) == ([i % 2 for i in range(COUNT)], ("0", "1"))
    plain = open_rows(root, image_column="mask", label_column="none")
    assert plain.labels is None
    assert not plain.captioned
    named = open_rows(root, image_column="mask", label_column="note")
    assert named.class_names[:3] == ("note 0", "note 1", "note 10")
    assert [named.class_names[label] for label in named.labels] == [f"note {i}" for i in range(COUNT)]
    for key, value in (("label_column", "photo"), ("caption_column", "fine"), ("caption_column", "absent")):
        with raises(ConfigError, f"{key}={value}"):
            open_rows(root, **({"image_column": "mask", "label_column": "none"} | {key: value}))
    assert not open_rows(saved(rows(2), tmp_path / "b"), caption_column=None).captioned
    with raises(ConfigError, "image_column=null", word="number"):
        open_rows(saved(rows(2, images=()), tmp_path / "c"))


def test_labels_that_are_missing_are_refused(tmp_path):
    root = saved(rows(label=[-1] * COUNT), tmp_path / "a")  # as in test splits that are published without labels
    with raises(DataError, "label_column", word="row 0"):
        open_rows(root)
    assert len(open_rows(root, label_column="none")) == COUNT


def test_a_damaged_or_empty_row_is_corrupt(tmp_path):
    data = rows(img=[encoded(0), {"bytes": b"damaged", "path": None}, None, *map(encoded, range(3, COUNT))])
    source = open_rows(saved(data, tmp_path / "a"))
    source.read(0)
    for row in (1, 2):
        with raises(CorruptImageError, word=f"row {row}"):
            source.read(row)


def test_a_saved_dataset_does_not_choose_which_files_are_opened(tmp_path):
    Image.fromarray(pixels(1)).save(tmp_path / "secret.png")
    data = rows(2)
    files = module.RowImages(tmp_path, data.cast_column("img", datasets.Image()), "img", may_name_files=True)
    table = datasets.Dataset.from_dict(
        {"img": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}, features=datasets.Features({"img": datasets.Image()})
    )
    with raises(OSError, word="secret.png"):
        module.RowImages(tmp_path, table, "img", may_name_files=False).open("row 0")
    named = module.RowImages(tmp_path, table, "img", may_name_files=True).open("row 0")  # in the user's own cache
    assert np.array_equal(np.asarray(Image.open(named)), pixels(1))
    assert files.open("row 0").read() == encoded(0)["bytes"]


def _read(source):
    return source.read_many(np.arange(COUNT))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_processes_read_at_once_from_small_copies(tmp_path, method):
    source = open_rows(saved(rows(), tmp_path / "a"))
    assert len(pickle.dumps(source._files)) < 5000
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(np.array_equal(images, _read(source)) for images in pool.map(_read, [source] * 3))


def test_the_fingerprint_is_of_contents(tmp_path):
    before = open_rows(saved(rows(), tmp_path / "a")).fingerprint
    assert open_rows(saved(rows(), tmp_path / "b")).fingerprint == before
    assert open_rows(saved(rows(img=[encoded(i + 1) for i in range(COUNT)]), tmp_path / "c")).fingerprint != before


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache of the package that holds the dataset someone/some-images."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = tmp_path / "files"
    files.mkdir()
    rows().to_parquet(str(files / "train.parquet"))
    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        builder = datasets.load_dataset_builder("parquet", data_files={"train": str(files / "train.parquet")})
        folder = tmp_path / "cache" / "someone___some-images" / "default" / "0.0.0" / "abc"
        builder.download_and_prepare(str(folder))
    (folder / "parquet-train.arrow").rename(folder / "some-images-train.arrow")
    return "someone/some-images"


def test_a_dataset_of_the_hub_is_read_from_the_cache(cached, tmp_path):
    before = datasets.config.HF_HUB_OFFLINE
    source = open_rows(hub=cached)
    assert np.array_equal(source.read(5), pixels(5).transpose(2, 0, 1))
    assert source.class_names == ("cat", "dog", "emu")
    assert before == datasets.config.HF_HUB_OFFLINE
    with raises(ConfigError, "split=test"):
        open_rows(hub=cached, split="test")


def test_nothing_is_downloaded_unless_it_is_requested(cached):
    with raises(DataError, "hub=someone/other", word="may_download=true"):
        open_rows(hub="someone/other")


def test_names_that_are_no_ids_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("a/b/c", "../a", "https://x.y/z", "/etc", "images", ""):
        with raises(ConfigError, word="images" if name == "images" else ""):
            open_rows(hub=name)
    for settings, word in (({}, "hub=ylecun/mnist"), ({"root": "a", "hub": "b"}, "hub=b")):
        with raises(ConfigError, "root", word=word):
            open_rows(**settings)
    for settings, key in (({"subset": "x"}, "subset=x"), ({"may_download": True}, "may_download=true")):
        with raises(ConfigError, key):
            open_rows(tmp_path, **settings)


def test_directories_that_were_not_saved_or_are_damaged_are_refused(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with raises(DataError, "root"):
            open_rows(path)
    with raises(DataError, "root"):
        open_rows(saved(rows(0), tmp_path / "b"))
    root = saved(rows(), tmp_path / "a")
    next(root.glob("*.arrow")).write_bytes(b"damaged")
    with raises(DataError, "root", word="damaged"):
        open_rows(root)


def test_without_the_package_its_name_is_given(tmp_path, monkeypatch):
    root = saved(rows(2), tmp_path / "a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with raises(ConfigError, word="genimg[huggingface]"):
        open_rows(root)
