"""What images= and real= of genimg-eval name is recognised by its files."""

import io
import tarfile

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image

from genimg.api.inputs import ImageReader
from genimg.config.instantiate import ALLOWED, Builder
from genimg.errors import ConfigError, DataError

COUNT = 6


def encoded(i):
    buffer = io.BytesIO()
    Image.fromarray(pixels(i)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write_shards(root, label="{}"):
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as archive:
        for i in range(COUNT):
            for extension, content in (("png", encoded(i)), ("cls", label.format(i % 2).encode())):
                member = tarfile.TarInfo(f"{i}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return root


def write_lmdb(root):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(root)) as database, database.begin(write=True) as transaction:
        for i in range(COUNT):
            transaction.put(b"%d" % i, encoded(i))
    return root


def write_rows(root, *splits):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": encoded(i), "path": None} for i in range(COUNT)]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    made = datasets.DatasetDict({name: data.select(range(n, COUNT)) for n, name in enumerate(splits)}) if splits else data
    made.save_to_disk(str(root))
    return root


def read(given, **settings):
    return ImageReader(Builder(ALLOWED), torch.device("cpu"), **settings).read("real", str(given)).source


@pytest.mark.parametrize("write", [write_shards, write_lmdb, write_rows])
def test_every_form_gives_the_images(tmp_path, write):
    source = read(write(tmp_path / "my_images"))
    assert source.name == "my_images"
    assert np.array_equal(source.read_many(np.arange(COUNT)), np.stack([pixels(i).transpose(2, 0, 1) for i in range(COUNT)]))
    assert read(tmp_path / "my_images", image_size=4, channels=1).shape == (1, 4, 4)


def test_a_split_of_a_hugging_face_dataset(tmp_path):
    root = write_rows(tmp_path / "saved", "train", "test")
    assert len(read(root)) == COUNT
    assert len(read(f"{root}:test")) == COUNT - 1
    with raises(ConfigError, word="val"):
        read(f"{root}:val")


def test_a_file_of_shards_or_invalid_labels(tmp_path, caplog):
    assert read(write_shards(tmp_path / "a") / "0.tar").labels.tolist() == [0, 1] * 3
    assert read(write_shards(tmp_path / "b", label="1.5")).labels is None
    assert "labels" in caplog.text
    with raises(DataError, "real", word="absent.tar"):
        read(tmp_path / "absent.tar")
