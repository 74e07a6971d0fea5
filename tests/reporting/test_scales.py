"""Ticks and numbers. Takes a moment."""

from __future__ import annotations

import numpy as np
import pytest

from genimg.reporting.scales import images_in_words, log_ticks, nice_ticks, number_in_words, spans_a_decade, thinned


def test_ticks_are_round_evenly_spaced_and_around_the_values() -> None:
    assert nice_ticks(0, 90_000, 6) == pytest.approx([0, 20_000, 40_000, 60_000, 80_000, 100_000])
    for low, high in np.random.default_rng(0).normal(size=(50, 2)).cumsum(axis=1):
        ticks = nice_ticks(min(low, high), max(low, high))
        assert ticks[0] <= min(low, high) + 1e-9
        assert ticks[-1] >= max(low, high) - 1e-9
        assert 2 <= len(ticks) <= 8
        assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert nice_ticks(5, 5)[0] < 5 < nice_ticks(5, 5)[-1]
    assert len(nice_ticks(0, 0)) > 1


def test_logarithmic_ticks_are_around_the_values() -> None:
    for low, high in ((1e-4, 1e-3), (0.3, 20), (1, 1), (2e-9, 3e5), (7, 8)):
        ticks = log_ticks(low, high)
        assert ticks[0] <= low * 1.001
        assert ticks[-1] >= high * 0.999
        assert 2 <= len(ticks) <= 12
        assert ticks == sorted(set(ticks))


def test_numbers_are_short() -> None:
    assert [images_in_words(each) for each in (0, 999, 20_032, 1_500_000)] == ["0", "999", "20.03k", "1.5M"]
    numbers = (0, 28.4859, 0.0001, 0.00001234, 123456.7, 1e9, -3.0, 12.0)
    assert [number_in_words(each) for each in numbers] == ["0", "28.49", "0.0001", "1.23e-5", "123457", "1e9", "-3", "12"]


def test_places_are_spread_with_both_ends() -> None:
    assert thinned(3, 24) == [0, 1, 2]
    places = thinned(100, 24)
    assert (len(places), places[0], places[-1]) == (24, 0, 99)
    assert set(np.diff(places)) <= {4, 5}
    assert thinned(5, 1) == [4]


def test_a_decade_is_a_factor_of_ten_of_positive_numbers() -> None:
    assert spans_a_decade([1e-4, 1e-3])
    assert not spans_a_decade([1e-4, 9e-4])
    assert not spans_a_decade([-1, 100])
    assert not spans_a_decade([0, 100])
