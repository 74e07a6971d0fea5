"""``data.classes``: the images of some classes of any dataset with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from errors import raises

from genimg.api.data import build_dataset
from genimg.config.compose import Config, compose
from genimg.config.instantiate import Builder
from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.identity import identity_of
from genimg.data.split import Subset
from genimg.errors import ConfigError

NAMES = ("0 - zero", "1 - one", "2 - two", "3 - three")
COUNT = 40
NUMBERS = np.arange(COUNT) * 7 % 4


def dataset(*, lazy: bool = False) -> ImageDataset:
    images = np.repeat(np.arange(COUNT, dtype=np.uint8), 3 * 16 * 16).reshape(COUNT, 3, 16, 16)
    whole = ArrayDataset("numbers", images, NUMBERS.astype(np.int64), NAMES)
    return Subset(whole, np.arange(COUNT)) if lazy else whole


def built(*overrides: str, lazy: bool = False, given: ImageDataset | None = None) -> ImageDataset:
    config = Config.of(compose(["data=given", "data.image_size=16", "model=dcgan_small", "run_dir=unused", *overrides]).config)
    return build_dataset(config, Builder(), given or dataset(lazy=lazy))


def first_values(images: ImageDataset) -> list[int]:
    return [int(images.read(index)[0, 0, 0]) for index in range(len(images))]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("value", ["[3,1]", "[three,'1 - one']", "[index:1,'3 - three']"])
def test_labels_number_the_chosen_classes_in_the_order_of_the_data(value: str, lazy: bool) -> None:
    found = built(f"data.classes={value}", lazy=lazy)
    kept = np.flatnonzero(np.isin(NUMBERS, [1, 3]))
    assert found.labels is not None
    assert found.class_names == ("1 - one", "3 - three")
    assert first_values(found) == kept.tolist()
    assert found.labels.tolist() == [[1, 3].index(label) for label in NUMBERS[kept]]
    assert found.labels.dtype == np.int64


@pytest.mark.parametrize("lazy", [False, True])
def test_parts_of_the_chosen_classes_have_their_labels(lazy: bool) -> None:
    found = built("data.classes=[1,3]", "data.validation=0.2", "data.max_images=8", lazy=lazy)
    assert found.validation is not None
    for part, count in ((found, 8), (found.validation, 4)):
        assert part.labels is not None
        assert len(part) == count
        assert part.class_names == ("1 - one", "3 - three")
        assert [(1, 3)[label] for label in part.labels] == [NUMBERS[value] for value in first_values(part)]
        assert np.bincount(part.labels).tolist() == [count // 2] * 2


@pytest.mark.parametrize("lazy", [False, True])
def test_other_classes_have_another_fingerprint(lazy: bool) -> None:
    prints = [built(*overrides, lazy=lazy).fingerprint for overrides in ((), ("data.classes=[0,1]",), ("data.classes=[1,2]",))]
    assert len(set(prints)) == 3
    identities: list[Any] = [identity_of(built(f"data.classes={value}", lazy=lazy)) for value in ("[0,1]", "[1,0]")]
    assert identities[0] == identities[1]
    assert identities[0]["class_names"] == ["0 - zero", "1 - one"]


def test_another_split_has_the_same_classes() -> None:
    overrides = ["data=mnist", "data.root=MNIST", "run_dir=unused", "data.classes=[2,0]", "data.validation=test"]
    config = Config.of(compose(overrides).config)

    class Splits(Builder):
        def build(self, node: Any, *_: Any) -> Any:
            whole = dataset()
            return Subset(whole, np.arange(30 if node["split"] == "train" else 20))

    found = build_dataset(config, Splits())
    assert found.validation is not None
    assert found.validation.class_names == found.class_names == ("0 - zero", "2 - two")
    assert [len(found), len(found.validation)] == [np.isin(NUMBERS[:count], [0, 2]).sum() for count in (30, 20)]


@pytest.mark.parametrize("value", ["[]", "[5]", "[0,zero]", "[four]"])
def test_what_names_no_class_or_one_twice_is_refused(value: str) -> None:
    with raises(ConfigError, "data.classes"):
        built(f"data.classes={value}")


def test_data_without_labels_have_no_classes() -> None:
    with raises(ConfigError, "data.classes"):
        built("data.classes=[0]", given=ArrayDataset("plain", np.zeros((4, 3, 16, 16), np.uint8)))
