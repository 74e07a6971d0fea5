"""Samples of slow tables: a covering part of the rows runs by default, every row with ``--all``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest


def covering(rows: Sequence[Any], columns: Callable[[Any], Iterable[Hashable]], strength: int = 1) -> list[int]:
    """Return the positions of rows that together contain every value of every column.

    Each choice is the row that adds most, and the first of equals, so all processes of a test run choose the same rows.

    Args:
        rows: Rows of a table.
        columns: Function that returns what a row exercises, one value per column.
        strength: Number of columns whose values must occur together: 1 covers every value, 2 every pair of values.
    """
    found = [set(combinations(enumerate(columns(row)), strength)) for row in rows]
    missing = set().union(*found)
    chosen = []
    while missing:
        best = max(range(len(rows)), key=lambda row: len(found[row] & missing))
        missing -= found[best]
        chosen.append(best)
    return sorted(chosen)


def sampled(rows: Iterable[Any], columns: Callable[[Any], Iterable[Hashable]], strength: int = 1) -> list[Any]:
    """Return the rows of a slow table for ``pytest.mark.parametrize``; those beyond the covering sample need ``--all``.

    Args:
        rows: Rows of the table: tuples of arguments, or single arguments.
        columns: Function that returns what a row exercises, one value per column.
        strength: Number of columns whose values must occur together in the sample.
    """
    table = list(rows)
    chosen = covering(table, columns, strength)
    return [row if place in chosen else only_with_all(row) for place, row in enumerate(table)]


def only_with_all(row: Any) -> Any:
    """Return a row for ``pytest.mark.parametrize`` that needs ``--all``."""
    return pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.exhaustive)
