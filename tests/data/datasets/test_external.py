"""A user's own images in every form are the same dataset, and what is wrong with them is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from genimg import ConfigError, DataError, as_dataset
from genimg.data.datasets.builtin import ArrayDataset, CorruptImageError, ImageDataset
from genimg.data.datasets.external import module

GREY: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (6, 12, 10), dtype=np.uint8)
COLOUR: NDArray[np.uint8] = np.random.default_rng(1).integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Items(Dataset[Any]):
    """Items by a function of their position."""

    def __init__(self, item: Callable[[int], Any], count: int = 6, **attributes: Any) -> None:
        self.item, self.count = item, count
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class ClassLabel:
    names = ("zero", "one", "two")


class Table:
    """As a Hugging Face dataset."""

    column_names = ("image", "label", "text")
    features = {"image": None, "label": ClassLabel(), "text": None}  # noqa: RUF012

    def __init__(self) -> None:
        self.column_names = ["image", "label", "text"]
        self.decoded = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: int | str) -> Any:
        columns = {"label": LABELS.tolist(), "text": [f"number {i}" for i in range(6)]}
        if isinstance(key, str):
            return columns[key]
        self.decoded += 1
        return {"image": Image.fromarray(COLOUR[key]), "label": columns["label"][key], "text": columns["text"][key]}


def pixels(dataset: ImageDataset) -> NDArray[np.uint8]:
    return dataset.read_many(np.arange(len(dataset)))


def photo(index: int) -> Image.Image:
    return Image.fromarray(COLOUR[index])


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: (COLOUR, LABELS),
    "channels first": lambda: (np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)), LABELS),
    "tensors": lambda: (torch.from_numpy(COLOUR), torch.from_numpy(LABELS)),
    "list of labels": lambda: (COLOUR, LABELS.tolist()),
    "pictures": lambda: [(photo(i), int(LABELS[i])) for i in range(6)],
    "mappings": lambda: [{"image": photo(i), "label": int(LABELS[i])} for i in range(6)],
    "img and fine_label": lambda: [{"img": photo(i), "fine_label": LABELS[i]} for i in range(6)],
    "float tensors": lambda: Items(lambda i: (torch.from_numpy(COLOUR[i]).permute(2, 0, 1) / 255, torch.tensor(LABELS[i]))),
    "uint8 tensors": lambda: Items(lambda i: (torch.from_numpy(COLOUR[i]).permute(2, 0, 1), LABELS[i])),
    "arrays by item": lambda: Items(lambda i: [COLOUR[i], LABELS[i]]),
    "targets": lambda: Items(lambda i: (photo(i), None), targets=LABELS.tolist()),
    "subset": lambda: Subset(Items(lambda i: (photo(5 - i), int(LABELS[5 - i]))), [5, 4, 3, 2, 1, 0]),
    "table": Table,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_equal_images_and_labels(form: str) -> None:
    dataset = as_dataset(FORMS[form]())
    assert len(dataset) == 6
    assert dataset.shape == (3, 12, 10)
    np.testing.assert_array_equal(pixels(dataset), COLOUR.transpose(0, 3, 1, 2))
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.int64
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.class_names == (ClassLabel.names if form == "table" else ("0", "1", "2"))


@pytest.mark.parametrize(
    "data",
    [GREY, GREY[..., None], GREY[:, None], torch.from_numpy(GREY), list(GREY), [Image.fromarray(each) for each in GREY]],
    ids=["NHW", "NHW1", "N1HW", "tensor", "list", "pictures"],
)
def test_grey_images_have_one_channel_and_no_labels(data: Any) -> None:
    dataset = as_dataset(data)
    assert dataset.shape == (1, 12, 10)
    assert dataset.labels is None
    assert dataset.class_names == ()
    np.testing.assert_array_equal(pixels(dataset)[:, 0], GREY)


def test_a_table_is_read_by_columns() -> None:
    table = Table()
    dataset = as_dataset(table)
    assert dataset.captioned
    assert dataset.caption(4) == "number 4"
    assert table.decoded <= 6 + 2  # the fingerprint, the first image's size


def test_captions_of_items() -> None:
    for items in (
        [(photo(0), "a cat"), (photo(1), "a dog")],
        [{"image": photo(i), "caption": t} for i, t in enumerate(("a cat", "a dog"))],
    ):
        dataset = as_dataset(items)
        assert dataset.captioned
        assert dataset.labels is None
        assert [dataset.caption(i) for i in range(2)] == ["a cat", "a dog"]


def test_classes_are_called_as_the_dataset_says() -> None:
    named = Items(lambda i: (photo(i), int(LABELS[i])), classes=["a", "b", "c", "unused"])
    assert as_dataset(named).class_names == ("a", "b", "c", "unused")
    short = Items(lambda i: (photo(i), int(LABELS[i])), classes=["a"])
    assert as_dataset(short).class_names == ("0", "1", "2")


def test_sizes_and_channels_are_changed_as_for_files(tmp_path: Path) -> None:
    expected = as_dataset([photo(i) for i in range(6)], image_size=8, channels=1)
    assert expected.shape == (1, 8, 8)
    np.testing.assert_array_equal(pixels(as_dataset(COLOUR, image_size=8, channels=1)), pixels(expected))
    assert as_dataset(COLOUR, image_size=(6, 8), fit="pad").shape == (3, 6, 8)
    mixed = [Image.new("RGB", (10, 12)), Image.new("RGB", (20, 12))]
    assert as_dataset(mixed, image_size=8).shape == (3, 8, 8)
    with raises(DataError, word="12x20"):
        as_dataset(mixed)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("I;16", 1), ("F", 1), ("P", 3), ("LA", 3), ("RGB", 3), ("CMYK", 3), ("RGBA", 4)]
)
def test_pictures_of_every_mode(mode: str, channels: int) -> None:
    assert as_dataset([Image.new(mode, (10, 12))]).shape == (channels, 12, 10)


def test_16_bits_are_scaled_and_cameras_held_upright() -> None:
    deep = Image.fromarray(np.array([[0, 65535], [32768, 257]], dtype=np.uint16))
    assert as_dataset([deep]).read(0).tolist() == [[[0, 255], [128, 1]]]
    turned = Image.fromarray(COLOUR[0])
    turned.getexif()[0x0112] = 6
    assert as_dataset([turned]).shape == (3, 10, 12)


def test_a_dataset_of_genimg_stays_as_it_is() -> None:
    own = ArrayDataset("own", GREY[:, None])
    assert as_dataset(own) is own
    assert str(own) == "own"


def test_equal_images_have_equal_fingerprints() -> None:
    one, same, other = (as_dataset(list(each)) for each in (GREY, GREY.copy(), GREY[::-1]))
    assert one.fingerprint == same.fingerprint != other.fingerprint


BROKEN: dict[str, Any] = {
    "a number": 3,
    "text": "mnist",
    "a path": Path("mnist"),
    "splits": {"train": [1]},
    "an iterator": iter([1]),
    "nothing": [],
    "no images": GREY[:0],
    "floats": GREY / 255,
    "two channels": np.zeros((2, 8, 8, 2), np.uint8),
    "one image": GREY[0],
    "no pictures": ["a.png"],
    "no image key": [{"picture": 1}],
    "floats in [-1, 1]": [torch.full((3, 8, 8), -1.0)],
    "NaN": [torch.full((3, 8, 8), torch.nan)],
    "too few labels": (GREY, LABELS[:3]),
    "negative labels": (GREY, LABELS - 1),
    "float labels": (GREY, LABELS / 2),
    "several labels": (GREY, np.stack([LABELS, LABELS], 1)),
    "ragged labels": (GREY, [[0], [0, 1], [], [], [], []]),
    "some labels missing": [(photo(0), 0), (photo(1), None)],
    "negative labels of items": [(photo(0), 0), (photo(1), -1)],
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_dataset_is_refused(what: str) -> None:
    with pytest.raises(DataError) as caught:
        as_dataset(BROKEN[what])
    assert caught.value.key == "data"


@pytest.mark.parametrize(
    ("key", "settings"), [("channels", {"channels": 2}), ("fit", {"fit": "squeeze"}), ("image_size", {"image_size": 0})]
)
@pytest.mark.parametrize("data", [GREY, list(GREY)], ids=["array", "items"])
def test_settings_that_do_not_work_are_named(key: str, settings: dict[str, Any], data: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        as_dataset(data, **settings)
    assert caught.value.key == key


def test_an_item_that_is_no_image_is_corrupt() -> None:
    dataset = as_dataset([photo(0), "b.png", np.full((12, 10, 3), 2.0)])
    for index in (1, 2):
        with raises(CorruptImageError, "data", word=f"image {index}"):
            dataset.read(index)


def make(count: int = 6) -> Any:
    return COLOUR[:count], LABELS[:count]


def test_a_function_makes_a_dataset() -> None:
    settings: dict[str, Any] = {"image_size": None, "channels": None, "fit": "crop"}
    dataset = module(factory=make, arguments={"count": 4}, **settings)
    np.testing.assert_array_equal(pixels(dataset), COLOUR[:4].transpose(0, 3, 1, 2))
    with raises(ValueError, "arguments=size"):
        module(factory=make, arguments={"size": 4}, **settings)
    with raises(ValueError, "factory"):
        module(factory=lambda a: a, arguments={"a": 1}, **settings)
    with pytest.raises(ConfigError) as caught:
        module(factory=make, arguments={}, **(settings | {"channels": 2}))
    assert caught.value.key == "channels"
