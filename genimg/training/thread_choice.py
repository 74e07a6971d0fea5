"""The number of PyTorch's CPU threads in a training: the number it starts with, and changes while other programs run.

More threads than free cores make small operations several times slower, because each operation waits for a thread that has no
core. Alone, small networks may also be fastest with fewer threads than cores. Neither is known in advance, so it is measured.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass, field

import torch

log = logging.getLogger(__name__)

GAIN = 1.1
"""Minimum speedup for which the number changes."""

FALL = 0.75
"""Rate, relative to the best one with the same number, below which other numbers are tried.

With as many threads as cores, one other busy process on two cores leaves 0.17 to 0.4 of the rate of a small network. The limit
is far above that, and leaves room for the variations of a quiet machine.
"""

HOPELESS = 3.0
"""A number is no longer measured once a step takes this many times as long as with another number."""

_WINDOW = (16, 2.0)  # fewest steps, and shortest time in seconds, of which the median step is a rate
_BLOCK = (4, 0.3)  # the same for each block of steps that compares numbers
_ROUNDS = 2  # blocks for each number
_HOPELESS_AT_FIRST = 10.0  # the same for the first step with a number, which prepares operations for it
_WAIT_FOR_LOSS = 50.0  # seconds to wait for each second that a comparison has lost: it costs 2 % of the time at most
_FIRST_WAIT, _LONGEST_WAIT = 15.0, 60.0  # seconds between two comparisons
_LONGEST_WAIT_AFTER_FALL = 30.0
_CALM = 120.0  # seconds without a change after which waits are short again


@dataclass(frozen=True)
class Threads:
    """The number of threads that a training starts with.

    Attributes:
        number: Number of threads.
        most: Number that PyTorch uses by default, which is the largest one to choose from.
        is_fixed: Whether the number stays the same throughout the training.
        is_measured: Whether it has just been compared with other numbers.
        reason: What determined the number, for the log; empty if it is PyTorch's default.
    """

    number: int
    most: int
    is_fixed: bool = True
    is_measured: bool = False
    reason: str = ""

    def __str__(self) -> str:
        of = f" of {self.most}" if self.number < self.most else ""
        plural = "s" if max(self.number, self.most if of else 0) != 1 else ""
        return f"{self.number}{of} thread{plural}" + (f" ({self.reason})" if self.reason else "")


def described(times: dict[int, float], chosen: int, batch_size: int) -> str:
    """Return the rates with the chosen number and with the others, in words, such as "1,430 images/s; 2 threads: 1,390"."""
    rates = {number: f"{batch_size / seconds:,.0f}" for number, seconds in times.items()}
    others = [f"{number} thread{'s' * (number != 1)}: {rate}" for number, rate in rates.items() if number != chosen]
    return "; ".join([f"{rates[chosen]} images/s", *others])


@dataclass
class _Comparison:
    """Blocks of steps with several numbers of threads in turn.

    Attributes:
        current: Number of threads so far.
        usual: Seconds of a step with it.
        remaining: Numbers of the blocks to come; the first one is that of the running block.
        times: Seconds of the measured steps by number.
        block: Seconds of the running block's steps.
        lost: Seconds that all steps together have taken longer than usual.
    """

    current: int
    usual: float
    remaining: list[int]
    times: dict[int, list[float]] = field(default_factory=dict)
    block: list[float] = field(default_factory=list)
    lost: float = 0.0

    def add(self, seconds: float) -> None:
        """Add a step of the running block.

        The first step of a block is not measured, because threads and caches must adapt. A number with which a step takes far
        too long is given up, because waiting for a busy core can make it a hundred times as slow.
        """
        self.lost += seconds - self.usual
        self.block.append(seconds)
        number = self.remaining[0]
        limit = _HOPELESS_AT_FIRST if len(self.block) == 1 else HOPELESS
        if number != self.current and seconds > limit * self.usual:
            self.times.setdefault(number, []).append(seconds)
            self.remaining[:] = [each for each in self.remaining if each != number]
            self.block = []
            return
        measured = self.block[1:]
        if len(measured) < _BLOCK[0] or sum(measured) < _BLOCK[1]:
            return
        self.times.setdefault(self.remaining.pop(0), []).extend(measured)
        self.block = []

    @property
    def medians(self) -> dict[int, float]:
        return {number: statistics.median(times) for number, times in self.times.items()}


class ThreadChoice:
    """Chooses the number of threads of every step from the times of earlier steps, without separate trial steps.

    If the first number was not measured, if steps become slower than ``FALL`` allows, or if the number is not the largest and
    some time has passed, a few steps run with half and with twice the number, in turn with the current one. Another number is
    kept if it is ``GAIN`` times as fast. Medians ignore steps that do more work than others, such as those with a lazy penalty.
    Waits between comparisons become longer each time, so they take only a few percent of the time, even if the load changes
    constantly.

    Args:
        number: Number of threads of the first step.
        most: Largest number.
        now: Monotonic time in seconds.
        is_measured: Whether the number has just been compared with others.

    Attributes:
        chosen: Number of threads of all steps that compare none.
    """

    def __init__(self, number: int, most: int, now: Callable[[], float], *, is_measured: bool = True) -> None:
        self.chosen = number
        self._is_measured = is_measured
        self.most = most
        self._now = now
        self._window: list[float] = []
        self._best = math.inf  # seconds of a step, of the fastest window with this number
        self._comparison: _Comparison | None = None
        self._wait = _FIRST_WAIT
        self._wait_for_loss = 0.0
        self._compared_at = self._changed_at = now()

    @property
    def number(self) -> int:
        """Number of threads of the next step."""
        return self.chosen if self._comparison is None else self._comparison.remaining[0]

    def add_step(self, seconds: float) -> dict[int, float] | None:
        """Add a step with ``number`` threads, which took so many seconds.

        Returns:
            If the number has changed for good: the seconds of a step by number of threads. Otherwise None.
        """
        if self._comparison is not None:
            self._comparison.add(seconds)
            return None if self._comparison.remaining else self._decided(self._comparison)
        self._window.append(seconds)
        if len(self._window) < _WINDOW[0] or sum(self._window) < _WINDOW[1]:
            return None
        median, self._window = statistics.median(self._window), []
        self._best = min(self._best, median)
        since = self._now() - self._compared_at
        if since < self._wait_for_loss:
            return None
        has_fallen = median * FALL > self._best and since >= min(self._wait, _LONGEST_WAIT_AFTER_FALL)
        if has_fallen or not self._is_measured or (self.chosen < self.most and since >= self._wait):
            self._is_measured = True
            others = [each for each in (self.chosen // 2, min(2 * self.chosen, self.most)) if each not in (0, self.chosen)]
            self._comparison = _Comparison(self.chosen, median, [self.chosen, *others] * _ROUNDS)
        return None

    def _decided(self, comparison: _Comparison) -> dict[int, float] | None:
        """End a comparison, and return its times if it has changed the number."""
        medians, self._comparison, now = comparison.medians, None, self._now()
        fastest = min(medians, key=lambda number: medians[number])
        changes = medians[fastest] * GAIN <= medians[self.chosen]
        was_calm = now - self._changed_at >= _CALM
        self._wait = _FIRST_WAIT if changes and was_calm else min(2.0 * self._wait, _LONGEST_WAIT)
        self._wait_for_loss = 0.0 if changes else _WAIT_FOR_LOSS * comparison.lost
        self._compared_at = now
        if changes:
            self.chosen, self._changed_at = fastest, now
        self._best = medians[self.chosen]  # the rate to which a later one is compared
        return medians if changes else None


class ThreadControl:
    """Sets the number of threads of a training's steps.

    Args:
        threads: Number to start with; None to leave it as it is.
        batch_size: Images per step, for the log.
        now: Monotonic time in seconds.
    """

    def __init__(self, threads: Threads | None, batch_size: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._batch_size = batch_size
        self._threads = threads
        self._now = now
        self._choice: ThreadChoice | None = None
        if threads is not None and not threads.is_fixed:
            self._choice = ThreadChoice(threads.number, threads.most, now, is_measured=threads.is_measured)

    @contextlib.contextmanager
    def of_step(
        self, step: int, history: MutableSequence[tuple[int, int]], compared: MutableSequence[tuple[int, int, int]] | None
    ) -> Iterator[None]:
        """Run the block, a step of training, with the number of threads to use now; afterwards, the chosen one is set.

        Args:
            step: Number of the step.
            history: List that receives (step, number of threads) where another number is chosen.
            compared: List that receives (first step, number of steps, number of threads) of steps that compare another number
                with the chosen one; None to record none.
        """
        if self._threads is None:
            yield
            return
        choice = self._choice
        chosen = self._threads.number if choice is None else choice.chosen
        if not history or history[-1][1] != chosen:
            history.append((step, chosen))
        number = chosen if choice is None else choice.number
        if number != chosen and compared is not None:
            _add_step(compared, step, number)
        set_threads(number)
        start = self._now()
        yield
        if choice is None:
            return
        if times := choice.add_step(self._now() - start):
            log.info("threads: %d from now on (%s)", choice.chosen, described(times, choice.chosen, self._batch_size))
        set_threads(choice.chosen)  # for evaluations and pictures


def _add_step(compared: MutableSequence[tuple[int, int, int]], step: int, number: int) -> None:
    """Add a step to the last entry of a list of (first step, number of steps, number of threads), or to a new one."""
    first, count, before = compared[-1] if compared else (0, 0, 0)
    if before == number and first + count == step:
        compared[-1] = (first, count + 1, number)
    else:
        compared.append((step, 1, number))


def set_threads(number: int) -> None:
    """Set PyTorch's number of CPU threads, unless it is the same already."""
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)


@contextlib.contextmanager
def same_threads_afterwards() -> Iterator[None]:
    """Restore PyTorch's number of threads after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
