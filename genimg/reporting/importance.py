"""Estimate how much of a metric's variance each setting of a sweep explains alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean

import numpy as np

from genimg.reporting.settings import Setting, is_number
from genimg.reporting.text import format_setting

_MIN_VALUES = 3
_MIN_RUNS = 8
_MAX_GROUPS = 6  # maximum number of distinct numbers compared as groups; more are compared by rank
RULE = (
    f"A setting is listed only if it took at least {_MIN_VALUES} different values in at least {_MIN_RUNS} measured runs. There "
    f"must also be two runs per value, unless there are more than {_MAX_GROUPS} values and all are numbers: these are compared "
    "by their order."
)


@dataclass(frozen=True)
class Importance:
    """The share of a metric's variance that one key explains alone.

    Attributes:
        key: The swept key.
        share: Eta squared or the squared rank correlation, between 0 and 1.
        chance: Mean share of a key without influence, for the same numbers of runs and settings.
        groups: (setting, number of runs, mean of the metric), in the order of the settings.
    """

    key: str
    share: float
    chance: float
    groups: list[tuple[str, int, float]]


def importances(swept: Mapping[str, Sequence[Setting]], values: Sequence[float | None]) -> list[Importance]:
    """Return the importance for ``values`` of each swept key that meets ``RULE``, except the seed, most important first."""
    found = []
    for key, settings in swept.items():
        pairs = [(setting, value) for setting, value in zip(settings, values, strict=True) if value is not None]
        pairs.sort(key=lambda pair: (not is_number(pair[0]), pair[0] if is_number(pair[0]) else format_setting(pair[0])))
        groups: dict[str, list[float]] = defaultdict(list)
        for setting, value in pairs:
            groups[format_setting(setting)].append(value)
        numbers = [float(setting) for setting, _ in pairs if is_number(setting)]
        by_rank = len(groups) > _MAX_GROUPS and len(numbers) == len(pairs)
        enough = len(groups) >= _MIN_VALUES and len(pairs) >= _MIN_RUNS and (by_rank or len(pairs) >= 2 * len(groups))
        if key == "seed" or not enough:
            continue
        share = spearman(numbers, [value for _, value in pairs]) ** 2 if by_rank else eta_squared(list(groups.values()))
        chance = (1 if by_rank else len(groups) - 1) / (len(pairs) - 1)
        found.append(Importance(key, share, chance, [(name, len(own), fmean(own)) for name, own in groups.items()]))
    return sorted(found, key=lambda each: -each.share)


def eta_squared(groups: Sequence[Sequence[float]]) -> float:
    """Return the between-group sum of squares over the total sum of squares; 0 if all values are equal."""
    everything = [value for group in groups for value in group]
    mean = fmean(everything)
    total = math.fsum((value - mean) ** 2 for value in everything)
    between = math.fsum(len(group) * (fmean(group) - mean) ** 2 for group in groups)
    return min(1.0, between / total) if total > 0 else 0.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation, with ties at their mean rank; 0 if ``x`` or ``y`` is constant."""
    return correlation(_ranks(x), _ranks(y)) if len(set(x)) > 1 and len(set(y)) > 1 else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return [float(rank) for rank in (np.cumsum(counts) - (counts - 1) / 2)[places]]
