"""Shares of variance against scipy and by hand. Takes two seconds, for scipy's import."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from genimg.reporting.importance import eta_squared, importances, spearman

LOSSES = ["a", "a", "a", "b", "b", "b", "c", "c", "c"]
VALUES = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0, 1.0, 2.0, 3.0]


def test_eta_squared_by_hand_and_by_scipys_f() -> None:
    assert eta_squared([[1.0, 3.0], [5.0, 7.0]]) == pytest.approx(16 / 20)  # means 2, 6 around 4: 4 x 4 of 9+1+1+9
    groups = [list(np.random.default_rng(number).normal(number, 2, 5 + number)) for number in range(4)]
    total = sum(map(len, groups))
    f = stats.f_oneway(*groups).statistic
    assert eta_squared(groups) == pytest.approx(f * 3 / (f * 3 + total - 4), rel=1e-12)
    assert eta_squared([[2.0, 2.0], [2.0]]) == 0.0
    assert eta_squared([[1.0], [2.0]]) == 1.0


def test_the_rank_correlation_is_scipys_with_ties() -> None:
    numbers = np.random.default_rng(0)
    x, y = numbers.integers(0, 6, 30).astype(float).tolist(), numbers.normal(size=30).round(1).tolist()
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert spearman([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_keys_are_ordered_by_what_they_explain_and_failed_runs_do_not_count() -> None:
    swept = {"lr": [0.1, 0.2, 0.3] * 3 + [0.1], "loss": [*LOSSES, "d"], "seed": [0, 1, 2] * 3 + [0]}
    found = importances(swept, [*VALUES, None])
    assert [each.key for each in found] == ["loss", "lr"]
    assert found[0].share == pytest.approx(200 / 206)  # 200 between the means, 6 within
    assert found[0].groups == [("a", 3, 2.0), ("b", 3, 12.0), ("c", 3, 2.0)]
    assert found[0].chance == pytest.approx(2 / 8)


def test_many_numbers_are_compared_by_their_order() -> None:
    rates: list[str | float | int | bool | None] = [float(10.0**-k) for k in range(8)]
    found = importances({"lr": rates}, [math.exp(k) for k in range(8)])
    assert found[0].share == pytest.approx(1.0)
    assert found[0].chance == pytest.approx(1 / 7)


def test_chance_is_the_mean_share_of_a_key_without_influence() -> None:
    numbers = np.random.default_rng(0)
    shares = [importances({"x": LOSSES}, numbers.normal(size=9).tolist())[0] for _ in range(2000)]
    assert np.mean([each.share for each in shares]) == pytest.approx(shares[0].chance, abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        ["a", "b"] * 4,  # two values
        ["a", "b", "c", "a", "b", "c", "a"],  # seven runs
        ["a", "b", "c", "d", "e", "f", "g", "h"],  # a run for each value
        [1, 2, 3, 4, 5, 1, 2, 3],  # fewer than two runs for each of six numbers or fewer
    ],
)
def test_a_key_with_too_few_values_or_runs_is_not_judged(settings: list[str | float | int | bool | None]) -> None:
    assert importances({"x": settings}, [float(number) for number in range(len(settings))]) == []
