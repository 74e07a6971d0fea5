import hashlib
import math
import re
from collections import Counter

import numpy as np
import pytest

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.datasets.shapes import BACKGROUND, COLORS, SHAPES, SIZES, shapes

OBJECT = re.compile(rf"a ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")


def source(**changes: object) -> ImageDataset:
    settings = {"seed": 0, "num_images": 200, "image_size": 32, "channels": 3, "num_objects": 1}
    return shapes(**(settings | changes))


def covered(image: np.ndarray, color: str) -> np.ndarray:
    """How much of each pixel an object of that colour covers, from the channel that differs most from the background."""
    difference = np.array(COLORS[color]) - np.array(BACKGROUND)
    channel = np.abs(difference).argmax()
    return (image[channel].astype(float) - BACKGROUND[channel]) / difference[channel]


def test_images_are_a_pure_function_of_seed_and_index():
    one, other = source(), source(num_images=50)
    backwards = {index: other.read(index) for index in reversed(range(50))}
    for index in range(50):
        assert np.array_equal(one.read(index), backwards[index])
        assert one.caption(index) == other.caption(index)
    assert np.array_equal(one.labels[:50], other.labels)


def test_another_seed_gives_other_images():
    one, other = source(), source(seed=1)
    assert sum(np.array_equal(one.read(index), other.read(index)) for index in range(50)) == 0


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 32), (3, [24, 40]), (1, [40, 24])])
@pytest.mark.parametrize("num_objects", [1, 2])
def test_images_have_the_shape_that_the_source_states(channels, size, num_objects):
    images = source(channels=channels, image_size=size, num_objects=num_objects)
    assert images.shape == (channels, *((size, size) if isinstance(size, int) else size))
    assert len(images) == 200
    assert images.read(3).shape == images.shape
    assert images.read(3).dtype == np.uint8


@pytest.mark.parametrize("num_objects", [1, 2])
def test_label_names_the_first_shape_of_the_caption(num_objects):
    images = source(num_objects=num_objects)
    assert images.class_names == SHAPES
    assert images.labels.dtype == np.int64
    for index in range(len(images)):
        objects = OBJECT.findall(images.caption(index))
        assert len(objects) == num_objects
        assert objects[0][2] == images.class_names[images.labels[index]]


def test_color_shape_labels_name_colour_and_shape_of_the_captions_first_object():
    for num_objects in (1, 2):
        images = source(num_images=1000, num_objects=num_objects, labels="color_shape")
        assert len(images.class_names) == len(set(images.class_names)) == 30
        assert list(images.class_names) == sorted(images.class_names)
        assert images.labels.dtype == np.int64
        for index in range(len(images)):
            _, color, shape = OBJECT.findall(images.caption(index))[0]
            assert images.class_names[images.labels[index]] == f"{color} {shape}"
        assert set(images.labels.tolist()) == set(range(30))


def test_labels_change_nothing_about_the_images():
    one, other = source(labels="shape"), source(labels="color_shape")
    assert all(np.array_equal(one.read(index), other.read(index)) for index in range(20))
    assert np.array_equal(one.labels, source().labels)  # the default


def test_many_captions_are_those_one_by_one():
    for num_objects in (1, 2):
        images = source(num_objects=num_objects)
        assert images.captioned
        indices = np.array([7, 0, 7, 199])
        assert images.captions(indices) == [images.caption(int(index)) for index in indices]
        assert images.captions(indices[:0]) == []


# Combinations that are held out

HELD_OUT = ["red circle", "blue square", "black ring"]


def combinations(images: ImageDataset) -> list[list[str]]:
    """Of every image, its objects' colours and shapes."""
    captions = images.captions(np.arange(len(images)))
    return [[f"{color} {shape}" for _, color, shape in OBJECT.findall(caption)] for caption in captions]


def test_without_any_the_images_are_those_of_old():
    # As they were before there was held_out.
    images = source(seed=5, num_images=20, num_objects=2)
    assert images.fingerprint == "d613ab50e19c0ca4c05383fc7017b9f163cadb31db047980964f5fd5e519c857"
    assert (
        hashlib.sha256(np.stack([images.read(i) for i in range(20)]).tobytes()).hexdigest()
        == "1ea0d4b30bc46958212554fd7711da37fc0a82c81a71b042e6859edd22fbe7ff"
    )
    assert images.caption(0) == "a large yellow ring to the left of a small black square"
    assert images.caption(19) == "a small blue cross to the left of a small purple triangle"
    assert source(seed=5, num_images=20, num_objects=2, held_out=[]).fingerprint == images.fingerprint


@pytest.mark.parametrize("num_objects", [1, 2])
@pytest.mark.parametrize("labels", ["shape", "color_shape"])
def test_held_out_combinations_never_occur_and_the_others_stay_uniform(num_objects, labels):
    images = source(num_images=20_000, num_objects=num_objects, held_out=HELD_OUT, labels=labels)
    found = combinations(images)
    for position in range(num_objects):
        counts = Counter(objects[position] for objects in found)
        assert len(counts) == 27
        assert not counts.keys() & set(HELD_OUT)
        expected = 20_000 / 27
        assert max(abs(count - expected) for count in counts.values()) < 5 * math.sqrt(expected)
    named = [images.class_names[label] for label in images.labels]
    assert named == [objects[0] if labels == "color_shape" else objects[0].split()[1] for objects in found]


@pytest.mark.parametrize("num_objects", [1, 2])
def test_images_without_a_held_out_combination_are_as_they_were(num_objects):
    everything, some = source(num_objects=num_objects), source(num_objects=num_objects, held_out=HELD_OUT)
    changed = 0
    for index, objects in enumerate(combinations(everything)):
        same = np.array_equal(everything.read(index), some.read(index))
        assert same == (not set(objects) & set(HELD_OUT))
        assert (everything.caption(index) == some.caption(index)) == same
        changed += not same
    assert changed


def test_the_order_and_repetition_of_held_out_combinations_make_no_difference():
    one, other = source(held_out=HELD_OUT), source(held_out=[*reversed(HELD_OUT), HELD_OUT[0]])
    assert one.fingerprint == other.fingerprint
    assert all(np.array_equal(one.read(i), other.read(i)) for i in range(50))
    assert len({source().fingerprint, one.fingerprint, source(held_out=HELD_OUT[:1]).fingerprint}) == 3


def test_all_combinations_but_one_may_be_held_out():
    everything = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    everything.remove("green cross")
    assert {name for objects in combinations(source(num_objects=2, held_out=everything)) for name in objects} == {"green cross"}
    with pytest.raises(ValueError, match=r"^held_out holds all 30 combinations"):
        source(held_out=[*everything, "green cross"])


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (
            ["red circel"],
            r"^held_out holds red circel, which is not one of the combinations \(did you mean 'red circle'\?\): they are a",
        ),
        (["circle red"], "^held_out holds circle red, which is not one of the combinations"),
        (
            ["zzzz"],
            r"zzzz, which is not one of the combinations: they are a colour \(red, .*\) and a shape \(circle, .*\), such as",
        ),
        ([3], "^held_out holds 3, which is not one of the combinations"),
        ("red circle", r"held_out=red circle must be a list such as '\[red circle,blue square\]'"),
    ],
)
def test_what_is_no_combination_is_refused_with_the_nearest(held_out, words):
    with pytest.raises(ValueError, match=words):
        source(held_out=held_out)


def test_one_object_has_the_colour_of_its_caption():
    images = source(image_size=64)
    for index in range(50):
        ((_, color, _),) = OBJECT.findall(images.caption(index))
        pixels = {tuple(int(v) for v in pixel) for pixel in images.read(index).reshape(3, -1).T}
        assert pixels & {tuple(value) for value in COLORS.values()} == {tuple(COLORS[color])}
        assert tuple(BACKGROUND) in pixels


def test_objects_have_the_area_of_their_shape_and_size():
    areas = {  # in units of the radius squared
        "circle": math.pi,
        "square": 1.7**2,
        "triangle": 0.75 * math.sqrt(3),  # equilateral, inscribed in the circle
        "cross": 2 * 2 * 0.64 - 0.64**2,
        "ring": math.pi * (1 - 0.5**2),
    }
    images = source(image_size=128, num_images=60)
    seen = set()
    for index in range(60):
        ((size, color, shape),) = OBJECT.findall(images.caption(index))
        seen.add((size, shape))
        area = covered(images.read(index), color).sum()
        assert area == pytest.approx(areas[shape] * (SIZES[size] * 128) ** 2, rel=0.02)
    assert len(seen) == 10  # every shape in both sizes


def test_objects_lie_inside_the_image():
    images = source(image_size=[48, 64], num_objects=2)
    for index in range(100):
        image = images.read(index)
        edge = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
        # The anti-aliased border of an object that touches the edge may tint it by half a pixel.
        tinted = np.abs(edge - np.array(BACKGROUND)[:, None]).max(axis=0) / 230
        assert (tinted <= 0.51).all()


def test_two_objects_stand_as_the_caption_says():
    images = source(image_size=64, num_objects=2)
    relations = set()
    for index in range(100):
        (_, first, _), (_, second, _) = OBJECT.findall(images.caption(index))
        if first == second:
            continue
        image = images.read(index).transpose(1, 2, 0)
        (y1, x1), (y2, x2) = (np.argwhere((image == COLORS[color]).all(axis=-1)).mean(axis=0) for color in (first, second))
        if " above " in images.caption(index):
            relations.add("above")
            assert y1 < 32 < y2
        else:
            assert " to the left of " in images.caption(index)
            relations.add("left")
            assert x1 < 32 < x2
    assert relations == {"above", "left"}


def test_grey_images_are_the_luma_of_the_coloured_ones():
    colour, grey = source(num_objects=2), source(num_objects=2, channels=1)
    for index in range(20):
        luma = np.tensordot([0.299, 0.587, 0.114], colour.read(index).astype(float), axes=1)
        assert np.abs(grey.read(index)[0] - luma).max() <= 1.0  # each side rounds once
    assert np.array_equal(colour.labels, grey.labels)


def test_classes_colours_and_sizes_are_balanced():
    images = source(num_images=3000)
    objects = [OBJECT.findall(images.caption(index))[0] for index in range(3000)]
    for position, names in enumerate((tuple(SIZES), tuple(COLORS), SHAPES)):
        share = 1 / len(names)
        for name in names:
            count = sum(found[position] == name for found in objects)
            assert abs(count - 3000 * share) < 5 * math.sqrt(3000 * share * (1 - share))


def test_fingerprint_tells_all_settings_apart_and_repeats():
    variants = [{}, {"seed": 1}, {"num_images": 100}, {"image_size": 64}, {"image_size": [32, 64]}, {"channels": 1}]
    variants.append({"num_objects": 2})
    assert len({source(**variant).fingerprint for variant in variants}) == len(variants)
    assert source().fingerprint == source().fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 4}, r"^channels=4 is not supported by shapes: choose 3 \(colour\) or 1 \(grey\)"),
        ({"num_objects": 0}, r"^num_objects=0 is not supported by shapes: choose 1 or 2"),
        ({"num_objects": 3}, r"^num_objects=3 is not supported by shapes: choose 1 or 2"),
        ({"num_images": 0}, r"^num_images=0 must be 1 or more"),
        ({"image_size": 0}, "image_size=0 is not a size"),
        ({"labels": "color"}, r"^labels=color is not supported by shapes: choose shape or color_shape"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        source(**changes)
