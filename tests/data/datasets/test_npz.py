import numpy as np
import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets.npz import npz
from genimg.errors import ConfigError, DataError


def open_npz(path, **changes):
    settings = {"path": str(path), "image_size": None, "channels": None, "fit": "crop"}
    return npz(**(settings | changes))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def all_images(source):
    return np.stack([source.read(index) for index in range(len(source))])


# Layouts and types


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("first", [True, False])
def test_channels_may_stand_first_or_last(tmp_path, channels, first):
    expected = random_images(5, channels, 6, 7)
    np.savez(tmp_path / "a.npz", images=expected if first else expected.transpose(0, 2, 3, 1))
    source = open_npz(tmp_path / "a.npz")
    assert source.shape == (channels, 6, 7)
    assert len(source) == 5
    assert source.images.dtype == np.uint8
    assert source.images.flags["C_CONTIGUOUS"]
    assert np.array_equal(all_images(source), expected)


def test_grey_images_need_no_axis_for_channels(tmp_path):
    expected = random_images(5, 6, 7)
    np.savez(tmp_path / "a.npz", images=expected)
    source = open_npz(tmp_path / "a.npz")
    assert source.shape == (1, 6, 7)
    assert np.array_equal(all_images(source)[:, 0], expected)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_between_zero_and_one_become_the_nearest_level(tmp_path, kind):
    levels = random_images(4, 3, 5, 5)
    offset = np.random.default_rng(1).uniform(-0.3, 0.3, levels.shape)  # of a level, so that truncation would show
    np.savez(tmp_path / "a.npz", np.clip((levels + offset) / 255.0, 0.0, 1.0).astype(kind))
    assert np.array_equal(all_images(open_npz(tmp_path / "a.npz")), levels)


def test_compressed_archives_are_read_and_a_source_is_known_by_its_files_name_and_content(tmp_path):
    images = random_images(4, 3, 5, 5)
    for name, content in (("a", images), ("b", images[::-1])):
        (tmp_path / name).mkdir()
        np.savez_compressed(tmp_path / name / "made.npz", content)
    one, other = (open_npz(tmp_path / name / "made.npz") for name in "ab")
    assert one.name == "made.npz"
    assert np.array_equal(all_images(one), images)
    assert one.fingerprint == open_npz(tmp_path / "a" / "made.npz").fingerprint
    assert one.fingerprint != other.fingerprint


def test_a_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", random_images(2, 4, 4, 3))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_npz("~/a.npz")) == 2


# Which arrays


def test_the_array_named_images_or_the_only_one_that_could_be_images_is_taken(tmp_path):
    images, others = random_images(3, 4, 4, 3), random_images(2, 5, 5, 3, seed=1)
    np.savez(tmp_path / "named.npz", masks=others, images=images)
    assert np.array_equal(all_images(open_npz(tmp_path / "named.npz")), images.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "unnamed.npz", steps=np.arange(3), made=images)
    assert np.array_equal(all_images(open_npz(tmp_path / "unnamed.npz")), images.transpose(0, 3, 1, 2))


def test_labels_are_found_as_adm_writes_them(tmp_path):
    np.savez(tmp_path / "a.npz", random_images(4, 6, 6, 3), np.array([2, 0, 1, 2]))  # arr_0 and arr_1
    source = open_npz(tmp_path / "a.npz")
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [2, 0, 1, 2]
    assert source.class_names == ("0", "1", "2")


def test_the_array_named_labels_comes_before_others_of_integers(tmp_path):
    np.savez(tmp_path / "a.npz", images=random_images(3, 6, 6, 3), ids=np.array([5, 6, 7]), labels=np.array([1, 0, 1]))
    assert open_npz(tmp_path / "a.npz").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0], [0, 1], [0, -1, 1]])
def test_what_cannot_be_labels_is_not_taken_for_them(tmp_path, labels):
    np.savez(tmp_path / "a.npz", random_images(3, 6, 6, 3), np.array(labels))
    source = open_npz(tmp_path / "a.npz")
    assert source.labels is None
    assert source.class_names == ()


def test_large_numbers_such_as_seeds_do_not_become_a_class_each(tmp_path):
    np.savez(tmp_path / "a.npz", images=random_images(3, 6, 6, 3), seeds=np.array([0, 300_000, 2]))
    assert len(open_npz(tmp_path / "a.npz").class_names) < 300_000  # 2^31 would need more memory than there is


KERAS = {"x_test": (3, 6, 6), "x_train": (5, 6, 6), "y_train": (5,), "y_test": (3,)}
MEDMNIST = {
    "train_images": (5, 6, 6, 3), "val_images": (2, 6, 6, 3), "test_images": (3, 6, 6, 3),
    "train_labels": (5, 1), "val_labels": (2, 1), "test_labels": (3, 1),
}  # fmt: skip


def write_splits(path, shapes):
    """Images of random levels, and labels that count up from 0; what was written."""
    arrays = {
        name: random_images(*shape, seed=i) if len(shape) > 2 else np.arange(shape[0], dtype=np.uint8).reshape(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize(("split", "count"), [(None, 5), ("train", 5), ("test", 3)])
def test_of_keras_mnist_the_training_images_are_taken_or_the_split_that_is_named(tmp_path, split, count):
    arrays = write_splits(tmp_path / "mnist.npz", KERAS)
    source = open_npz(tmp_path / "mnist.npz", split=split)
    assert np.array_equal(all_images(source)[:, 0], arrays[f"x_{split or 'train'}"])
    assert source.labels.tolist() == list(range(count))


@pytest.mark.parametrize(("split", "count"), [(None, 5), ("train", 5), ("val", 2), ("test", 3)])
def test_medmnist_has_three_splits_and_labels_of_one_column(tmp_path, split, count):
    arrays = write_splits(tmp_path / "blood.npz", MEDMNIST)
    source = open_npz(tmp_path / "blood.npz", split=split)
    assert np.array_equal(all_images(source), arrays[f"{split or 'train'}_images"].transpose(0, 3, 1, 2))
    assert source.labels.tolist() == list(range(count))


def test_splits_of_one_archive_are_different_images(tmp_path):
    write_splits(tmp_path / "mnist.npz", KERAS)
    sources = [open_npz(tmp_path / "mnist.npz", split=split) for split in ("train", "test")]
    assert sources[0].fingerprint != sources[1].fingerprint
    assert [source.name for source in sources] == ["mnist.npz[x_train]", "mnist.npz[x_test]"]


def test_a_split_that_the_archive_has_not_is_refused_with_what_it_has(tmp_path):
    write_splits(tmp_path / "mnist.npz", KERAS)
    with raises(ConfigError, "split=val"):
        open_npz(tmp_path / "mnist.npz", split="val")
    np.savez(tmp_path / "plain.npz", random_images(3, 6, 6))
    with raises(ConfigError, "split=test"):
        open_npz(tmp_path / "plain.npz", split="test")
    with raises(ConfigError, "split=dev"):
        open_npz(tmp_path / "plain.npz", split="dev")


@pytest.mark.parametrize("name", ["x", "images", "data", "samples", "X", "img"])
def test_a_mask_stored_before_the_images_is_not_taken_for_them(tmp_path, name):
    images = random_images(3, 6, 6)
    np.savez(tmp_path / "a.npz", mask=random_images(3, 6, 6, seed=1) // 128, **{name: images})
    assert np.array_equal(all_images(open_npz(tmp_path / "a.npz"))[:, 0], images)


@pytest.mark.parametrize("names", [("first", "second"), ("x", "images"), ("x_test", "x_val"), ("x_train", "train_images")])
def test_several_arrays_that_could_be_meant_are_refused_with_their_names_and_a_key_chooses(tmp_path, names):
    arrays = {name: random_images(3, 6, 6, seed=i) for i, name in enumerate(names)}
    np.savez(tmp_path / "a.npz", **arrays, ids=np.arange(3))
    with raises(DataError, "images", word="arrays"):  # fmt: skip
        open_npz(tmp_path / "a.npz")
    for name, images in arrays.items():
        assert np.array_equal(all_images(open_npz(tmp_path / "a.npz", images=name))[:, 0], images)


def test_a_named_array_is_checked(tmp_path):
    write_splits(tmp_path / "mnist.npz", KERAS)
    with raises(ConfigError, "images=x_val"):
        open_npz(tmp_path / "mnist.npz", images="x_val")
    with raises(ConfigError, "images=y_train"):
        open_npz(tmp_path / "mnist.npz", images="y_train")
    with raises(ConfigError, "split=test"):
        open_npz(tmp_path / "mnist.npz", images="x_test", split="test")
    assert open_npz(tmp_path / "mnist.npz", images="x_test").labels.tolist() == [0, 1, 2]  # not y_train's


def test_what_was_taken_is_said(tmp_path, caplog):
    arrays = write_splits(tmp_path / "mnist.npz", KERAS)
    with caplog.at_level("INFO", logger="genimg.data.datasets.npz"):
        open_npz(tmp_path / "mnist.npz")
    (said,) = caplog.messages
    low, high = arrays["x_train"].min(), arrays["x_train"].max()
    assert f"images from x_train, uint8 [5, 6, 6], values from {low} to {high}; labels from y_train, uint8 [5], 0 to 4" in said
    assert said.endswith("not read: x_test, y_test")


def test_samples_of_genimg_are_read_in_their_own_channels(tmp_path):
    images = random_images(3, 6, 6, 1)
    np.savez(tmp_path / "a.npz", arr_0=np.repeat(images, 3, axis=3), images=images)
    source = open_npz(tmp_path / "a.npz")
    assert source.shape == (1, 6, 6)
    assert np.array_equal(all_images(source), images.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "b.npz", arr_0=np.repeat(images, 3, axis=3)[::-1], images=images)  # not the same images
    with raises(DataError, "images", word="arr_0"):
        open_npz(tmp_path / "b.npz")


# Which labels


@pytest.mark.parametrize(
    "name", ["y", "labels", "label", "target", "targets", "classes", "fine_labels", "y_train", "train_labels", "Y"]
)
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_usual_names_of_labels_are_read(tmp_path, name, shape):
    of_split = "train" in name
    images = {"x_train" if of_split else "x": random_images(3, 6, 6)}
    np.savez(tmp_path / "a.npz", **images, ids=np.arange(3) + 7, **{name: np.array([2, 0, 1], np.uint8).reshape(shape)})
    source = open_npz(tmp_path / "a.npz")
    assert source.labels.tolist() == [2, 0, 1]
    assert source.class_names == ("0", "1", "2")
    assert open_npz(tmp_path / "a.npz", labels="none").labels is None


@pytest.mark.parametrize("kind", [np.uint8, np.float32, bool])
def test_one_hot_labels_are_counted(tmp_path, kind):
    np.savez(tmp_path / "a.npz", x=random_images(4, 6, 6), y=np.eye(3, dtype=kind)[[2, 0, 1, 2]])
    assert open_npz(tmp_path / "a.npz").labels.tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize(
    "labels", [[0.0, 1.0, 2.0], [0, 1], [0, -1, 1], [0, 1, 2_000_000], [[1, 1], [0, 1], [0, 0]], [[0.5, 0.5], [1, 0], [0, 1]]]
)
def test_an_array_called_labels_that_holds_none_is_refused_with_the_way_to_ignore_it(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=random_images(3, 6, 6), y=np.array(labels))
    with raises(DataError, "labels=y"):
        open_npz(tmp_path / "a.npz")
    assert open_npz(tmp_path / "a.npz", labels="none").labels is None


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_labels_may_be_names(tmp_path, shape, caplog):
    names = np.array(["ship", "auto", "ship", "bus"]).reshape(shape)
    np.savez(tmp_path / "a.npz", images=random_images(4, 6, 6, 3), labels=names)
    with caplog.at_level("INFO"):
        source = open_npz(tmp_path / "a.npz")
    assert (source.class_names, source.labels.tolist()) == (("auto", "bus", "ship"), [2, 0, 2, 1])
    assert "3 names" in caplog.text


def test_several_arrays_of_labels_are_refused_and_a_key_chooses(tmp_path):
    labels = {"fine_labels": np.array([4, 5, 6]), "targets": np.array([0, 1, 1]), "coarse": np.array([1, 0, 0])}
    np.savez(tmp_path / "a.npz", data=random_images(3, 6, 6), **labels)
    with raises(DataError, "labels", word="fine_labels"):
        open_npz(tmp_path / "a.npz")
    for name, values in labels.items():
        assert open_npz(tmp_path / "a.npz", labels=name).labels.tolist() == values.tolist()
    with raises(ConfigError, "labels=medium"):
        open_npz(tmp_path / "a.npz", labels="medium")


# Another range


@pytest.mark.parametrize(
    ("kind", "bounds"), [(np.float32, (-1, 1)), (np.float64, (0, 255)), (np.uint16, (0, 4095)), (np.int64, (-1000, 400)),
                         (np.uint8, (0, 1))],
)  # fmt: skip
def test_a_range_says_which_values_are_black_and_white(tmp_path, kind, bounds):
    low, high = bounds
    values = np.linspace(low, high, 5).astype(kind).reshape(5, 1, 1)
    np.savez(tmp_path / "a.npz", x=np.broadcast_to(values, (5, 4, 4)))
    expected = np.rint((values.astype(np.float64) - low) / (high - low) * 255)
    assert np.array_equal(all_images(open_npz(tmp_path / "a.npz", range=[low, high]))[:, 0, :1, :1], expected)


def test_values_beyond_the_range_are_clipped(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([-2000, 0, 3000], np.int16).reshape(3, 1, 1))
    assert all_images(open_npz(tmp_path / "a.npz", range=[-1000, 1000])).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("bounds", [[1, 0], [0, 0], [0], [0, 1, 2], [0, float("inf")], "0,1", [True, 2], 5])
def test_a_range_that_is_none_is_refused(tmp_path, bounds):
    np.savez(tmp_path / "a.npz", random_images(2, 4, 4))
    with raises(ConfigError, "range", word="high"):
        open_npz(tmp_path / "a.npz", range=bounds)


# Another size or other channels


def test_other_channels_are_those_of_pillow(tmp_path):
    images = random_images(3, 6, 6, 3)
    np.savez(tmp_path / "colour.npz", images)
    np.savez(tmp_path / "grey.npz", images[..., 0])
    grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    assert np.array_equal(all_images(open_npz(tmp_path / "colour.npz", channels=1))[:, 0], grey)
    replicated = all_images(open_npz(tmp_path / "grey.npz", channels=3))
    assert np.array_equal(replicated, np.stack([images[..., 0]] * 3, axis=1))


def test_other_sizes_are_those_of_pillow(tmp_path):
    images = random_images(2, 12, 12, 3)
    np.savez(tmp_path / "a.npz", images)
    source = open_npz(tmp_path / "a.npz", image_size=8)
    expected = [np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.LANCZOS)) for image in images]
    assert source.shape == (3, 8, 8)
    assert np.array_equal(all_images(source).transpose(0, 2, 3, 1), expected)


def test_another_aspect_ratio_is_cropped_or_padded(tmp_path):
    images = random_images(2, 4, 8, 3)
    np.savez(tmp_path / "a.npz", images)
    channels_first = images.transpose(0, 3, 1, 2)
    assert np.array_equal(all_images(open_npz(tmp_path / "a.npz", image_size=4)), channels_first[..., 2:6])
    padded = all_images(open_npz(tmp_path / "a.npz", image_size=8, fit="pad"))
    assert np.array_equal(padded[:, :, 2:6], channels_first)
    assert not padded[:, :, [0, 1, 6, 7]].any()
    assert open_npz(tmp_path / "a.npz", image_size=[6, 10]).shape == (3, 6, 10)


def test_labels_stay_with_their_images_when_these_are_resized(tmp_path):
    np.savez(tmp_path / "a.npz", random_images(3, 6, 6), np.array([1, 0, 2]))
    source = open_npz(tmp_path / "a.npz", image_size=4, channels=3)
    assert source.images.shape == (3, 3, 4, 4)
    assert source.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"channels": 2}, "channels=2"), ({"image_size": 0}, "image_size=0"), ({"fit": "zoom"}, "fit=zoom")],
)
def test_settings_that_are_none_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", random_images(2, 4, 4, 3))
    with raises(ConfigError, message):
        open_npz(tmp_path / "a.npz", **changes)


# Values that are not images'


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_the_first_image(tmp_path, value):
    images = np.zeros((6, 4, 4, 3), np.float32)
    images[[2, 5], 1, 0, 2] = value
    np.savez(tmp_path / "a.npz", images=images)
    with raises(DataError, "path", word="NaN"):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(-1.0, 1.0, "-1 to 1"), (0.0, 255.0, "0 to 255"), (-0.5, 0.5, "-0.5 to 0.5")]
)
def test_floats_of_another_range_are_refused_with_the_remedy(tmp_path, low, high, shown):
    np.savez(tmp_path / "a.npz", np.linspace(low, high, 96).reshape(2, 4, 4, 3))
    with raises(DataError, "path", word=shown):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["int8", "int64", "uint16", "bool", "complex64"])
def test_other_types_are_refused(tmp_path, kind):
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), kind))
    with raises(DataError, "path", word=kind):
        open_npz(tmp_path / "a.npz")


def test_arrays_of_other_shapes_are_no_images_and_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(7), sigma=np.zeros((7, 7)))
    with raises(DataError, "path", word="sigma"):
        open_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "flat.npz", images=np.zeros((2, 48), np.uint8), masks=np.zeros((2, 4, 4), np.uint8))
    with raises(DataError, "path", word="flat.npz"):
        open_npz(tmp_path / "flat.npz")


def test_an_array_without_an_axis_of_channels_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", random_images(2, 6, 6, 5))
    with raises(DataError, "path", word="axis"):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_archive_of_no_images_is_refused(tmp_path, kind):
    np.savez(tmp_path / "a.npz", images=np.zeros((0, 4, 4, 3), kind))
    with raises(DataError, "path", word="images"):
        open_npz(tmp_path / "a.npz")


# Files of another kind


def compressed_with_a_fault(path):
    np.savez_compressed(path, random_images(20, 8, 8, 3))
    content = bytearray(path.read_bytes())
    content[60:62] = bytes(value ^ 0xFF for value in content[60:62])  # within the compressed data
    path.write_bytes(content)


def truncated(path):
    np.savez(path, random_images(20, 8, 8, 3))
    path.write_bytes(path.read_bytes()[:2000])


def one_array(path):
    np.save(path.with_suffix(".npy"), random_images(2, 4, 4, 3))
    path.with_suffix(".npy").rename(path)


def pickled(path):
    np.savez(path, np.array([{"no": "images"}, None], dtype=object))


NOT_ARCHIVES = {
    "text": lambda path: path.write_text("no archive"),
    "an empty file": lambda path: path.write_bytes(b""),
    "an .npy": one_array,
    "truncated": truncated,
    "damaged": compressed_with_a_fault,
    "objects": pickled,
}


@pytest.mark.parametrize("write", NOT_ARCHIVES.values(), ids=NOT_ARCHIVES)
def test_a_file_that_is_no_archive_of_plain_arrays_is_refused_and_named(tmp_path, write):
    path = tmp_path / "other.npz"
    write(path)
    with raises(DataError, "path", word="archive"):
        open_npz(path)


def test_pickled_code_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    np.savez(tmp_path / "a.npz", images=np.array([Attack()], dtype=object))
    with raises(DataError, "path", word="archive"):
        open_npz(tmp_path / "a.npz")
    assert not (tmp_path / "owned").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path):
        with raises(DataError, f"path={path}"):
            open_npz(path)
