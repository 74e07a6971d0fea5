"""The number of CPU threads of every step of an earlier training, from the record in its checkpoint."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Sequence


class RecordedThreads:
    """The number of threads of every step of an earlier training.

    Args:
        history: (step, number of threads) where another number was chosen, in order.
        compared: (first step, number of steps, number of threads) of steps that compared another number, in order.
        otherwise: Number of threads of steps before the first entry of ``history``; None if it is unknown.
    """

    def __init__(
        self, history: Sequence[tuple[int, int]], compared: Sequence[tuple[int, int, int]], otherwise: int | None
    ) -> None:
        self._history, self._compared, self._otherwise = history, compared, otherwise

    def at(self, step: int) -> int | None:
        """Return the number of threads of a step; None if it is unknown."""
        place = bisect.bisect_right(self._compared, step, key=operator.itemgetter(0)) - 1
        if place >= 0:
            first, count, number = self._compared[place]
            if step < first + count:
                return number
        place = bisect.bisect_right(self._history, step, key=operator.itemgetter(0)) - 1
        return self._history[place][1] if place >= 0 else self._otherwise
