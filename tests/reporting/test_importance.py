"""Shares of variance against scipy and by hand. Takes two seconds, for scipy's import."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from genimg.reporting.importance import caution, eta_squared, importances, noise_floor, spearman


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


def test_keys_are_ordered_by_what_they_explain_and_failed_jobs_do_not_count() -> None:
    swept = {"loss": ["a", "a", "b", "b", "c"], "lr": [0.1, 0.2, 0.1, 0.2, 0.1]}
    found = importances(swept, [1.0, 2.0, 11.0, 12.0, None])
    assert [each.key for each in found] == ["loss", "lr"]
    assert found[0].share == pytest.approx(100 / 101)
    assert found[1].share == pytest.approx(1 / 101)
    assert found[0].groups == [("a", 2, 1.5), ("b", 2, 11.5)]
    assert found[0].chance == pytest.approx(1 / 3)
    assert not found[0].by_rank


def test_many_numbers_are_compared_by_their_order() -> None:
    rates: list[str | float | int | bool | None] = [float(10.0**-k) for k in range(7)]
    values = [math.exp(k) for k in range(7)]
    found = importances({"lr": rates}, values)
    assert found[0].by_rank
    assert found[0].share == pytest.approx(1.0)
    assert found[0].chance == pytest.approx(1 / 6)


def test_chance_is_the_mean_share_of_a_key_without_influence() -> None:
    numbers, settings = np.random.default_rng(0), ["a", "a", "b", "b", "c", "c"]
    shares = [importances({"x": settings}, numbers.normal(size=6).tolist())[0] for _ in range(2000)]
    assert np.mean([each.share for each in shares]) == pytest.approx(shares[0].chance, abs=0.02)


def test_a_key_without_a_second_value_among_the_measured_jobs_is_left_out() -> None:
    assert importances({"loss": ["a", "a", "b"]}, [1.0, 2.0, None]) == []
    assert importances({}, [1.0]) == []


def test_the_noise_floor_is_the_pooled_spread_between_seeds() -> None:
    swept = {"lr": [1, 1, 1, 2, 2, 3], "seed": [0, 1, 2, 0, 1, 0]}
    values = [1.0, 2.0, 3.0, 10.0, 14.0, 99.0]
    expected = math.sqrt((2 * np.var([1, 2, 3], ddof=1) + np.var([10, 14], ddof=1)) / 3)
    found = noise_floor(swept, values)
    assert found == (pytest.approx(expected), 5)
    assert noise_floor({"lr": [1, 2]}, [1.0, 2.0]) is None
    assert noise_floor({"lr": [1, 2], "seed": [0, 1]}, [1.0, 2.0]) is None


def test_few_jobs_are_said_to_be_few() -> None:
    two = importances({"x": ["a", "b"]}, [1.0, 2.0])
    assert "nothing can be said" in caution(two, 2)
    single = importances({"x": ["a", "b", "c", "d"]}, [1.0, 2.0, 3.0, 4.0])
    assert "No setting was run twice" in caution(single, 4)
    six = importances({"x": ["a", "a", "b", "b", "c", "c"]}, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert "too few to be sure" in caution(six, 6)
    assert "chance" in caution(six, 20)
