"""Estimate how important the hyperparameters of a sweep are, and how reliable the estimate is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from genimg.reporting.settings import Setting, in_words, is_number

_MOST_GROUPS = 6  # most distinct numbers compared as groups; more are compared by rank
_FEW_JOBS = 8


@dataclass(frozen=True)
class Importance:
    """The share of a metric's variance that one key explains alone.

    Attributes:
        key: The swept key.
        share: Eta squared or the squared rank correlation, between 0 and 1.
        by_rank: Whether ``share`` is the rank correlation.
        chance: Mean share of a key without influence, for the same numbers of jobs and settings.
        groups: (setting, number of jobs, mean of the metric), in the order of the settings.
    """

    key: str
    share: float
    by_rank: bool
    chance: float
    groups: list[tuple[str, int, float]]


def importances(swept: Mapping[str, Sequence[Setting]], values: Sequence[float | None]) -> list[Importance]:
    """Return the importance of each swept key that differs among the measured runs, most important first.

    Args:
        swept: Settings of all runs by key.
        values: Metric of each run; None for runs without a value.
    """
    measured = [place for place, value in enumerate(values) if value is not None]
    found = []
    for key, settings in swept.items():
        pairs = [(settings[place], value) for place in measured if (value := values[place]) is not None]
        if len({in_words(setting) for setting, _ in pairs}) > 1:
            found.append(_importance(key, pairs))
    return sorted(found, key=lambda each: -each.share)


def _importance(key: str, pairs: Sequence[tuple[Setting, float]]) -> Importance:
    groups: dict[str, list[float]] = defaultdict(list)
    for setting, value in sorted(pairs, key=lambda pair: _order(pair[0])):
        groups[in_words(setting)].append(value)
    shown = [(name, len(members), fmean(members)) for name, members in groups.items()]
    if len(groups) > _MOST_GROUPS and all(is_number(setting) for setting, _ in pairs):
        share = spearman([float(setting) for setting, _ in pairs], [value for _, value in pairs]) ** 2  # type: ignore[arg-type]
        return Importance(key, share, True, 1.0 / (len(pairs) - 1), shown)
    chance = min(1.0, (len(groups) - 1) / (len(pairs) - 1))
    return Importance(key, eta_squared(list(groups.values())), False, chance, shown)


def eta_squared(groups: Sequence[Sequence[float]]) -> float:
    """Return the between-group sum of squares over the total sum of squares; 0 if all values are equal."""
    everything = [value for group in groups for value in group]
    mean = fmean(everything)
    total = math.fsum((value - mean) ** 2 for value in everything)
    between = math.fsum(len(group) * (fmean(group) - mean) ** 2 for group in groups)
    return min(1.0, between / total) if total > 0 else 0.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation, with ties at their mean rank; 0 if ``x`` or ``y`` is constant."""
    a, b = _ranks(x), _ranks(y)
    mean = (len(a) + 1) / 2
    product = math.fsum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    size = math.sqrt(math.fsum((p - mean) ** 2 for p in a) * math.fsum((q - mean) ** 2 for q in b))
    return product / size if size > 0 else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(order, start=1)))}
    last = {value: place for place, value in enumerate(order, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def noise_floor(swept: Mapping[str, Sequence[Setting]], values: Sequence[float | None]) -> tuple[float, int] | None:
    """Return the standard deviation between runs that differ only in their seed, pooled over settings.

    Returns:
        Standard deviation and number of runs it is computed from; None if no setting was run with two seeds.
    """
    if "seed" not in swept:
        return None
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for place, value in enumerate(values):
        if value is not None:
            groups[tuple(in_words(settings[place]) for key, settings in swept.items() if key != "seed")].append(value)
    repeated = [group for group in groups.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if not freedom:
        return None
    return math.sqrt(sum((len(g) - 1) * variance(g) for g in repeated) / freedom), sum(map(len, repeated))


def caution(found: Sequence[Importance], num_jobs: int) -> str:
    """Return a sentence on how reliable the shares are."""
    if num_jobs < 3 or not found:
        return f"With {num_jobs} measured job{'s' * (num_jobs != 1)} nothing can be said about which setting mattered."
    if all(max(count for _, count, _ in each.groups) < 2 for each in found if not each.by_rank) and not all(
        each.by_rank for each in found
    ):
        return "No setting was run twice: a key with one job a value explains everything by itself, which says nothing."
    if num_jobs < _FEW_JOBS:
        return (
            f"{num_jobs} measured jobs are too few to be sure: take these shares as hints, and look at how far each exceeds "
            "what chance alone would give."
        )
    return (
        "A share far above what chance alone would give points to a setting that mattered; shares need not add up to 100 %, "
        "because settings can work together."
    )


def _order(setting: Setting) -> tuple[int, float, str]:
    return (0, float(setting), "") if is_number(setting) else (1, 0.0, in_words(setting))  # type: ignore[arg-type]
