"""Results of threads that work ahead: their order, how far ahead, and what happens at the end."""

from __future__ import annotations

import threading
import time

import pytest

from genimg.utils.threads import map_in_order


def test_results_are_in_order_though_later_items_end_first() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.002 * (10 - item))
        return item**2

    assert list(map_in_order(slow_first, range(10), num_threads=5)) == [item**2 for item in range(10)]


def test_items_are_taken_only_a_few_ahead_of_the_consumer() -> None:
    taken: list[int] = []
    items = (taken.append(item) or item for item in range(1000))
    results = map_in_order(lambda item: item, items, num_threads=2)
    assert next(results) == 0
    assert len(taken) <= 9 + 1  # four for each thread, and the one that was asked for
    results.close()


@pytest.mark.parametrize("fails", [False, True])
def test_the_event_is_set_before_the_end_waits_for_items_that_have_begun(fails: bool) -> None:
    stopped = threading.Event()

    def wait(item: int) -> bool:
        if item == 0 and fails:
            raise ValueError("a broken item")
        return item == 0 or stopped.wait(30)

    results = map_in_order(wait, range(100), num_threads=1, stopped=stopped)
    start = time.monotonic()
    if fails:
        with pytest.raises(ValueError, match="broken"):
            next(results)
    else:
        assert next(results)
        results.close()
    assert stopped.is_set()
    assert time.monotonic() - start < 20
