import os
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image, features

from genimg.data.datasets import builtin
from genimg.data.datasets.builtin import ArrayDataset, CorruptImageError, ImageDataset, folder
from genimg.errors import ConfigError, DataError


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """A random RGB picture on disk; returns it as [3, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return values.transpose(2, 0, 1)


def open_folder(root: Path, **changes: object) -> ImageDataset:
    settings = {"root": str(root), "image_size": 8, "channels": 3, "fit": "crop", "labels": "auto"}
    return folder(**(settings | changes))


# Image folders


def test_a_flat_folder_has_its_images_in_order_of_name_and_no_labels(tmp_path):
    expected = [write_image(tmp_path / name, seed=i) for i, name in enumerate(["a.png", "b.bmp", "c.png"])]
    source = open_folder(tmp_path)
    assert len(source) == 3
    assert source.shape == (3, 8, 8)
    assert source.labels is None
    assert source.class_names == ()
    assert source.caption(0) is None
    for index in range(3):
        assert np.array_equal(source.read(index), expected[index])


def test_subdirectories_are_classes_in_alphabetical_order(tmp_path):
    for name in ["dog/1.png", "cat/2.png", "cat/1.png", "emu/deep/er/1.png"]:
        write_image(tmp_path / name)
    source = open_folder(tmp_path)
    assert source.class_names == ("cat", "dog", "emu")
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1, 2]


def test_a_subdirectory_without_images_is_no_class(tmp_path):
    for name in ["cat/1.png", "dog/1.png"]:
        write_image(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert open_folder(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("names", [["cat/1.png", "dog/1.png", "loose.png"], ["all/1.png", "all/2.png"], ["1.png"]])
def test_without_a_class_for_every_image_there_are_no_labels(tmp_path, names):
    for name in names:
        write_image(tmp_path / name)
    assert open_folder(tmp_path).labels is None
    assert len(open_folder(tmp_path)) == len(names)
    with raises(DataError, "root", word="required"):
        open_folder(tmp_path, labels="required")


def test_labels_none_ignores_subdirectories(tmp_path):
    for name in ["cat/1.png", "dog/1.png"]:
        write_image(tmp_path / name)
    assert open_folder(tmp_path, labels="none").labels is None
    assert open_folder(tmp_path, labels="required").labels.tolist() == [0, 1]


def test_extensions_in_capitals_count_and_hidden_or_other_files_do_not(tmp_path):
    write_image(tmp_path / "a.PNG")
    write_image(tmp_path / "b.JPEG")
    write_image(tmp_path / ".hidden.png")
    write_image(tmp_path / ".thumbnails" / "a.png")
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / "png").write_text("not an image")
    assert open_folder(tmp_path).paths == ["a.PNG", "b.JPEG"]


@pytest.mark.parametrize("name", ["paper.pdf", "features.h5", "clip.mpg"])
def test_files_of_formats_that_pillow_cannot_read_are_not_images(tmp_path, name):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"%PDF-1.4")
    assert open_folder(tmp_path).paths == ["a.png"]


def test_linked_directories_are_followed(tmp_path):
    expected = write_image(tmp_path / "elsewhere" / "1.png")
    write_image(tmp_path / "root" / "dog" / "1.png", seed=1)
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    source = open_folder(tmp_path / "root")
    assert source.class_names == ("cat", "dog")
    assert np.array_equal(source.read(0), expected)


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    write_image(tmp_path / "pictures" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_folder(Path("~/pictures"))) == 1


def test_sizes_and_channels_are_those_requested(tmp_path):
    write_image(tmp_path / "a.png", size=(30, 20))
    assert open_folder(tmp_path, image_size=[12, 10], channels=1, fit="pad").read(0).shape == (1, 12, 10)


def test_without_a_size_and_channels_they_are_the_files_own(tmp_path):
    expected = [write_image(tmp_path / name, seed=i, size=(9, 6)) for i, name in enumerate(["cat/a.png", "dog/b.bmp"])]
    source = open_folder(tmp_path, image_size=None, channels=None)
    assert source.shape == (3, 6, 9)
    assert source.labels.tolist() == [0, 1]
    for index in range(2):
        assert np.array_equal(source.read(index), expected[index])


def test_grey_files_stay_grey_without_a_size_and_channels(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    source = open_folder(tmp_path, image_size=None, channels=None)
    assert source.shape == (1, 6, 9)
    assert np.array_equal(source.read(0), values[None])


def test_files_of_different_sizes_need_a_size(tmp_path):
    write_image(tmp_path / "a.png", size=(9, 6))
    write_image(tmp_path / "b.png", size=(6, 6))
    with raises(DataError, "image_size", word="a.png with 9x6 pixels"):
        open_folder(tmp_path, image_size=None, channels=None)
    assert open_folder(tmp_path, image_size=4).shape == (3, 4, 4)


@pytest.mark.parametrize(("image_size", "channels"), [(4, None), (None, 1)])
def test_a_size_or_channels_that_are_given_alone_are_refused(tmp_path, image_size, channels):
    write_image(tmp_path / "a.png", size=(9, 6))
    with raises(ConfigError, "image_size", word="channels"):
        open_folder(tmp_path, image_size=image_size, channels=channels)


def test_a_large_jpeg_decoded_at_a_reduced_scale_is_near_the_full_decode(tmp_path):
    y, x = np.mgrid[0:512, 0:768]
    picture = np.stack([127 + 120 * np.sin(x / 40), 127 + 120 * np.cos(y / 50), (x + y) / 6], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    full = Image.fromarray(picture).crop((128, 0, 640, 512)).resize((32, 32), Image.Resampling.LANCZOS)
    difference = open_folder(tmp_path, image_size=32).read(0).astype(float) - np.asarray(full).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 1.5
    assert np.abs(difference).max() < 12


def test_fingerprint_repeats_and_changes_with_the_files_and_the_format(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", seed=1)
    fingerprints = [open_folder(tmp_path).fingerprint]
    assert open_folder(tmp_path).fingerprint == fingerprints[0]
    fingerprints += [
        open_folder(tmp_path, **change).fingerprint for change in ({"channels": 1}, {"image_size": 9}, {"fit": "pad"})
    ]
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert open_folder(tmp_path).fingerprint == fingerprints[0]  # a copy has other times
    write_image(tmp_path / "a.png", seed=2)
    fingerprints.append(open_folder(tmp_path).fingerprint)
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    fingerprints.append(open_folder(tmp_path).fingerprint)
    (tmp_path / "c.png").unlink()
    fingerprints.append(open_folder(tmp_path).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such names")
def test_a_name_that_is_not_utf8_is_read_and_counts_in_the_fingerprint(tmp_path):
    expected = write_image(tmp_path / "a.png")
    before = open_folder(tmp_path).fingerprint
    (tmp_path / "a.png").rename(os.fsdecode(bytes(tmp_path) + b"/\xff.png"))
    source = open_folder(tmp_path)
    assert np.array_equal(source.read(0), expected)
    assert source.fingerprint != before


def test_a_missing_directory_is_named(tmp_path):
    with raises(DataError, "root", word="absent"):
        open_folder(tmp_path / "absent")


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    write_image(tmp_path / "a.png")
    with raises(DataError, "root", word="directory"):
        open_folder(tmp_path / "a.png")


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_a_directory_without_images_is_named(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("text")
    with raises(DataError, f"root={tmp_path}"):
        open_folder(tmp_path)


def test_unknown_labels_channels_fit_and_size_are_refused(tmp_path):
    write_image(tmp_path / "a.png")
    with raises(ConfigError, "labels=maybe"):
        open_folder(tmp_path, labels="maybe")
    with raises(ConfigError, "channels=2"):
        open_folder(tmp_path, channels=2)
    with raises(ConfigError, "fit=zoom"):
        open_folder(tmp_path, fit="zoom")
    with raises(ConfigError, "image_size=0"):
        open_folder(tmp_path, image_size=0)


# Many at once


def test_many_images_are_those_read_one_by_one(tmp_path):
    values = np.stack([write_image(tmp_path / f"{i}.png", seed=i) for i in range(4)])
    indices = np.array([3, 0, 0, 2])
    for source in (open_folder(tmp_path), ArrayDataset("array", values)):
        many = source.read_many(indices)
        assert many.dtype == np.uint8
        assert np.array_equal(many, values[indices])
        assert source.read_many(indices[:0]).shape == (0, 3, 8, 8)


def test_many_images_of_which_one_is_corrupt_are_an_error(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"not a png")
    with raises(CorruptImageError, word="b.png"):
        open_folder(tmp_path).read_many(np.array([0, 1, 2]))
    assert open_folder(tmp_path).read_many(np.array([0, 2])).shape == (2, 3, 8, 8)


# Corrupt files


@pytest.mark.parametrize("content", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_is_corrupt_and_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with raises(CorruptImageError, word=str(tmp_path / "bad.png")):
        open_folder(tmp_path).read(0)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "bmp", "ppm"])
def test_a_truncated_file_is_corrupt_and_named(tmp_path, extension):
    path = tmp_path / f"bad.{extension}"
    write_image(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with raises(CorruptImageError, word=str(path)):
        open_folder(tmp_path).read(0)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_with_destroyed_contents_is_corrupt_and_named(tmp_path):
    # Pillow's AVIF decoder raises RuntimeError, not OSError.
    path = tmp_path / "bad.avif"
    write_image(path, size=(64, 64))
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    with raises(CorruptImageError, word=str(path)):
        open_folder(tmp_path).read(0)


def test_a_picture_beyond_pillows_size_limit_is_corrupt_and_named(tmp_path, monkeypatch):
    write_image(tmp_path / "huge.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with raises(CorruptImageError, word="decompression"):
        open_folder(tmp_path).read(0)


def test_a_file_that_vanished_is_corrupt_and_named(tmp_path):
    write_image(tmp_path / "a.png")
    source = open_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with raises(CorruptImageError, word="a.png"):
        source.read(0)


# ImageNet


def test_imagenet_reads_a_split_with_its_classes(tmp_path):
    for name in ["train/n01440764/a.JPEG", "train/n01443537/b.JPEG", "val/n01440764/c.JPEG", "val/n01443537/d.JPEG"]:
        write_image(tmp_path / name)
    source = builtin.imagenet(root=str(tmp_path), split="val", image_size=8, channels=3, fit="crop")
    assert source.name == "imagenet"
    assert source.class_names == ("n01440764", "n01443537")
    assert source.labels.tolist() == [0, 1]


def test_imagenet_without_its_files_names_the_split_directory(tmp_path):
    with raises(DataError, "root", word="train"):
        builtin.imagenet(root=str(tmp_path), split="train", image_size=8, channels=3, fit="crop")


def test_imagenet_requires_classes(tmp_path):
    write_image(tmp_path / "train" / "a.JPEG")
    with raises(DataError, "root", word="required"):
        builtin.imagenet(root=str(tmp_path), split="train", image_size=8, channels=3, fit="crop")


def test_imagenet_has_no_other_split(tmp_path):
    with raises(ConfigError, "split=test"):
        builtin.imagenet(root=str(tmp_path), split="test", image_size=8, channels=3, fit="crop")


# torchvision's small datasets


SMALL = [
    ("mnist", "MNIST", "MNIST/raw"),
    ("fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
    ("cifar10", "CIFAR10", "cifar-10-batches-py"),
    ("cifar100", "CIFAR100", "cifar-100-python"),
]


def patch_torchvision(monkeypatch, name: str, *, color: bool) -> np.ndarray:
    """Put a dataset of six tiny images that are already there in torchvision's place; returns its training images."""
    shape = (6, 8, 8, 3) if color else (6, 8, 8)
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    class Present:
        def __init__(self, root, *, train, download):
            assert not download, "data that is there must not be downloaded"
            self.data = values if color else torch.from_numpy(values)
            self.data = self.data if train else self.data[:2]
            targets = [3, 1, 4, 1, 5, 9][: len(self.data)]
            self.targets = targets if color else torch.tensor(targets)
            self.classes = [f"class {i}" for i in range(10)]

    monkeypatch.setattr(f"torchvision.datasets.{name}", Present)
    return values


@pytest.mark.parametrize(("function", "torchvision_name", "files"), SMALL)
def test_small_datasets_are_taken_as_they_are(monkeypatch, tmp_path, function, torchvision_name, files):
    color = function.startswith("cifar")
    values = patch_torchvision(monkeypatch, torchvision_name, color=color)
    settings = {"root": str(tmp_path), "image_size": 8, "channels": 3 if color else 1, "fit": "stretch"}
    train = getattr(builtin, function)(split="train", **settings)
    test = getattr(builtin, function)(split="test", **settings)
    assert (len(train), len(test)) == (6, 2)
    assert np.array_equal(train.images, values.transpose(0, 3, 1, 2) if color else values[:, None])
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [3, 1, 4, 1, 5, 9]
    assert train.class_names[9] == "class 9"
    assert train.name == f"{function}/train"
    assert train.fingerprint != test.fingerprint


@pytest.mark.parametrize(("name", "function", "color"), [("MNIST", "mnist", False), ("CIFAR10", "cifar10", True)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_small_datasets_are_brought_to_another_size_and_channels(monkeypatch, tmp_path, name, function, color, channels):
    values = patch_torchvision(monkeypatch, name, color=color)
    load = getattr(builtin, function)
    same_size = load(root=str(tmp_path), split="train", image_size=8, channels=channels, fit="stretch")
    assert same_size.images.shape == (6, channels, 8, 8)
    if channels != 1:
        expected = values.transpose(0, 3, 1, 2) if color else np.stack([values] * 3, axis=1)
        assert np.array_equal(same_size.images[:, :3], expected)
    larger = load(root=str(tmp_path), split="train", image_size=[12, 16], channels=channels, fit="pad")
    assert larger.images.shape == (6, channels, 12, 16)
    assert larger.labels.tolist() == [3, 1, 4, 1, 5, 9]


@pytest.mark.parametrize("error", [RuntimeError("Error downloading a file\nsecond line"), URLError("no network"), OSError()])
@pytest.mark.parametrize(("function", "torchvision_name", "files"), SMALL)
def test_without_files_and_network_the_message_says_where_to_put_the_files(
    monkeypatch, tmp_path, function, torchvision_name, files, error
):
    attempts = []

    class Absent:
        def __init__(self, root, *, train, download):
            attempts.append(download)
            if download:  # as torchvision does first
                (Path(root) / files).mkdir(parents=True)
            raise error if download else RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr(f"torchvision.datasets.{torchvision_name}", Absent)
    with raises(DataError, "root", word="downloaded") as caught:
        getattr(builtin, function)(root=str(tmp_path), split="train", image_size=28, channels=1, fit="crop")
    assert attempts == [False, True]
    assert f"put its files into {tmp_path / files}, or name the directory that holds {files}" in str(caught.value)
    assert "GENIMG_DATA" in str(caught.value)
    assert "second line" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["cifar10/train", "train", "cifar10", "."])
@pytest.mark.parametrize("may_download", [True, False])
def test_folders_of_images_are_named_with_the_data_that_reads_them(monkeypatch, tmp_path, place, may_download):
    class Absent:
        def __init__(self, root, *, train, download):
            raise RuntimeError("Dataset not found") if not download else URLError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Absent)
    for name in ("bird", "cat"):
        (tmp_path / place / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / place / name / "1.JPG")
    with raises(DataError, "root", word="downloaded" if may_download else "folder") as caught:
        builtin.cifar10(root=str(tmp_path), split="train", image_size=32, channels=3, fit="crop", may_download=may_download)
    assert str(caught.value).endswith(f"data=folder data.root={tmp_path / place}")
    found = builtin.folder(root=str(tmp_path / place), image_size=None, channels=None, fit="crop", labels="auto")
    assert found.class_names == ("bird", "cat")


@pytest.mark.parametrize("function", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("damage", ["empty", "truncated"])
def test_damaged_files_are_reported_with_their_place(tmp_path, function, damage):
    # torchvision takes files of these names for complete, so it reads them and tries no download.
    raw = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[function] / "raw"
    raw.mkdir(parents=True)
    header = b"".join(number.to_bytes(4, "big") for number in (0x803, 60_000, 28, 28))
    for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]:
        (raw / name).write_bytes(b"" if damage == "empty" else header + bytes(784 * 5))
    with raises(DataError, f"root={tmp_path}"):
        getattr(builtin, function)(root=str(tmp_path), split="train", image_size=28, channels=1, fit="crop")


@pytest.mark.parametrize("function", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_small_datasets_have_no_other_split(tmp_path, function):
    with raises(ConfigError, "split=val"):
        getattr(builtin, function)(root=str(tmp_path), split="val", image_size=28, channels=1, fit="crop")


def test_array_source_serves_its_images_and_knows_them_by_content():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    source = ArrayDataset("toy", images, np.arange(4), ["a", "b", "c", "d"])
    assert (len(source), source.shape) == (4, (3, 5, 6))
    assert np.array_equal(source.read(2), images[2])
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert source.fingerprint == ArrayDataset("toy", images.copy()).fingerprint
    assert source.fingerprint != ArrayDataset("toy", changed).fingerprint


def test_array_source_has_the_captions_that_it_is_given():
    images = np.zeros((3, 3, 5, 6), dtype=np.uint8)
    source = ArrayDataset("toy", images, captions=["one", None, "three"])
    assert source.captioned
    assert source.captions(np.array([2, 1, 2])) == ["three", None, "three"]
    assert source.fingerprint == ArrayDataset("toy", images).fingerprint
    assert not ArrayDataset("toy", images).captioned
    assert ArrayDataset("toy", images).caption(0) is None


# Real images


@pytest.mark.real_data
def test_real_mnist_has_its_published_statistics(real_mnist_root):
    settings = {"root": str(real_mnist_root), "image_size": 28, "channels": 1, "fit": "stretch"}
    train, test = builtin.mnist(split="train", **settings), builtin.mnist(split="test", **settings)
    assert (train.shape, len(train), len(test)) == ((1, 28, 28), 60_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    histogram = np.bincount(train.images.reshape(-1), minlength=256) / train.images.size
    levels = np.arange(256) / 255
    mean = (histogram * levels).sum()
    assert mean == pytest.approx(0.1307, abs=1e-4)
    assert np.sqrt((histogram * (levels - mean) ** 2).sum()) == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.real_data
def test_real_mnist_at_32_pixels_in_colour(real_mnist_root):
    source = builtin.mnist(root=str(real_mnist_root), split="test", image_size=32, channels=3, fit="stretch")
    assert source.images.shape == (10_000, 3, 32, 32)
    assert np.array_equal(source.images[:, 0], source.images[:, 2])
    assert source.images[:, 0].mean() == pytest.approx(0.1325 * 255, abs=0.5)  # resampling keeps the mean of the test images


@pytest.mark.real_data
def test_real_cifar10_as_an_image_folder(real_cifar10_root):
    source = folder(root=str(real_cifar10_root / "cifar10" / "train"), image_size=32, channels=3, fit="crop", labels="required")
    assert len(source) == 1000
    assert source.class_names == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    assert np.bincount(source.labels).tolist() == [100] * 10
    images = np.stack([source.read(index) for index in range(1000)])
    assert images.mean(axis=(0, 2, 3)) == pytest.approx([125.3, 123.0, 113.9], abs=4)  # the published channel means
