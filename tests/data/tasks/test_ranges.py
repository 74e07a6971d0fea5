import math

import numpy as np
import pytest
from errors import raises
from omegaconf import OmegaConf
from scipy import stats

from genimg.data.tasks.ranges import checked_range, drawn, drawn_integers
from genimg.utils.rng import Stream


@pytest.mark.parametrize(("value", "bounds"), [(2, (2, 2)), ([1, 2.5], (1, 2.5)), (OmegaConf.create([0, 3]), (0, 3))])
def test_a_setting_is_a_number_or_a_range(value, bounds):
    assert checked_range("amount", value, 0, 3, above=True) == bounds


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "must be more than 0 and at most 3"),
        (3.1, "must be more than 0 and at most 3"),
        (math.nan, "must be more than 0"),
        ([2, 1], "in ascending order"),
        ([1, 4], "must be more than 0 and at most 3, in ascending order"),
        ([1, 1], "is not a range: set amount=1"),
        ([1], r"must be a number, or \[low, high\]"),
        ([1, None], r"must be a number, or \[low, high\]"),
        ("ab", r"must be a number, or \[low, high\]"),
        (None, r"must be a number, or \[low, high\]"),
    ],
)
def test_anything_else_is_refused(value, words):
    with raises(ValueError, "amount"):
        checked_range("amount", value, 0, 3, above=True)


def test_numbers_are_uniform_in_the_range_and_depend_on_the_keys():
    numbers = drawn((2.0, 5.0), 7, Stream.MASK, np.arange(5000))
    assert stats.kstest(numbers, stats.uniform(2, 3).cdf).pvalue > 1e-3
    assert drawn((2.0, 5.0), 7, Stream.MASK, np.array([4999]))[0] == numbers[-1]
    assert (drawn((2.0, 2.0), 7, Stream.MASK, np.arange(5)) == 2).all()


def test_integers_include_both_ends():
    numbers, counts = np.unique(drawn_integers((2, 5), 7, Stream.MASK, np.arange(8000)), return_counts=True)
    assert numbers.tolist() == [2, 3, 4, 5]
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(8000 * 3 / 16)
