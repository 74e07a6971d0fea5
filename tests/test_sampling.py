"""The samples of slow tables cover what they promise."""

from __future__ import annotations

from itertools import product

import pytest
from sampling import covering, sampled

pytest_plugins = ["pytester"]
ROWS = list(product("abc", (1, 2, 3), (True, False)))


@pytest.mark.parametrize(("strength", "fewest"), [(1, 3), (2, 9), (3, 18)])
def test_a_sample_has_every_value_or_pair_of_values_and_few_rows(strength: int, fewest: int) -> None:
    chosen = [ROWS[place] for place in covering(ROWS, lambda row: row, strength)]
    assert fewest <= len(chosen) <= fewest + 1
    assert chosen == sorted(chosen, key=ROWS.index)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        of_all, of_chosen = ({(row[first], row[second]) for row in rows} for rows in (ROWS, chosen))
        assert strength == 1 or of_chosen == of_all
    assert all({row[column] for row in chosen} == {row[column] for row in ROWS} for column in range(3))


def test_rows_beyond_the_sample_are_kept_and_marked() -> None:
    rows = sampled([("a", 1), ("a", 2), ("b", 2), ("b", 1)], lambda row: row)
    assert [getattr(row, "values", row) for row in rows] == [("a", 1), ("a", 2), ("b", 2), ("b", 1)]
    assert [hasattr(row, "marks") for row in rows] == [False, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [([], 2), (["--all"], 4), (["test_table.py::test_number[1]"], 1), (["test_table.py::test_number"], 2)],
)
def test_rows_beyond_the_sample_run_with_all_or_by_their_name(
    arguments: list[str], passed: int, pytester: pytest.Pytester, request: pytest.FixtureRequest
) -> None:
    pytester.makeconftest((request.config.rootpath / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = exhaustive: needs --all")
    pytester.makepyfile(
        test_table="""
        import pytest
        from sampling import sampled

        @pytest.mark.parametrize("number", sampled(range(4), lambda number: [number // 2]))
        def test_number(number):
            assert number < 4
        """
    )
    pytester.runpytest(*arguments).assert_outcomes(passed=passed)
