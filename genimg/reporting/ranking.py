"""Rank runs by their best values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from genimg.evaluation.comparability import differences
from genimg.reporting.runs import Measured, Run, Value


@dataclass(frozen=True)
class Standing:
    """A run's place among the others.

    Attributes:
        run: The run.
        number: Number of the run in the given order, from 0; it determines the colour.
        place: Place from 1, which equal values share; None without a value.
        best: The run's best evaluation; None without one.
        value: Value of the compared metric in that evaluation.
    """

    run: Run
    number: int
    place: int | None
    best: Measured | None
    value: Value | None


@dataclass(frozen=True)
class Ranking:
    """All runs, best first and those without a value last.

    Attributes:
        metric: Metric that is compared; None if nothing was measured.
        higher_is_better: Whether higher values are better; None if unknown, and then lower values come first.
        standings: Places of the runs, in order.
        warnings: Sentences about values that are not comparable.
    """

    metric: str | None
    higher_is_better: bool | None
    standings: list[Standing]
    warnings: list[str]

    @property
    def in_given_order(self) -> list[Standing]:
        return sorted(self.standings, key=lambda each: each.number)

    @property
    def winner(self) -> Standing | None:
        """The best run; None if fewer than two have a value."""
        placed = [each for each in self.standings if each.place is not None]
        return placed[0] if len(placed) > 1 else None


def rank(runs: Sequence[Run]) -> Ranking:
    """Rank runs by the primary metric that most of them share."""
    names = Counter(run.primary for run in runs if run.primary is not None)
    if not names:
        return Ranking(None, None, [Standing(run, number, None, None, None) for number, run in enumerate(runs)], [])
    metric = names.most_common(1)[0][0]
    told = Counter(run.higher_is_better for run in runs if run.primary == metric and run.higher_is_better is not None)
    up = told.most_common(1)[0][0] if told else None
    bests = [run.best if run.primary == metric else None for run in runs]
    if up is None:  # only a run's own summary can tell its best evaluation
        bests = [run.best or run.last if run.primary == metric else None for run in runs]
    values = [None if best is None else best.values.get(metric) for best in bests]
    known = sorted((value.number for value in values if value is not None), reverse=bool(up))
    standings = [
        Standing(run, number, None if value is None else known.index(value.number) + 1, best, value)
        for number, (run, best, value) in enumerate(zip(runs, bests, values, strict=True))
    ]
    standings.sort(key=lambda each: (each.place is None, each.place or 0, each.number))
    return Ranking(metric, up, standings, _warnings(runs, metric, up, standings))


def _warnings(runs: Sequence[Run], metric: str, up: bool | None, standings: Sequence[Standing]) -> list[str]:
    found = []
    others = {run.primary: run.label for run in runs if run.primary not in (None, metric)}
    for name, label in others.items():
        found.append(f"{label} was measured by {name}, not by {metric}, and has no place in the order.")
    if up is None:
        found.append(f"Whether higher or lower values of {metric} are better is not recorded; lower ones come first here.")
    records = [each.best.provenance for each in standings if each.best is not None and each.best.provenance]
    for other in records[1:]:
        if grave := [each for each in differences(records[0], other) if each.matters]:
            keys = ", ".join(each.key for each in grave[:3])
            found.append(f"Not all values compare: what they were measured with differs in {keys} ({grave[0].reason}).")
            break
    return found
