"""Resolve ``performance.threads`` at the start of a training on a CPU, by a short trial where it pays."""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genimg.api.estimates import decode_sample
from genimg.training.autotune import without_trace
from genimg.training.components import TrainingComponents
from genimg.training.logger import SilentLogger
from genimg.training.thread_choice import HOPELESS, Threads, described
from genimg.utils.distributed import world_size
from genimg.utils.durations import to_seconds
from genimg.utils.silence import silent

_SECONDS = 1.0  # of a measurement of one number of threads
_SHARE = 0.02  # of the training's time that a measurement of a second may take
_LARGEST_SHARE = 0.1  # of the training's time that a measurement of a few steps may take
_FEWEST_STEPS = 5
_CLEARLY_WORSE = 0.8  # rate, relative to the best, below which a trial tries no smaller numbers
_SHORT = 200  # steps; a training with fewer ends before a trial would pay


@dataclass(frozen=True)
class TrialResult:
    """The number of threads to begin with.

    Attributes:
        threads: The number; None where it is not chosen.
        spent: Seconds that the trial has taken.
    """

    threads: Threads | None
    spent: float = 0.0


def choose_threads(parts: TrainingComponents, config: Mapping[str, Any], recorded: int | None) -> TrialResult:
    """Set PyTorch's number of CPU threads for a training.

    A number in ``performance.threads`` is used as it is. With ``auto``, a training on a CPU uses $OMP_NUM_THREADS if that is
    set, else the number that a resumed run has recorded, else the number with which steps are fastest. The trial that finds it
    leaves no trace, and is omitted if training is too short for it. Several processes and other devices use PyTorch's default.

    Args:
        parts: Components, not yet trained.
        config: Their config.
        recorded: Last number of threads of the run that is resumed; None for a new run.
    """
    wanted, most = parts.performance.threads, torch.get_num_threads()
    if isinstance(wanted, int):
        torch.set_num_threads(wanted)
        return TrialResult(Threads(wanted, most, reason="performance.threads"))
    if parts.device.type != "cpu":
        return TrialResult(None)
    compiles = parts.performance.compile not in (False, "auto")  # again for each number of threads
    if most == 1 or world_size() > 1 or compiles or os.environ.get("OMP_NUM_THREADS"):
        return TrialResult(Threads(most, most))
    if recorded is not None:
        number = max(1, min(recorded, most))
        torch.set_num_threads(number)
        return TrialResult(Threads(number, most, is_fixed=False, reason="as before"))
    budget = to_seconds(config["trainer"]["duration"])  # with it, the number of steps is not known yet
    if budget is None and parts.settings.duration // parts.settings.batch_size < _SHORT:
        return TrialResult(Threads(most, most, is_fixed=False))
    return _measured(parts, None if budget is None else float(budget), most)


def _measured(parts: TrainingComponents, budget: float | None, most: int) -> TrialResult:
    """Return the number of threads with which the training's own steps are fastest.

    Args:
        parts: Components, not yet trained.
        budget: Time of the training in seconds; None if its number of steps is given.
        most: Largest number of threads.
    """
    started = time.monotonic()
    steps = parts.settings.duration / parts.settings.batch_size

    def total(best: float) -> float:
        return steps * best if budget is None else budget

    def affordable(best: float) -> bool:
        return _FEWEST_STEPS * best <= _LARGEST_SHARE * total(best)

    with silent(logging.INFO):  # warnings of corrupt images come only once
        sample, _ = decode_sample(parts)
    with without_trace(parts) as tried:
        trainer = tried.trainer(folder=Path(), make_logger=lambda *_: SilentLogger(), describe={}, data=sample)
        stream = trainer.steps()

        def step() -> float:
            before = time.perf_counter()
            next(stream)
            return time.perf_counter() - before

        def seconds_of(number: int, best: float) -> float:
            torch.set_num_threads(number)
            step()  # prepares the operations for this number
            times = [step()]
            if times[0] <= HOPELESS * best:
                times = [step()]
                is_long = _SHARE * total(times[0]) >= _SECONDS
                while len(times) < _FEWEST_STEPS or (is_long and sum(times) < _SECONDS):
                    times.append(step())
            return statistics.median(times)

        times = fastest(seconds_of, most, affordable)
    spent = time.monotonic() - started
    if len(times) == 1:
        torch.set_num_threads(most)
        return TrialResult(Threads(most, most, is_fixed=False), spent=spent)
    chosen = min(times, key=lambda number: times[number])
    torch.set_num_threads(chosen)
    reason = described(times, chosen, parts.settings.batch_size)
    return TrialResult(Threads(chosen, most, is_fixed=False, is_measured=True, reason=reason), spent)


def fastest(seconds_of: Callable[[int, float], float], most: int, affordable: Callable[[float], bool]) -> dict[int, float]:
    """Measure the time of a step with half of ``most`` threads, with all, and with fewer as long as these may be faster.

    Half comes first: it shows how slow the others may be before they are given up, even if something else keeps a core busy.

    Args:
        seconds_of: Function that returns the seconds of a step with a number of threads. Its second argument is the best time
            so far: a number that takes ``HOPELESS`` times as long need not be measured precisely.
        most: Largest number of threads, at least 2.
        affordable: Function that returns whether to measure another number, from the best time so far.

    Returns:
        Seconds of a step by number of threads, in order of measurement. A single entry decides nothing.
    """
    number = most // 2
    times = {number: seconds_of(number, math.inf)}
    if not affordable(times[number]):
        return times
    times[most] = seconds_of(most, times[number])
    while number > 1 and times[number] * _CLEARLY_WORSE <= min(times.values()) and affordable(min(times.values())):
        number //= 2
        times[number] = seconds_of(number, min(times.values()))
    return times
