"""What longer training would change: the trend of each run's primary metric over the second half of its training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genimg.reporting.ranking import Ranking
from genimg.reporting.runs import Measured, Run, Value
from genimg.reporting.text import format_number

LEVEL = 0.05
"""Relative change per doubling of the training below which a run counts as level."""

_OF_GOOD_RUNS = ("completed", "stopped", "interrupted", "in progress")  # statuses of runs that may be trained longer
_COPIES = 0.1  # share of memorised images that is worth a warning


@dataclass(frozen=True)
class Trend:
    """How a run's primary metric changes at the end of its training.

    Attributes:
        run: The run.
        number: Number of the run in the given order, from 0.
        last: Value at the last evaluation.
        change: Relative change of the value if the number of images doubles, such as -0.2 for a fall by a fifth.
        gain: The same, positive if the value becomes better.
    """

    run: Run
    number: int
    last: Value
    change: float
    gain: float

    @property
    def expected(self) -> float:
        """The value after twice as many images, if the trend continues."""
        return self.last.number * (1.0 + self.change)

    @property
    def verdict(self) -> str:
        """Whether the run is still improving, level, or getting worse."""
        if abs(self.gain) < LEVEL:
            return "level"
        return "still improving" if self.gain > 0 else "getting worse"

    def value(self, metric: str) -> Value | None:
        """Return the last value of a metric by its short name, such as ``precision``; None if it was not measured."""
        values = self.run.last.values if self.run.last is not None else {}
        return next((value for name, value in values.items() if re.fullmatch(rf"{metric}\d+k?(_.*)?", name)), None)


def trends(ranking: Ranking) -> list[Trend]:
    """Return the trends of the runs that were evaluated at least twice, in the order of the ranking.

    A line is fitted to the logarithm of the value over the logarithm of the number of images, for all evaluations since half of
    the images, and at least the last two. Values must be positive.
    """
    if ranking.metric is None or ranking.higher_is_better is None:
        return []
    found = []
    for each in ranking.standings:
        if each.run.status not in _OF_GOOD_RUNS:
            continue
        known = [one for one in each.run.evaluations if ranking.metric in one.values and one.images > 0]
        change = _change(known, ranking.metric) if each.value is not None else None
        if change is not None:
            gain = change if ranking.higher_is_better else -change
            found.append(Trend(each.run, each.number, known[-1].values[ranking.metric], change, gain))
    return found


def advice(ranking: Ranking, found: Sequence[Trend]) -> list[str]:
    """Return sentences on which runs to train longer, and on runs whose images are copies."""
    if not found:
        return []
    improving = [each for each in found if each.verdict == "still improving"]
    improving.sort(key=lambda each: each.expected, reverse=bool(ranking.higher_is_better))
    best = ranking.winner.score if ranking.winner is not None else None
    verb = "rises" if ranking.higher_is_better else "falls"
    sentences = []
    for each in improving:
        is_ahead = best is None or (each.expected > best if ranking.higher_is_better else each.expected < best)
        if each is improving[0] or (is_ahead and not ranking.warnings):
            sentences.append(
                f"Train {each.run.label} longer: with each doubling of its training, its {ranking.metric} {verb} by "
                f"{100 * each.gain:.0f} %. If this continues, it is about {format_number(each.expected, 3)} after twice as "
                "many images."
            )
    if not improving:
        sentences.append(f"No run is still improving by {100 * LEVEL:.0f} % or more for each doubling of its training.")
    for each in found:
        copies = each.value("memorised")
        if copies is not None and copies.number > _COPIES:
            sentences.append(
                f"About {100 * copies.number:.0f} % of the images of {each.run.label} are copies of training images."
            )
    return sentences


def _change(known: Sequence[Measured], metric: str) -> float | None:
    """Return the relative change per doubling of the images; None without two values, or if one is not positive."""
    late = [each for each in known if 2 * each.images >= known[-1].images]
    points = late if len(late) > 1 else known[-2:]
    values = [each.values[metric].number for each in points]
    if len({each.images for each in points}) < 2 or min(values) <= 0:
        return None
    slope = np.polyfit(np.log([each.images for each in points]), np.log(values), 1)[0]
    return math.expm1(float(slope) * math.log(2.0))
