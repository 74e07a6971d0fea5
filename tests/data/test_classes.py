"""Labels of images: by directory, or as StyleGAN's dataset tool writes them."""

import json
import zipfile

import numpy as np
import pytest
from errors import raises
from PIL import Image

from genimg.data.classes import classes_by_directory, classes_by_file, classes_by_label, stray_images
from genimg.data.datasets.builtin import ImageDataset, folder
from genimg.errors import DataError

NAMES = [f"0000{i // 4}/img{i:08d}.png" for i in range(6)]
LABELS = [6, 0, 2, 6, 2, 2]


def pairs(**changes):
    return [[name, changes.get(name, label)] for name, label in zip(NAMES, LABELS, strict=True)]


@pytest.fixture(params=["directory", "zip"])
def dataset(request, tmp_path):
    """Writes numbered images with a dataset.json, and opens them."""

    def make(content: object, **settings: object) -> ImageDataset:
        for i, name in enumerate(NAMES):
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), 10 * i, dtype=np.uint8)).save(tmp_path / "images" / name)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / "images" / "dataset.json").write_text(text)
        path = tmp_path / "images"
        if request.param == "zip":
            path = tmp_path / "images.zip"
            with zipfile.ZipFile(path, "w") as archive:  # stored, as the tool makes it
                for file in sorted((tmp_path / "images").rglob("*")):
                    archive.write(file, file.relative_to(tmp_path / "images"))
        return folder(
            **(
                {"root": str(path), "image_size": 4, "channels": 3, "fit": "crop", "labels": "auto", "captions": "auto"}
                | settings
            )
        )

    return make


def test_labels_are_those_of_dataset_json(dataset):
    source = dataset({"labels": pairs()[::-1]})
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == LABELS
    assert source.class_names == ("0", "1", "2", "3", "4", "5", "6")
    for i in range(6):
        assert (source.read(i) == 10 * i).all()


def test_names_of_classes_stand_behind_their_numbers(dataset):
    source = dataset({"labels": pairs(), "class_names": ["a", "b", "c", "d", "e", "f", "g", "h"]})
    assert source.class_names == tuple(f"{i} - {name}" for i, name in enumerate("abcdefgh"))
    assert source.labels.tolist() == LABELS


def test_without_labels_numbered_directories_are_no_classes(dataset):
    source = dataset({"labels": None})
    assert (source.labels, source.class_names) == (None, ())
    assert len(source) == 6
    with raises(DataError, "root", word="required"):
        dataset({"labels": None}, labels="required")


def test_labels_can_be_ignored_or_required(dataset):
    assert dataset({"labels": pairs()}, labels="none").labels is None
    assert dataset({"labels": pairs()}, labels="required").labels.tolist() == LABELS
    assert dataset("damaged", labels="none").labels is None


@pytest.mark.parametrize("content", [None, {"images": [], "annotations": []}, [1, 2]])
def test_without_a_file_of_labels_directories_are_classes(dataset, content):
    source = dataset(content)
    assert source.class_names == ("00000", "00001")
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1]


REFUSED = {
    "no JSON": ("{", "JSON"),
    "an image without a label": ({"labels": pairs()[1:]}, NAMES[0]),
    "a vector": ({"labels": pairs(**{NAMES[2]: [0, 1, 0]})}, "[0, 1, 0]"),
    "a fraction": ({"labels": pairs(**{NAMES[2]: 0.5})}, "0.5"),
    "a negative label": ({"labels": pairs(**{NAMES[2]: -1})}, "label -1"),
    "a truth": ({"labels": pairs(**{NAMES[2]: True})}, "True"),
    "a name as a label": ({"labels": pairs(**{NAMES[2]: "cat"})}, "'cat'"),
    "a huge label": ({"labels": pairs(**{NAMES[2]: 10**7})}, "10000000"),
    "two labels": ({"labels": [*pairs(), [NAMES[0], 1]]}, "6 and 1"),
    "a mapping": ({"labels": dict(pairs())}, "dict"),
    "an entry of three": ({"labels": [*pairs(), [1, 2, 3]]}, "labels[6]"),
    "too few names": ({"labels": pairs(), "class_names": ["a", "b"]}, "class_names"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_none_are_refused(dataset, kind):
    content, word = REFUSED[kind]
    with raises(DataError, "labels", word=word):
        dataset(content)


def test_files_that_are_not_there_are_named(dataset, caplog):
    assert dataset({"labels": [*pairs(), ["00002/img00000008.png", 9]]}).labels.tolist() == LABELS
    assert "names 1 files that do not exist; the first is 00002/img00000008.png" in caplog.text


def test_names_may_be_written_in_other_ways():
    found = classes_by_file(json.dumps({"labels": [["./a\\1.png", 1], ["b/2.png", 0]]}).encode(), ["a/1.png", "b/2.png"], "x")
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("where", ["photos/", "my photos/of animals/"])
def test_directories_that_all_images_share_are_skipped(where, caplog):
    paths = [f"{where}{name}" for name in ("a/1.png", "b/c/1.png", "ab/2.png")]
    found = classes_by_directory(paths)
    assert (found.names, found.labels.tolist()) == (("a", "ab", "b"), [0, 2, 1])
    assert classes_by_directory([f"{where}1.png", f"{where}2.png"]).labels is None
    assert not caplog.text
    assert classes_by_directory([*paths, f"{where}9.png"]).labels is None
    assert f"{where}9.png lies beside them" in caplog.text  # the name stays whole


def test_a_directory_whose_name_begins_like_another_is_not_shared():
    assert classes_by_directory(["cat/1.png", "cats/1.png"]).names == ("cat", "cats")


@pytest.mark.parametrize("kind", ["directory", "zip"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_folder_around_the_data_changes_nothing(tmp_path, kind, listed):
    for i, name in enumerate(NAMES):
        file = tmp_path / "photos" / "all" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(file)
    if listed:
        (tmp_path / "photos" / "all" / "dataset.json").write_text(json.dumps({"labels": pairs()}))
    root = tmp_path / "photos"
    if kind == "zip":
        root = tmp_path / "photos.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for file in sorted((tmp_path / "photos").rglob("*")):
                archive.write(file, file.relative_to(tmp_path))
    source = folder(root=str(root), image_size=4, channels=3, fit="crop", labels="required")
    assert source.labels.tolist() == (LABELS if listed else [0, 0, 0, 0, 1, 1])
    assert source.title(0).endswith(f"all/{NAMES[0]}")


def test_directories_are_classes_where_every_image_is_in_one():
    assert classes_by_directory(["a/1.png", "b/c/1.png"]).names == ("a", "b")
    for paths in (["a/1.png", "2.png"], ["a/1.png", "a/2.png"], ["1.png"]):
        assert classes_by_directory(paths).labels is None


# Images beside the classes


@pytest.mark.parametrize(
    ("paths", "stray"),
    [
        (["a/1.png", "b/1.png", "x.png"], "x.png lies"),
        (["a/1.png", "b/c/1.png", "x.png", "y.png", "z.png"], "x.png and 2 more lie"),
        (["a/1.png", "x.png"], ""),
        (["x.png", "y.png"], ""),
        (["a/1.png", "b/1.png"], ""),
    ],
)
def test_a_picture_beside_class_folders_is_named(paths, stray, caplog):
    assert stray_images(paths) == stray
    with caplog.at_level("WARNING", logger="genimg.data.classes"):
        classes = classes_by_directory(paths)
    assert (stray in caplog.text) if stray else not caplog.text
    assert ("labels=none" in caplog.text) == bool(stray)
    assert (classes.labels is None) == (paths != ["a/1.png", "b/1.png"])


def test_labels_that_are_required_are_refused_with_the_picture_that_prevents_them(tmp_path):
    for name in ("a/1.png", "b/1.png", "cover.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    settings = {"root": str(tmp_path), "image_size": 4, "channels": 3, "fit": "crop"}
    with raises(DataError, "root", word="cover.png"):
        folder(**settings, labels="required")
    (tmp_path / "cover.png").unlink()
    assert folder(**settings, labels="required").labels.tolist() == [0, 1]


# A label of each image


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([2, "0", " 1 "], ("0", "1", "2"), [2, 0, 1]),  # numbers, some of them as text
        (["b", " a", "b", "ä 3"], ("a", "b", "ä 3"), [1, 0, 1, 2]),
    ],
)
def test_labels_are_numbers_or_names(labels, names, expected):
    found = classes_by_label(labels, [str(i) for i in range(len(labels))], key="labels", place="it")
    assert (found.names, found.labels.tolist()) == (names, expected)


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (["a", None], "no label"), (["a", 1], "numbers and names"), (["1", "a"], "numbers and names"), (["a", 1.5], "1.5"),
        (["a", "1.5"], "1.5"), (["a", "1e3"], "1e3"), (["a", ""], "''"), (["a", "b\nc"], "200 characters"),
        (["a", "b" * 201], "200 characters"), (["a", ["b"]], "['b']"), ([True, 1], "True"), ([-1], "-1"), ([10**6], "1000000"),
    ],
)  # fmt: skip
def test_other_labels_are_refused(labels, word):
    with raises(DataError, "labels", word=word):
        classes_by_label(labels, [str(i) for i in range(len(labels))], key="labels", place="it")


def test_the_number_of_names_is_limited(monkeypatch):
    monkeypatch.setattr("genimg.data.classes._MOST_CLASSES", 2)
    assert classes_by_label(["a", "b", "a"], "123", key="labels", place="it").names == ("a", "b")
    with raises(DataError, "labels", word="3 classes"):
        classes_by_label(["a", "b", "c"], "123", key="labels", place="it")
