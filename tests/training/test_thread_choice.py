"""The number of CPU threads, chosen from made-up times of steps: what a busy machine does to training, and to the number."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from genimg.api.thread_trial import fastest
from genimg.training import thread_choice
from genimg.training.recorded_threads import RecordedThreads
from genimg.training.thread_choice import ThreadChoice, ThreadControl, Threads, described

ALONE = {2: 0.010, 1: 0.018}  # seconds of a step by number of threads: as on an AMD EPYC, where the second core halves the time
BESIDE = {2: 0.060, 1: 0.020}  # beside one busy process
INTEL = {2: 0.047, 1: 0.043}  # one thread is fastest, also alone
EIGHT = {8: 0.010, 4: 0.012, 2: 0.020, 1: 0.040}
EIGHT_BESIDE = {8: 0.080, 4: 0.013, 2: 0.022, 1: 0.041}


class Machine:
    """A training on a simulated machine.

    Args:
        number: Number of threads of the first step.
        times: Seconds of a step by number of threads, at a time in seconds.
        noise: Relative standard deviation of a step's time.
        is_measured: See ``ThreadChoice``.
    """

    def __init__(
        self, number: int, times: Callable[[float], dict[int, float]], noise: float = 0.0, *, is_measured: bool = True
    ) -> None:
        self.now = 0.0
        self.times, self.noise, self.random = times, noise, np.random.default_rng(0)
        self.choice = ThreadChoice(number, max(times(0.0)), now=lambda: self.now, is_measured=is_measured)
        self.best = 0.0  # seconds that the steps would have taken with the best number
        self.changes: list[tuple[float, int]] = []

    def run(self, until: float) -> float:
        """Train until a time, and return the rate of this time relative to that with the best number."""
        start, best = self.now, self.best
        while self.now < until:
            times = self.times(self.now)
            seconds = times[self.choice.number] * max(0.5, 1 + self.noise * self.random.standard_normal())
            self.now += seconds
            self.best += min(times.values())
            if self.choice.add_step(seconds):
                self.changes.append((self.now, self.choice.chosen))
        return (self.best - best) / (self.now - start)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_nothing_happens_on_a_quiet_machine(noise: float) -> None:
    machine = Machine(2, lambda now: ALONE, noise)
    numbers = set()
    while machine.now < 3600:
        machine.run(machine.now + 0.005)
        numbers.add(machine.choice.number)
    assert numbers == {2}


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("alone", "beside", "few"), [(ALONE, BESIDE, 1), (EIGHT, EIGHT_BESIDE, 4)])
def test_threads_give_way_to_another_program_and_come_back_when_it_ends(
    alone: dict[int, float], beside: dict[int, float], few: int, noise: float
) -> None:
    machine = Machine(max(alone), lambda now: beside if 300 <= now < 600 else alone, noise)
    assert machine.run(300) == pytest.approx(1, abs=0.02)
    machine.run(310)
    assert machine.choice.chosen == few
    assert machine.run(600) > 0.95
    machine.run(600 + 130)
    assert machine.choice.chosen == max(alone)
    assert machine.run(3600) > 0.98
    assert [number for _, number in machine.changes] == [few, max(alone)]


def test_a_training_that_starts_beside_another_program_uses_all_cores_when_that_ends() -> None:
    machine = Machine(1, lambda now: BESIDE if now < 20 else ALONE, 0.05)
    machine.run(60)
    assert machine.choice.chosen == 2


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_number_that_was_not_measured_is_compared_at_once(is_measured: bool) -> None:
    machine = Machine(2, lambda now: BESIDE, is_measured=is_measured)
    machine.run(20)
    assert machine.choice.chosen == (2 if is_measured else 1)


def test_a_machine_on_which_one_thread_is_fastest_loses_little_by_trying_two() -> None:
    machine = Machine(1, lambda now: INTEL, 0.05)
    assert machine.run(3600) > 0.99
    assert machine.changes == []


def test_a_small_difference_changes_nothing() -> None:
    machine = Machine(1, lambda now: {2: 0.0100, 1: 0.0108}, 0.02)
    machine.run(1800)
    assert machine.changes == []


@pytest.mark.parametrize("period", [4, 20, 60, 240])
def test_a_load_that_comes_and_goes_makes_the_number_change_rarely(period: float) -> None:
    machine = Machine(2, lambda now: BESIDE if now % period < period / 2 else ALONE, 0.05)
    machine.run(3600)
    times = [0.0, *(time for time, _ in machine.changes), math.inf]
    assert np.diff(times).min() > 10
    assert len(machine.changes) < 3600 / 60
    fixed = [np.mean([min(ALONE.values()) / ALONE[n], min(BESIDE.values()) / BESIDE[n]]) for n in (1, 2)]
    assert machine.best / machine.now > 0.9 * min(fixed)


def test_steps_that_do_more_work_than_others_are_no_fall() -> None:
    """As with a penalty every 16 steps: medians ignore it."""
    choice = ThreadChoice(2, 2, now=lambda: 1e6)
    for step in range(10_000):
        choice.add_step(0.05 if step % 16 == 0 else 0.01)
        assert choice.number == 2


def test_a_block_with_a_hopeless_number_ends_after_two_steps() -> None:
    machine = Machine(2, lambda now: {2: 1.0, 1: 100.0} if now < 100 else {2: 1.5, 1: 100.0})
    numbers = []
    while machine.now < 700:
        numbers.append(machine.choice.number)
        machine.run(machine.now + 0.1)
    assert 0 < numbers.count(1) <= 2 * 2  # two comparisons


def test_a_number_that_a_busy_core_makes_a_hundred_times_as_slow_is_tried_rarely() -> None:
    machine = Machine(1, lambda now: {2: 3.5, 1: 0.022}, 0.05)
    assert machine.run(3600) > 0.97
    assert machine.changes == []


def test_a_trial_measures_no_more_numbers_than_needed() -> None:
    measured: list[tuple[int, float]] = []

    def trial(times: dict[int, float], most: int, affordable: bool = True) -> dict[int, float]:
        def seconds_of(number: int, best: float) -> float:
            measured.append((number, best))
            return times[number]

        return fastest(seconds_of, most, lambda best: affordable)

    assert trial(EIGHT, 8) == {4: 0.012, 8: 0.010, 2: 0.020}  # 4: 0.83 of the rate
    assert measured == [(4, math.inf), (8, 0.012), (2, 0.010)]
    assert trial(EIGHT_BESIDE, 8) == {4: 0.013, 8: 0.080, 2: 0.022}
    assert trial(ALONE, 2) == {1: 0.018, 2: 0.010}
    assert trial(ALONE, 2, affordable=False) == {1: 0.018}


def test_the_number_is_described_with_the_rates() -> None:
    rates = described({2: 64 / 1390, 1: 64 / 1430}, 1, 64)
    assert rates == "1,430 images/s; 2 threads: 1,390"
    assert str(Threads(1, 2, reason=rates)) == "1 of 2 threads (1,430 images/s; 2 threads: 1,390)"
    assert str(Threads(2, 2)) == "2 threads"
    assert str(Threads(1, 1)) == "1 thread"


@pytest.fixture
def threads() -> Iterator[None]:
    with thread_choice.same_threads_afterwards():
        yield


@pytest.mark.usefixtures("threads")
def test_control_sets_records_and_logs_every_change(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    control = ThreadControl(Threads(2, 2, is_fixed=False), 64, lambda: now)
    history: list[tuple[int, int]] = []
    compared: list[tuple[int, int, int]] = []
    used: list[int] = []
    between: list[int] = []
    with caplog.at_level(logging.INFO):
        for step in range(5000):
            with control.of_step(step, history, compared):
                used.append(torch.get_num_threads())
                now += (ALONE if now < 20 else BESIDE)[used[-1]]
            between.append(torch.get_num_threads())
    assert used[-1] == 1
    assert history == [(0, 2), (history[-1][0], 1)]
    assert set(used[history[-1][0] : history[-1][0] + 200]) == {1}
    recorded = RecordedThreads(history, compared, None)
    assert [recorded.at(step) for step in range(5000)] == used, "every step can be replayed"
    assert len(compared) > 1
    assert between == [2] * (history[-1][0] - 1) + [1] * (5001 - history[-1][0]), "evaluations never use a number on trial"
    assert [record.getMessage() for record in caplog.records] == ["threads: 1 from now on (3,200 images/s; 2 threads: 1,067)"]


@pytest.mark.usefixtures("threads")
def test_a_fixed_number_stays_and_is_recorded_once() -> None:
    control, history = ThreadControl(Threads(1, 2), 64), [(0, 2)]
    for step in range(7, 10):
        with control.of_step(step, history, None):
            assert torch.get_num_threads() == 1
    assert history == [(0, 2), (7, 1)]
    before = torch.get_num_threads()
    with ThreadControl(None, 64).of_step(10, history, None):
        assert torch.get_num_threads() == before
    assert len(history) == 2
