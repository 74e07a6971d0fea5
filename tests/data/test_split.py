import numpy as np
import pytest
from errors import raises

from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.split import Subset, at_most, without_validation
from genimg.data.subsets import fixed_subset, random_subset
from genimg.data.tasks.base import Pair
from genimg.errors import ConfigError


class Listed(ImageDataset):
    """Image i is plain, of level i; with classes in order, as of a folder, and captions."""

    captioned = True

    def __init__(self, count: int, num_classes: int = 4) -> None:
        self.name = "listed"
        self.shape = (2, 2, 3)
        self.labels = np.arange(count, dtype=np.int64) * num_classes // count
        self.class_names = tuple("abcdefgh"[:num_classes])
        self.task = Pair(source_channels=1)
        self.fingerprint = f"listed {count}"
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> np.ndarray:
        assert 0 <= index < self._count
        return np.full(self.shape, index, dtype=np.uint8)

    def caption(self, index: int) -> str | None:
        return None if index == 5 else f"number {index}"


def in_memory(count: int) -> ArrayDataset:
    source = Listed(count)
    images = source.read_many(np.arange(count))
    array = ArrayDataset("listed", images, source.labels, source.class_names, source.captions(np.arange(count)))
    array.task = source.task
    return array


HELD_OUT = random_subset(6, 24, seed=0, labels=Listed(24).labels).tolist()


def levels(source: ImageDataset) -> list[int]:
    images = source.read_many(np.arange(len(source)))
    assert all(np.array_equal(images[i], source.read(i)) for i in range(len(source)))
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("make", [Listed, in_memory])
@pytest.mark.parametrize(
    ("count", "share", "held_out"),
    [(100, 0.1, 10), (100, 0.25, 25), (24, 0.25, 6), (10, 0.2, 2), (7, 0.5, 4), (11, 0.8, 9), (97, 0.03, 3)],
)
def test_the_share_is_kept_out_by_chance_and_the_rest_is_what_is_trained_on(make, count, share, held_out):
    training = without_validation(make(count), share)
    assert training.validation is not None
    kept, out = levels(training), levels(training.validation)
    assert len(out) == len(training.validation) == held_out
    assert kept == sorted(kept)
    assert sorted(kept + out) == list(range(count))
    assert out == random_subset(held_out, count, seed=0, labels=Listed(count).labels).tolist()
    classes = np.bincount(training.validation.labels, minlength=4)
    assert np.abs(classes - held_out * np.bincount(Listed(count).labels) / count).max() < 1.0


@pytest.mark.parametrize("make", [Listed, in_memory])
def test_labels_captions_classes_and_the_task_follow_their_images(make):
    source = make(24)
    training = without_validation(source, 0.25)
    for part in (training, training.validation):
        own = levels(part)
        assert part.labels.dtype == np.int64
        assert part.labels.tolist() == [level // 6 for level in own]
        assert set(part.labels.tolist()) == {0, 1, 2, 3}
        expected = [None if level == 5 else f"number {level}" for level in own]
        assert part.captions(np.arange(len(part))) == expected
        assert [part.caption(i) for i in range(len(part))] == expected
        assert part.captioned
        assert part.class_names == source.class_names
        assert part.task is source.task
        assert part.shape == source.shape
        assert part.name == source.name
        assert part.validation is (training.validation if part is training else None)


@pytest.mark.parametrize("make", [Listed, in_memory])
def test_every_part_has_a_fingerprint_of_its_own(make):
    whole = make(24)
    parts = [without_validation(whole, share) for share in (0.25, 0.5)]
    prints = [whole.fingerprint, *(each.fingerprint for each in parts), *(each.validation.fingerprint for each in parts)]
    assert len(set(prints)) == 5
    again = without_validation(make(24), 0.25)
    assert [again.fingerprint, again.validation.fingerprint] == [parts[0].fingerprint, parts[0].validation.fingerprint]


def test_images_in_memory_stay_there():
    training = without_validation(in_memory(24), 0.25)
    assert isinstance(training, ArrayDataset)
    assert isinstance(training.validation, ArrayDataset)
    assert not isinstance(without_validation(Listed(24), 0.25), ArrayDataset)


def test_what_has_neither_labels_nor_captions_gets_none():
    training = without_validation(ArrayDataset("plain", in_memory(8).images), 0.25)
    for part in (training, training.validation):
        assert part.labels is None
        assert not part.captioned


def test_only_what_is_read_is_decoded():
    source = Listed(24)
    read = []
    source.read = lambda index: read.append(index) or np.zeros(source.shape, dtype=np.uint8)
    training = without_validation(source, 0.25)
    assert read == []
    training.validation.read(1)
    training.read(0)
    assert read == [HELD_OUT[1], min(set(range(24)) - set(HELD_OUT))]


@pytest.mark.parametrize("share", [0, 0.0])
def test_a_share_of_nothing_leaves_the_source_as_it_is(share):
    source = Listed(24)
    assert without_validation(source, share) is source
    source.validation = Listed(3)
    assert without_validation(source, share).validation is source.validation


@pytest.mark.parametrize("share", [1, 1.5, -0.1, float("nan"), None, "a tenth"])
def test_a_share_that_is_none_is_refused(share):
    with raises(ConfigError, f"validation={share}"):
        without_validation(Listed(24), share)


@pytest.mark.parametrize(
    ("count", "share", "words"),
    [
        (24, 0.02, "leaves 0 for validation and 24"),
        (24, 0.04, "leaves 1 for validation and 23"),
        (8, 0.9, "leaves 7 .* and 1 "),
    ],
)
def test_fewer_than_two_images_on_a_side_are_refused(count, share, words):
    with raises(ConfigError, f"validation={share}"):
        without_validation(Listed(count), share)
    assert len(without_validation(Listed(24), 0.07).validation) == 2


def test_two_kinds_of_validation_are_refused():
    source = Listed(24)
    source.validation = Listed(3)
    with raises(ConfigError, "validation=0.25"):
        without_validation(source, 0.25)


def test_unpaired_domains_are_divided_each_by_itself():
    """As items, an image of the smaller domain would be on both sides."""
    source = UnpairedDataset(in_memory(8), Listed(24))
    training = without_validation(source, 0.25)
    assert isinstance(training, UnpairedDataset)
    assert isinstance(training.validation, UnpairedDataset)
    assert (len(training.a), len(training.b)) == (6, 18)
    for part, whole in ((training.a, 8), (training.b, 24)):
        assert not set(levels(part)) & set(levels(part.validation))
        assert sorted(levels(part) + levels(part.validation)) == list(range(whole))
    assert levels(training.validation.a) == levels(training.a.validation)
    assert levels(training.validation.b) == HELD_OUT
    with raises(ConfigError, "validation", word="images"):
        without_validation(source, 0.1)


# A smaller number of training images


@pytest.mark.parametrize("make", [Listed, in_memory])
@pytest.mark.parametrize("count", [8, 10, 23])
def test_at_most_so_many_images_are_a_fixed_part_stratified_by_class(make, count):
    whole = make(24)
    part = at_most(whole, count)
    expected = fixed_subset(count, 24, Listed(24).labels).tolist()
    assert levels(part) == expected
    assert len(part) == count
    assert part.part_of == 24
    assert part.labels.tolist() == [label * 4 // 24 for label in expected]
    assert part.class_names == whole.class_names
    assert part.captions(np.arange(count)) == [whole.caption(i) for i in expected]
    assert part.task is whole.task
    assert part.fingerprint not in (whole.fingerprint, at_most(whole, count - 1).fingerprint)
    assert part.fingerprint == at_most(make(24), count).fingerprint
    sizes = np.bincount(part.labels, minlength=4)
    assert sizes.max() - sizes.min() <= 1


def test_a_smaller_part_belongs_to_a_larger_one_without_labels():
    whole = Listed(40, num_classes=1)
    whole.labels, whole.class_names = None, ()
    parts = [set(levels(at_most(whole, count))) for count in (5, 10, 30)]
    assert parts[0] < parts[1] < parts[2]


@pytest.mark.parametrize("make", [Listed, in_memory])
def test_the_images_for_validation_do_not_depend_on_the_number_of_training_images(make):
    split = without_validation(make(24), 0.25)
    part = at_most(split, 9)
    assert part.validation is split.validation
    assert levels(part.validation) == HELD_OUT
    assert not set(levels(part)) & set(HELD_OUT)
    assert part.part_of == 18
    if isinstance(part, Subset):  # read at once, not through the other subset
        assert isinstance(part.whole, Listed)


@pytest.mark.parametrize("count", [None, 24])
def test_all_images_are_the_dataset_itself(count):
    whole = Listed(24)
    assert at_most(whole, count) is whole
    assert whole.part_of is None


def test_more_images_than_there_are_have_no_effect():
    with raises(ConfigError, "max_images=25", word="24 images"):
        at_most(Listed(24), 25)


def test_each_domain_of_unpaired_data_has_so_many_images():
    part = at_most(UnpairedDataset(Listed(24), Listed(12)), 15)
    assert (len(part.a), len(part.b), part.part_of) == (15, 12, 24)
