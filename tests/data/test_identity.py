"""What tells a training's images from others, and how differences are told."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from genimg.data.datasets.builtin import folder
from genimg.data.datasets.paired import paired
from genimg.data.datasets.shapes import ShapesDataset
from genimg.data.datasets.unpaired import unpaired
from genimg.data.identity import identity_of, refused_differences, warned_differences
from genimg.data.split import without_validation

CLASSES = {"automobile": 4, "bird": 5, "cat": 6}


@pytest.fixture
def root(tmp_path):
    for name, count in CLASSES.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            write(tmp_path / name / f"{i}.png", hash_of(name, i))
    return tmp_path


def hash_of(name, i):
    return int(hashlib.sha256(f"{name}{i}".encode()).hexdigest()[:8], 16)


def write(path, seed, size=(8, 8)):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def open_folder(root):
    return folder(root=str(root), image_size=8, channels=3, fit="crop", labels="auto", captions="auto")


def test_an_identity_is_of_primitives_and_says_what_there_is(root):
    identity = identity_of(open_folder(root))
    assert json.loads(json.dumps(identity)) == identity
    assert identity["num_images"] == 15
    assert identity["shape"] == [3, 8, 8]
    assert identity["class_names"] == ["automobile", "bird", "cat"]
    assert identity["class_counts"] == [4, 5, 6]
    names = [f"{name}/{i}.png" for name, count in CLASSES.items() for i in range(count)]
    assert identity["order"] == hashlib.sha256("".join(f"{name}\0" for name in names).encode()).hexdigest()
    labels = np.repeat([0, 1, 2], [4, 5, 6]).astype("<i8")
    assert identity["labels"] == hashlib.sha256(labels.tobytes()).hexdigest()
    assert (identity["captions"], identity["masks"], identity["validation"]) == (None, None, None)


def swap(root):
    one, other = root / "cat" / "1.png", root / "cat" / "2.png"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


CHANGES = {  # what is done to the folder, and what is told: the words of refusals, and of warnings
    "nothing": (lambda root: None, [], []),
    "a class renamed, which moves all labels": (lambda root: (root / "automobile").rename(root / "vehicle"),
                                                ["0 bird, 1 cat, 2 vehicle"], ["contents", "labels"]),
    "a class renamed, which moves none": (lambda root: (root / "bird").rename(root / "boat"), ["1 boat"], ["contents"]),
    "an image added": (lambda root: write(root / "cat" / "9.png", 9), ["16 images"], ["contents", "labels"]),
    "an image removed": (lambda root: (root / "cat" / "1.png").unlink(), ["14 images"], ["contents", "labels"]),
    "an image of another class": (lambda root: (root / "cat" / "5.png").rename(root / "bird" / "5.png"),
                                  ["[4, 6, 5]"], ["contents", "labels"]),
    "another name, and another place in the order": (lambda root: (root / "cat" / "0.png").rename(root / "cat" / "7.png"),
                                                     ["different names"], ["contents"]),
    "an image rewritten": (lambda root: write(root / "cat" / "1.png", 1), [], ["contents"]),
    "two images swapped": (swap, [], ["contents"]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_refused_or_warned_of(root, change):
    before = identity_of(open_folder(root))
    edit, refused, warned = CHANGES[change]
    edit(root)
    now = identity_of(open_folder(root))
    for found, words in ((refused_differences(before, now), refused), (warned_differences(before, now), warned)):
        assert len(found) == len(words), found
        for text, word in zip(found, words, strict=True):
            assert word in text


def test_the_same_files_elsewhere_are_the_same_images(root, tmp_path_factory):
    import shutil

    copy = tmp_path_factory.mktemp("copy") / "images"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    assert identity_of(open_folder(copy)) == identity_of(open_folder(root))


def test_of_an_early_record_only_what_it_holds_is_compared(root):
    now = identity_of(open_folder(root))
    assert refused_differences({"num_images": 15, "class_names": ["automobile", "bird", "cat"]}, now) == []
    assert len(refused_differences({"num_images": 15, "class_names": ["vehicle", "bird", "cat"]}, now)) == 1
    assert warned_differences({"num_images": 14}, now) == []


def test_captions_count_where_a_model_reads_them(root):
    names = [f"{name}/{i}.png" for name, count in CLASSES.items() for i in range(count)]
    found = []
    for color in ("red", "blue"):
        lines = [json.dumps({"file_name": name, "text": f"a {color} {name}"}) for name in names]
        (root / "metadata.jsonl").write_text("\n".join(lines))
        found.append([identity_of(open_folder(root), captions=read) for read in (False, True)])
    assert found[0][0] == found[1][0]
    assert warned_differences(found[0][1], found[1][1]) == ["the images' captions"]
    shapes = ShapesDataset(seed=0, num_images=5, image_size=8, channels=3, num_objects=1)
    texts = "".join(f"{shapes.caption(i)}\0" for i in range(5))
    assert identity_of(shapes, captions=True)["captions"] == hashlib.sha256(texts.encode()).hexdigest()


def test_the_images_for_validation_count(root):
    whole, parts = open_folder(root), [without_validation(open_folder(root), share) for share in (0.2, 0.4)]
    assert identity_of(whole)["validation"] is None
    found = [identity_of(part) for part in parts]
    assert found[0]["validation"] != found[1]["validation"]
    names = whole.file_names()
    assert sorted([*parts[0].file_names(), *parts[0].validation.file_names()]) == sorted(names)
    assert [names.index(name) for name in parts[0].file_names()] == sorted(names.index(n) for n in parts[0].file_names())


def test_pairs_and_domains_know_their_files(root):
    settings = {"root": None, "image_size": 8, "channels": 3, "channels_a": None, "channels_b": None, "fit": "crop"}
    for name in ("left", "right"):
        (root / name).mkdir()
        for i in range(3):
            write(root / name / f"{i}.png", i + 10 * (name == "right"))
    sides = {"a": str(root / "left"), "b": str(root / "right")}
    assert list(paired(**settings, **sides, direction="a2b").file_names()) == ["0", "1", "2"]
    before = identity_of(unpaired(**settings, **sides))
    (root / "right" / "2.png").rename(root / "right" / "3.png")
    assert len(refused_differences(before, identity_of(unpaired(**settings, **sides)))) == 1
