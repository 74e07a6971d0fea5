"""Rank runs by their best values, and settings by the mean over their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, mode, stdev, variance

from genimg.evaluation.comparability import differences
from genimg.reporting.runs import Measured, Run, Value
from genimg.reporting.settings import Setting, seed_groups
from genimg.reporting.text import format_number, format_setting, format_value

# Sections of the provenance on which only metrics with these beginnings of their names depend.
_OF_OTHER_METRICS = {"reconstructions": "reconstruction", "denoising": "denoising"}


@dataclass
class Standing:
    """A run's place among the others.

    Attributes:
        run: The run.
        number: Number of the run in the given order, from 0.
        best: The run's best evaluation; None if it has none.
        value: Value of the compared metric in that evaluation.
        place: Place from 1, which equal values share; None without a value.
    """

    run: Run
    number: int
    best: Measured | None
    value: Value | None
    place: int | None = None

    @property
    def score(self) -> float | None:
        """The number that decides the run's place."""
        return None if self.value is None else self.value.number


@dataclass
class SeedGroup:
    """Runs that differ only in their seed.

    Attributes:
        standings: The runs, best first.
        place: Place of their mean among the groups, from 1; None if no run has a value.
    """

    standings: list[Standing]
    place: int | None = None

    @property
    def values(self) -> list[float]:
        """The values of the runs that have one."""
        return [each.score for each in self.standings if each.score is not None]

    @property
    def score(self) -> float | None:
        """Mean of the values, which decides the group's place; None without values."""
        return fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1) of the values; None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Ranking:
    """All runs, best first and those without a value last.

    Attributes:
        metric: Metric that is compared; None if nothing was measured.
        higher_is_better: Whether higher values are better; None if unknown, in which case lower values come first.
        standings: Places of the runs, in order.
        groups: Groups of runs that differ only in their seed, ordered by their mean; a run that differs from all others in more
            than its seed is also a group.
        warnings: Sentences about values that are not comparable.
    """

    metric: str | None
    higher_is_better: bool | None
    standings: list[Standing]
    groups: list[SeedGroup]
    warnings: list[str]

    @property
    def winner(self) -> Standing | None:
        """The best run; None if fewer than two runs have a value."""
        return self.standings[0] if sum(each.place is not None for each in self.standings) > 1 else None

    @property
    def has_seeds(self) -> bool:
        """Whether there are runs that differ only in their seed."""
        return any(len(group.standings) > 1 for group in self.groups)

    @property
    def noise(self) -> tuple[float, int] | None:
        """Standard deviation between seeds, pooled over the groups, and their number of runs; None without such groups."""
        repeated = [group.values for group in self.groups if len(group.values) > 1]
        freedom = sum(len(values) - 1 for values in repeated)
        if not freedom:
            return None
        return math.sqrt(sum((len(v) - 1) * variance(v) for v in repeated) / freedom), sum(map(len, repeated))


def setting_label(group: SeedGroup, swept: Mapping[str, Sequence[Setting]]) -> str:
    """Return the swept settings of runs that differ only in their seed, or else the label of the first run."""
    first = group.standings[0]
    found = {key: values[first.number] for key, values in swept.items() if key != "seed"}
    own = [f"{key}={format_setting(value)}" for key, value in found.items() if value is not None]
    return ", ".join(own) or first.run.label + " and other seeds" * (len(group.standings) > 1)


def format_mean(group: SeedGroup) -> str:
    """Return ``28.5 ± 0.4``, the mean and standard deviation over seeds, or the only value."""
    if len(group.standings) == 1:
        return format_value(group.standings[0].value)
    return format_number(group.score) + ("" if group.deviation is None else f" ± {format_number(group.deviation, 2)}")


def rank(runs: Sequence[Run]) -> Ranking:
    """Rank runs by the primary metric that most of them share."""
    names = [run.primary for run in runs if run.primary is not None]
    metric = mode(names) if names else None
    directions = [run.higher_is_better for run in runs if run.primary == metric and run.higher_is_better is not None]
    up = mode(directions) if directions and metric is not None else None
    standings = []
    for number, run in enumerate(runs):
        best = run.best if run.primary == metric else None
        if up is None and run.primary == metric:  # only the run's summary records which evaluation is the best
            best = best or run.last
        standings.append(Standing(run, number, best, best.values.get(metric) if best and metric else None))
    _place(standings, up)
    groups = [SeedGroup([each for each in standings if each.number in numbers]) for numbers in seed_groups(runs)]
    _place(groups, up)
    return Ranking(metric, up, standings, groups, [] if metric is None else _warnings(metric, up, standings))


def _place(entries: list[Standing] | list[SeedGroup], up: bool | None) -> None:
    """Set the places of entries by their scores, and sort them."""
    known = sorted((each.score for each in entries if each.score is not None), reverse=bool(up))
    for each in entries:
        each.place = None if each.score is None else known.index(each.score) + 1
    entries.sort(key=lambda each: (each.place is None, each.place or 0))


def _concerns(metric: str, key: str) -> bool:
    """Return whether a metric depends on an entry of the provenance; models of several families have different entries."""
    section = key.partition(".")[0]
    return section not in _OF_OTHER_METRICS or metric.startswith(_OF_OTHER_METRICS[section])


def _warnings(metric: str, up: bool | None, standings: Sequence[Standing]) -> list[str]:
    others = {each.run.primary: each.run.label for each in standings if each.run.primary not in (None, metric)}
    found = [f"{label} was measured by {name}, not by {metric}, and is not ranked." for name, label in others.items()]
    if up is None:
        found.append(f"Whether higher or lower values of {metric} are better is not recorded; lower ones come first here.")
    records = [each.best.provenance for each in standings if each.best is not None and each.best.provenance]
    for other in records[1:]:
        if grave := [each for each in differences(records[0], other) if each.matters and _concerns(metric, each.key)]:
            keys = ", ".join(each.key for each in grave[:3])
            found.append(f"Not all values are comparable: the measurements differ in {keys} ({grave[0].reason}).")
            break
    return found
