"""Threads that work beside the main one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

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


def serial_thread(name: str) -> ThreadPoolExecutor:
    """Return a pool of one thread in which PyTorch's operations run serially.

    Otherwise the thread would have OpenMP workers of its own. As long as more of these exist than cores, GNU's OpenMP lets the
    workers of the training thread sleep after each operation instead of waiting actively. Waking them takes longer than a small
    operation: on two cores, a step of a small U-Net took 190 instead of 158 ms (docs/performance.md).

    Args:
        name: First part of the thread's name.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    if torch.backends.openmp.is_available():
        before = torch.get_num_threads()
        pool.submit(_run_serially).result()
        torch.set_num_threads(before)  # for threads that start later
    return pool


def _run_serially() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # PyTorch applies the number to a thread when that first needs it, and not again
