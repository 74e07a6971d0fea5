"""Random subsets: no lattice, exact class shares, nested, the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from errors import raises

from genimg.data.datasets.builtin import ArrayDataset, mnist
from genimg.data.split import without_validation
from genimg.data.subsets import fixed_subset, random_labels, random_order, random_subset, selection, shares, subset_of

FIVE_OF_100 = [49, 54, 55, 58, 63]  # with seed 0


def skewed(total: int = 5000) -> np.ndarray:
    """Classes of 1/2, 1/4, 1/8 ... of the images, in order as those of a folder."""
    labels = np.minimum(-np.log2(1.0 - np.arange(total) / total).astype(np.int64), 6)
    return np.sort(labels)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("period", [2, 3, 10])
@pytest.mark.parametrize(("count", "total"), [(1000, 10_000), (5000, 10_000), (6000, 60_000), (20_000, 60_000)])
def test_a_subset_of_periodic_data_has_each_residue_as_often_as_chance_does(period, count, total, labelled):
    """A lattice, such as every tenth image, takes a single residue or spaces them exactly."""
    labels = np.arange(total) * 7 // total if labelled else None
    for seed in range(3):
        chosen = random_subset(count, total, seed=seed, labels=labels)
        found = np.bincount(chosen % period, minlength=period)
        share = 1.0 / period
        sigma = math.sqrt(count * share * (1.0 - share) * (1.0 - count / total))  # hypergeometric
        assert np.abs(found - count * share).max() < 4.5 * sigma
    spread = [np.bincount(random_subset(count, total, seed=s, labels=labels) % period)[0] for s in range(40)]
    assert 0.6 * sigma < np.std(spread) < 1.5 * sigma  # and varies as chance does, 40 times


def test_gaps_between_chosen_numbers_are_geometric():
    gaps = np.diff(random_subset(10_000, 100_000, seed=0))
    assert np.mean(gaps) == pytest.approx(10.0, rel=0.01)
    assert np.std(gaps) == pytest.approx(math.sqrt(90.0), rel=0.05)
    assert (gaps == 1).mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("labels", [None, skewed()])
@pytest.mark.parametrize("count", [0, 1, 2, 499, 4999, 5000])
def test_numbers_are_distinct_increasing_and_in_range(labels, count):
    chosen = random_subset(count, 5000, seed=1, labels=labels)
    assert chosen.dtype == np.int64
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert ((chosen >= 0) & (chosen < 5000)).all()
    assert count < 5000 or chosen.tolist() == list(range(5000))


def test_a_smaller_choice_is_part_of_every_larger_one():
    labels, before, stratified = skewed(), set(), set()
    for count in (1, 2, 3, 10, 77, 500, 2500, 5000):
        chosen = set(random_subset(count, 5000, seed=2).tolist())
        assert before < chosen
        before = chosen
        chosen = set(random_subset(count, 5000, seed=2, labels=labels).tolist())
        assert len(stratified - chosen) <= 3  # of the last image of a class, whose share was rounded up
        stratified = chosen


@pytest.mark.parametrize("count", [1, 7, 50, 333, 1000, 2500, 4999])
def test_every_class_has_its_share_to_within_one_image(count):
    labels = skewed()
    expected = count * np.bincount(labels) / len(labels)
    found = np.bincount(labels[random_subset(count, len(labels), seed=0, labels=labels)], minlength=len(expected))
    assert np.abs(found - expected).max() < 1.0


def test_equal_classes_are_equal_and_those_of_one_image_are_chosen_by_chance():
    labels = np.arange(1000) % 10
    assert np.bincount(labels[random_subset(250, 1000, seed=0, labels=labels)]).tolist() == [25] * 10
    each_its_own = random_subset(200, 1000, seed=0, labels=np.arange(1000))
    assert np.histogram(each_its_own, bins=4, range=(0, 1000))[0].tolist() == pytest.approx([50] * 4, abs=25)
    assert len(set(np.diff(each_its_own))) > 10


def test_the_choice_is_a_function_of_seed_and_index_and_stays_as_it_is():
    """These numbers are part of what published values mean; they are the same on every platform."""
    assert random_subset(5, 100, seed=0).tolist() == FIVE_OF_100
    assert random_subset(5, 100, seed=1).tolist() != FIVE_OF_100
    assert fixed_subset(5, 100).tolist() == FIVE_OF_100
    # The hash of an image is its own: more images after it change nothing about which of two comes first.
    order = random_order(100, seed=0)
    assert [i for i in random_order(1000, seed=0).tolist() if i < 100] == order.tolist()


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (1, 0)])
def test_more_than_there_are_cannot_be_chosen(count, total):
    with raises(ValueError, word=f"{count} images"):
        random_subset(count, total, seed=0)


@pytest.mark.parametrize("count", [1, 10, 999, 1000, 4096, 5000, 12_345])
def test_labels_have_the_shares_of_the_sizes_in_random_order(count):
    sizes = np.array([600, 0, 300, 90, 9, 1])
    labels = random_labels(count, sizes, seed=3)
    assert (labels.dtype, labels.shape) == (np.int64, (count,))
    found = np.bincount(labels, minlength=6)
    assert np.abs(found - count * sizes / 1000).max() < 1.0
    if count % 1000 == 0:
        assert found.tolist() == (count * sizes // 1000).tolist()
    if count >= 4096:
        halves = np.bincount(labels[: count // 2], minlength=6)[[0, 2, 3]]
        assert (np.abs(halves - found[[0, 2, 3]] / 2) < 4 * np.sqrt(found[[0, 2, 3]] / 4)).all()
        assert abs(np.corrcoef(labels[1:], labels[:-1])[0, 1]) < 4 / math.sqrt(count)
        assert not np.array_equal(labels, random_labels(count, sizes, seed=4))


def test_shares_are_those_of_the_largest_remainders():
    """Balinski & Young 1982: quotas 3.6, 2.8, 2.2, 1.4 of 10, whose largest remainders are those of b and a."""
    assert shares(10, np.array([36, 28, 22, 14]), seed=0).tolist() == [4, 3, 2, 1]
    assert shares(0, np.array([3, 1]), seed=0).tolist() == [0, 0]
    assert shares(4 * 10**9, np.array([10**12, 3 * 10**12]), seed=0).tolist() == [10**9, 3 * 10**9]  # without overflow
    # One large class among many of one image: it keeps its quota, and chance decides among the others.
    found = shares(475, np.array([900] + [1] * 100), seed=0)
    assert found[0] in (427, 428)
    assert found[1:].max() == 1
    assert found.sum() == 475
    assert shares(475, np.array([900] + [1] * 100), seed=1).tolist() != found.tolist()


def test_a_source_gives_its_labels_and_all_of_its_images_where_it_has_fewer():
    labels = skewed(500)
    source = ArrayDataset("array", np.zeros((500, 1, 2, 2), dtype=np.uint8), labels, tuple("abcdefg"))
    assert subset_of(source, 40).tolist() == random_subset(40, 500, seed=0, labels=labels).tolist()
    assert subset_of(source, 10_000).tolist() == list(range(500))
    assert selection(40, 500) == {"selection": "random, stratified by class"}
    assert selection(500, 500) == {}


@pytest.mark.real_data
def test_the_mean_level_of_a_part_of_mnist_is_that_of_the_whole(real_mnist_root: Path):
    """Its training file alternates two sources, whose mean levels are 31.3 and 35.3."""
    whole = mnist(root=str(real_mnist_root), split="train", image_size=28, channels=1, fit="stretch")
    assert isinstance(whole, ArrayDataset)
    levels = whole.images.mean(axis=(1, 2, 3))
    assert abs(levels[::2].mean() - levels[1::2].mean()) > 3.5
    held_out = without_validation(whole, 0.1).validation
    assert isinstance(held_out, ArrayDataset)
    for part in (
        held_out.images.mean(axis=(1, 2, 3)),
        levels[subset_of(whole, 5000)],
        levels[random_subset(2000, 60_000, seed=1)],
    ):
        error = levels.std() / math.sqrt(len(part))
        assert abs(part.mean() - levels.mean()) < 2.5 * error
        assert 0.05 * error < 0.2  # a lattice is 2 levels away
