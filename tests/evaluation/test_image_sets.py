"""Where the images of an evaluation come from."""

import numpy as np
import pytest
import torch
from errors import raises

from genimg.data.captions import decode
from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import random_subset
from genimg.errors import ConfigError
from genimg.evaluation.image_sets import (
    DatasetImages,
    FiniteCheck,
    GeneratedImages,
    NonFiniteImagesError,
    Reconstructions,
    Subset,
)
from genimg.methods.base import Method
from genimg.methods.options import NoOptions
from genimg.utils.rng import normal_latents

CPU = torch.device("cpu")
SHAPE = (3, 4, 5)


def array_source(count, labels=None, class_names=()):
    pixels = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return ArrayDataset("array", pixels, labels, class_names)


def dataset(source, *, flip=False):
    return DatasetImages(ImageLoader(source, storage="host", num_workers=0, horizontal_flip=flip, max_corrupt=0, device=CPU))


class Painter(Method):
    """Draws each latent as pixels, ``scale`` of them outside of [-1, 1]; reconstructs images mirrored."""

    sampling_options = NoOptions()

    def before_sampling(self):
        pass

    def check_options(self, options):
        pass

    def __init__(self, scale=0.8, labelled=False, broken=None):
        super().__init__()
        self.scale = scale
        self.labelled = labelled
        self.broken = broken
        self.drawn = []

    def parameter_groups(self):
        return {}

    def step(self, batch, progress, update):
        return {}

    def draw(self, indices, seed):
        assert all(isinstance(index, int) for index in indices)
        self.drawn.append((list(indices), seed))
        batch = {"latent": normal_latents(seed, indices, 60)}
        return batch | ({"label": torch.tensor(indices) % 3} if self.labelled else {})

    def sample(self, batch, options=None):
        images = (batch["latent"] * self.scale).view(-1, *SHAPE)
        return images if self.broken is None else torch.full_like(images, self.broken)

    def encode(self, batch):
        raise NotImplementedError

    def reconstruct(self, batch):
        image = batch["image"]
        self.conditions = {key: value for key, value in batch.items() if key != "image"}
        assert image.dtype == torch.float32
        assert image.min() >= -1.0
        assert image.max() <= 1.0
        return image.flip(-1) if self.broken is None else torch.full_like(image, self.broken)

    def check(self, image):
        pass

    def preview(self, batch, drawn):
        return {}


def expected_levels(images):
    """As a file would hold them."""
    return np.clip(np.rint((images.double().numpy() + 1.0) * 127.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_a_datasets_images_are_its_own_without_augmentation(flip):
    source = array_source(30)
    images = dataset(source, flip=flip)
    assert len(images) == 30
    found, labels = images.images(np.array([4, 0, 29, 4]))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), source.images[[4, 0, 29, 4]])
    assert labels is None
    assert images.class_names == ()
    assert images.describe() == {
        "source": "array",
        "fingerprint": source.fingerprint,
        "image_shape": "3x4x5",
        "augmentation": "none",
    }


def test_a_datasets_labels_come_with_its_images():
    labels = np.array([2, 0, 1, 1, 2], dtype=np.int64)
    images = dataset(array_source(5, labels, ("x", "y", "z")))
    found = images.images(np.array([4, 1, 2]))[1]
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1]
    assert images.class_names == ("x", "y", "z")


def test_a_datasets_fingerprint_follows_its_images():
    one, same, other = array_source(5), array_source(5), array_source(5)
    other.images[3, 0, 0, 0] ^= 1
    other = ArrayDataset("array", other.images)
    assert dataset(one).fingerprint == dataset(same).fingerprint
    assert dataset(one).fingerprint != dataset(other).fingerprint


def test_a_subset_is_a_random_one_of_all_images():
    labels = np.array([0] * 8 + [1] * 4, dtype=np.int64)
    every = dataset(array_source(12, labels, ("a", "b")))
    subset, chosen = Subset(every, 6), random_subset(6, 12, seed=0, labels=labels)
    assert len(subset) == 6
    found, found_labels = subset.images(np.arange(6))
    assert found_labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert torch.equal(found, every.images(chosen)[0])
    assert torch.equal(subset.images(np.array([3, 1]))[0], found[[3, 1]])
    assert subset.class_names == every.class_names
    assert subset.describe() == every.describe() | {"selection": "random, stratified by class"}
    assert Subset(every, 12).describe() == every.describe()
    assert subset.fingerprint is None  # of other images than the whole set, so that it must not name a cache file


@pytest.mark.parametrize("count", [1, 9, 10])
def test_a_subset_of_any_possible_size_holds_distinct_images(count):
    labels = np.arange(10, dtype=np.int64)
    found = Subset(dataset(array_source(10, labels, tuple("abcdefghij"))), count).images(np.arange(count))[1]
    assert len(set(found.tolist())) == count


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_subset_of_more_images_than_there_are_or_of_none_is_refused(count):
    with raises(ConfigError, f"num_images={count}"):
        Subset(dataset(array_source(10)), count)


def test_generated_images_are_rounded_as_when_they_are_saved():
    method = Painter(scale=0.8)
    found, labels = GeneratedImages(method, count=9, seed=3, device=CPU).images(np.arange(9))
    made = method.sample(method.draw(list(range(9)), 3))
    assert (made.abs() > 1.0).any()
    assert np.array_equal(found.numpy(), expected_levels(made))
    assert labels is None


def test_a_generated_image_depends_on_the_seed_and_its_number_alone():
    images = GeneratedImages(Painter(), count=50, seed=3, device=CPU)
    whole = images.images(np.arange(50))[0]
    torch.manual_seed(99)
    assert torch.equal(images.images(np.array([17, 40, 2]))[0], whole[[17, 40, 2]])
    assert not torch.equal(GeneratedImages(Painter(), count=50, seed=4, device=CPU).images(np.arange(50))[0], whole)


def test_generated_images_carry_the_classes_that_were_drawn():
    images = GeneratedImages(Painter(labelled=True), count=9, seed=0, device=CPU, class_names=("x", "y", "z"))
    assert images.images(np.array([5, 0, 7]))[1].tolist() == [2, 0, 1]
    assert images.class_names == ("x", "y", "z")


def test_generated_images_say_what_determines_them():
    images = GeneratedImages(Painter(), count=9, seed=3, device=CPU, weights="ema")
    images.images(np.arange(2))
    assert images.describe() == {
        "source": "model",
        "image_shape": "3x4x5",
        "weights": "ema",
        "mode": "eval",
        "seed": 3,
        "augmentation": "none",
    }
    assert images.fingerprint is None  # a model's images are never cached
    assert len(images) == 9


def test_reconstructions_stand_beside_their_originals():
    source = array_source(12)
    images = Reconstructions(Painter(), dataset(source))
    original, made = images.pairs(np.array([3, 11]))
    assert np.array_equal(original.numpy(), source.images[[3, 11]])
    assert made.dtype == torch.uint8
    assert np.array_equal(made.numpy(), source.images[[3, 11], ..., ::-1])
    images.check()


@pytest.mark.parametrize("keys", [("image",), ("image", "label"), ("image", "caption")])
def test_what_reconstructs_is_given_the_conditions_that_it_reads(keys):
    pixels, labels = array_source(12).images, np.arange(12) % 5
    source = ArrayDataset("array", pixels, labels, "abcde", captions=[f"number {i}" for i in range(12)])
    method = Painter()
    method.batch_keys = keys
    Reconstructions(method, dataset(source)).pairs(np.array([3, 11]))
    assert set(method.conditions) == set(keys) - {"image"}
    if "label" in keys:
        assert method.conditions["label"].tolist() == [3, 1]
    if "caption" in keys:
        assert decode(method.conditions["caption"]) == ["number 3", "number 11"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_no_numbers_are_refused_wherever_a_model_makes_them(broken):
    method = Painter(broken=broken)
    generated = GeneratedImages(method, count=9, seed=0, device=CPU)
    generated.images(np.array([6, 7, 8]))  # does not wait for the device
    with raises(NonFiniteImagesError, word="images"):
        generated.check()
    reconstructions = Reconstructions(method, dataset(array_source(9)))
    reconstructions.pairs(np.array([4, 2]))
    with raises(NonFiniteImagesError, word="model's"):
        reconstructions.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_broken_pixel_is_found_and_its_image_named(value):
    finite = FiniteCheck("x")
    images = torch.zeros(4, *SHAPE)
    finite.add(images, np.array([10, 20, 30, 40]))
    finite.check()
    spoilt = images.clone()
    spoilt[2, 1, 3, 4] = value
    finite.add(images, np.array([50, 60, 70, 80]))
    finite.add(spoilt, np.array([10, 20, 30, 40]))
    with raises(NonFiniteImagesError, word="first"):
        finite.check()
    finite.check()  # it was said
    spoilt[1, 0, 0, 0] = value
    finite.add(spoilt, np.array([10, 20, 30, 40]))
    with raises(ValueError, word="first"):
        finite.check()


def test_values_beyond_the_range_are_not_broken():
    finite = FiniteCheck("x")
    finite.add(torch.full((2, *SHAPE), 1e30), np.arange(2))
    finite.check()


def test_labels_of_generated_images_are_those_of_the_evaluation_and_not_of_the_draw():
    class Told(Painter):
        num_classes, condition_bank_size = 5, 0

        def set_condition_bank(self, batch):
            pass

        def random_labels(self, count, seed):
            return torch.arange(count) // 10 + seed

    images = GeneratedImages(Told(labelled=True), count=30, seed=2, device=CPU)
    assert images.images(np.array([0, 29, 10]))[1].tolist() == [2, 4, 3]
    unlabelled = GeneratedImages(Painter(labelled=True), count=30, seed=2, device=CPU)
    assert unlabelled.images(np.array([4, 29]))[1].tolist() == [1, 2]
