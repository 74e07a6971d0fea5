"""The numbers of threads that a checkpoint records, step by step."""

from __future__ import annotations

from genimg.training.recorded_threads import RecordedThreads


def test_recorded_numbers_are_those_of_the_steps() -> None:
    recorded = RecordedThreads([(3, 2), (7, 1)], [(4, 2, 1), (9, 1, 4)], 8)
    assert [recorded.at(step) for step in range(11)] == [8, 8, 8, 2, 1, 1, 2, 1, 1, 4, 1]
    assert RecordedThreads([], [], None).at(5) is None
