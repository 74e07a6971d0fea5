"""Numbers and settings as text. Takes a moment."""

from __future__ import annotations

import numpy as np

from genimg.reporting.runs import Value
from genimg.reporting.text import format_images, format_number, format_setting, format_value, thinned


def test_numbers_are_short() -> None:
    assert [format_images(each) for each in (0, 999, 20_032, 1_500_000, None)] == ["0", "999", "20.03k", "1.5M", "—"]
    numbers = (0, 28.4859, 0.0001, 0.00001234, 123456.7, 1e9, -3.0, 12.0)
    assert [format_number(each) for each in numbers] == ["0", "28.49", "0.0001", "1.23e-5", "123457", "1e9", "-3", "12"]
    assert format_value(Value(28.4859, 27.91, 29.14)) == "28.49 [27.91, 29.14]"
    assert format_value(Value(0.5, deviation=0.1234)) == "0.5 (sd 0.12)"


def test_settings_are_written_as_in_a_config() -> None:
    words = [format_setting(each) for each in (None, True, 1e-4, 3, [1, 2.5], "x")]
    assert words == ["null", "true", "0.0001", "3", "[1, 2.5]", "x"]


def test_places_are_spread_with_both_ends() -> None:
    assert thinned(3, 24) == [0, 1, 2]
    places = thinned(100, 24)
    assert (len(places), places[0], places[-1]) == (24, 0, 99)
    assert set(np.diff(places)) <= {4, 5}
