"""Distances by class: those of an evaluation of each class alone."""

import numpy as np
import pytest
import torch
from errors import raises
from test_evaluator import CPU, NUM_CLASSES, SHAPE, LabelledPainter, data_of, dataset, frechet_distance_of_scipy, make_evaluator

from genimg.data.datasets.builtin import ArrayDataset
from genimg.errors import ConfigError, DataError
from genimg.evaluation.image_sets import ClassImages, DatasetImages, GeneratedImages, Subset
from genimg.evaluation.per_class import check_classes, class_distances

NAMES = tuple("abcdefgh"[:NUM_CLASSES])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))


def labelled(seed, labels, names=NAMES):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), *SHAPE), dtype=np.uint8)
    return DatasetImages(data_of(ArrayDataset(f"array {seed}", pixels, labels=np.asarray(labels), class_names=names)))


def balanced(seed, count):
    return labelled(seed, np.arange(count) % NUM_CLASSES)


def test_each_distance_is_that_of_an_evaluation_of_the_class_alone():
    real, fake = balanced(1, 90), balanced(2, 60)
    evaluator = make_evaluator()
    found = class_distances(evaluator, real, fake, CPU)
    assert [each.label for each in found] == list(range(NUM_CLASSES))
    for each in found:
        alone = []
        for images in (real, fake):
            chosen = np.flatnonzero(images.labels == each.label)
            pixels = images.images(chosen)[0].numpy()
            alone.append(DatasetImages(data_of(ArrayDataset(f"{len(pixels)} of {each.label}", pixels))))
        values = make_evaluator().compare(*alone, CPU).values
        (name,) = (name for name in values if name.startswith("fd"))
        assert each.name == f"{name}_class{each.label}"
        assert each.value == pytest.approx(values[name], rel=1e-9)
        features = [evaluator.extractor(side.images(np.arange(len(side)))[0])[0].double() for side in alone]
        assert each.value == pytest.approx(frechet_distance_of_scipy(*features), rel=1e-4)
        assert (each.num_real, each.num_generated) == tuple(map(len, alone))
        assert each.class_name == NAMES[each.label]


def test_neither_the_batch_size_nor_the_cache_changes_a_distance():
    real, fake = balanced(1, 90), balanced(2, 60)
    values = [
        [each.value for each in class_distances(make_evaluator(batch_size=size), real, fake, CPU)] for size in (7, 30, 30)
    ]
    assert values[1] == values[2]  # the second time from the cache
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    chosen = class_distances(make_evaluator(num_real=60), real, fake, CPU)
    assert sum(each.num_real for each in chosen) == 60
    assert [each.value for each in chosen] != values[1]


def test_a_class_of_a_subset_keeps_its_images():
    images = balanced(1, 90)
    part = Subset(images, 30)
    assert np.array_equal(part.labels, images.labels[images.subset(30)])
    one = ClassImages(part, 2)
    pixels, labels = one.images(np.arange(len(one)))
    assert labels.eq(2).all()
    assert torch.equal(pixels, part.images(np.flatnonzero(part.labels == 2))[0])
    assert one.fingerprint is None
    fingerprints = {ClassImages(images, label).fingerprint for label in range(NUM_CLASSES)} | {images.fingerprint}
    assert len(fingerprints) == NUM_CLASSES + 1


def test_images_without_labels_or_of_other_classes_are_refused():
    real = balanced(1, 30)
    with raises(ConfigError, "per_class", word="array 5"):
        check_classes(real, dataset(30, 5))
    with raises(ConfigError, "per_class"):
        check_classes(real, labelled(2, np.arange(30) % 2, ("x", "y")))
    with raises(DataError, "per_class", word=NAMES[0]):
        class_distances(make_evaluator(), real, labelled(2, [0, *([1, 2] * 10)]), CPU)
    unlabelled = GeneratedImages(LabelledPainter(), count=8, seed=0, device=CPU)  # whose labels are not known in advance
    with raises(ConfigError, "per_class"):
        check_classes(real, unlabelled)
