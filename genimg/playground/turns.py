"""Run the requests of pages one at a time; a newer request of a page replaces its older one."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from genimg.utils.progress import reporting_to

Result = TypeVar("Result")
_MOST_PAGES = 64  # whose newest request is remembered


class ReplacedError(Exception):
    """A request was replaced by a newer one of the same page, or stopped."""


@dataclass
class _Running:
    """The request that is running.

    Attributes:
        page: Identifier of the page.
        start: Time of the start, from ``time.monotonic``.
        progress: Name of the current work, number of finished items, and total; None at first.
    """

    page: str
    start: float = field(default_factory=time.monotonic)
    progress: tuple[str, int, int | None] | None = None


class Turns:
    """A queue with a single thread, which alone uses the model.

    A request that is replaced while it waits never runs. One that is running ends after the current step.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "genimg-play")
        self._guard = threading.Lock()
        self._numbers = itertools.count()
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._running: _Running | None = None
        self._is_closed = False

    def run(self, page: str, work: Callable[[], Result]) -> Result:
        """Wait for a turn, run the work and return its result.

        Args:
            page: Identifier of the page that requests the work.
            work: Function to run; ``Progress`` within it is reported to ``state``.

        Raises:
            ReplacedError: If a newer request of the page arrives, or ``stop`` or ``close`` is called.
        """
        number = self.stop(page)
        try:
            return self._worker.submit(self._work, page, number, work).result()
        except CancelledError as error:
            raise ReplacedError from error
        except RuntimeError as error:
            if self._is_closed:  # the worker accepts no more work
                raise ReplacedError from error
            raise

    def stop(self, page: str) -> int:
        """Stop the requests of a page, and return the number of its next one."""
        with self._guard:
            number = next(self._numbers)
            self._newest[page] = number
            self._newest.move_to_end(page)
            if len(self._newest) > _MOST_PAGES:
                self._newest.popitem(last=False)
        return number

    def state(self, page: str) -> dict[str, Any]:
        """Return whether a request is running, whether it is the page's, its time in seconds, and its progress."""
        running = self._running
        if running is None:
            return {"busy": False}
        progress = None if running.progress is None else dict(zip(("what", "done", "total"), running.progress, strict=True))
        seconds = time.monotonic() - running.start
        return {"busy": True, "own": running.page == page, "seconds": seconds, "progress": progress}

    def close(self) -> None:
        """Stop all requests, and wait for the end of the running one's current step."""
        self._is_closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _work(self, page: str, number: int, work: Callable[[], Result]) -> Result:
        running = _Running(page)

        def check() -> None:
            if self._is_closed or self._newest.get(page) != number:
                raise ReplacedError

        def listen(what: str, done: int, total: int | None) -> None:
            running.progress = what, done, total
            check()

        check()
        self._running = running
        try:
            with reporting_to(listen):
                return work()
        finally:
            self._running = None
