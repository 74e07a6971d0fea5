"""Threads that work ahead of the consumer of their results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # results per thread, so no thread waits for another's large item


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, stopped: threading.Event | None = None
) -> Generator[Result, None, None]:
    """Yield the results of a function for all items, in order, computed at most a few items ahead in threads.

    Close the generator to cancel the items that have not begun, and to wait for the others.

    Args:
        function: Function to apply to each item. It should mostly run without the GIL.
        items: Items.
        num_threads: Number of threads.
        stopped: Event to set before waiting for the items that have begun, for a function that can end early.
    """
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if stopped is not None:
            stopped.set()
        pool.shutdown(cancel_futures=True)
