"""Splits of Hugging Face datasets are held out by their names, and a checkpoint's config downloads none."""

import pytest
from errors import raises

from genimg.api.data import build_dataset
from genimg.config.instantiate import ALLOWED, Builder
from genimg.errors import ConfigError

TARGET = {"_target_": "genimg.data.datasets.huggingface.huggingface", "image_size": 8, "channels": 3, "fit": "crop"}


def dataset(builder, **data):
    return build_dataset({"data": {**TARGET, "split": None, "label_column": "auto", **data}}, builder)


def test_another_split_is_held_out(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    rows = {"image": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(6)]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    datasets.DatasetDict({"train": data.select(range(4)), "test": data.select([5, 4])}).save_to_disk(str(tmp_path / "a"))
    found = dataset(Builder(ALLOWED), root=str(tmp_path / "a"), validation="test")
    assert [found.read(i)[0, 0, 0] for i in range(len(found))] == [0, 1, 2, 3]
    assert [found.validation.read(i)[0, 0, 0] for i in range(2)] == [5, 4]
    with raises(ConfigError, word="train"):
        dataset(Builder(ALLOWED), root=str(tmp_path / "a"), validation="train")


def test_labels_of_another_split_number_the_classes_of_the_training_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    def rows(*names):
        content = {"image": [Image.new("RGB", (8, 8))] * len(names), "kind": list(names)}
        return datasets.Dataset.from_dict(
            content, features=datasets.Features({"image": datasets.Image(), "kind": datasets.Value("string")})
        )

    splits = {"train": rows("bus", "auto", "ship"), "test": rows("ship", "bus"), "more": rows("auto", "bus", "ship", "tram")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "a"))
    settings = {"root": str(tmp_path / "a"), "label_column": "kind"}
    found = dataset(Builder(ALLOWED), validation="test", **settings)
    assert found.labels.tolist() == [1, 0, 2]
    assert (found.validation.labels.tolist(), found.validation.class_names) == ([2, 1], ("auto", "bus", "ship"))
    chosen = dataset(Builder(ALLOWED), validation="test", classes=["bus", "ship"], **settings)
    assert (chosen.labels.tolist(), chosen.validation.labels.tolist()) == ([0, 1], [1, 0])
    assert dataset(Builder(ALLOWED, labelled=False), validation="test", **settings).validation.labels is None
    with raises(ConfigError, "data.validation", word="tram"):
        dataset(Builder(ALLOWED), validation="more", **settings)


def test_a_checkpoint_does_not_decide_to_download():
    with raises(ConfigError, word="data.may_download"):
        dataset(Builder(ALLOWED, named=frozenset()), hub="someone/images", may_download=True)
