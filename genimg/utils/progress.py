"""Progress of long work: a bar on a terminal, and otherwise a line every ten seconds, or calls of a function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from genimg.utils.distributed import rank
from genimg.utils.terminal import is_terminal, visible

SECONDS_BETWEEN_LINES = 10.0
"""Time between two lines of progress where there is no terminal."""

Listener = Callable[[str, int, int | None], None]
"""A function of the name of the work, the number of finished items and their total, which is None if it is unknown."""

_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)
_is_shown: ContextVar[bool] = ContextVar("_is_shown", default=False)


class Progress(tqdm):
    """Progress of one piece of work, shown on standard error by the first rank only.

    On a terminal it is a bar. Elsewhere, as in a pipe or a file, it is a line every ``SECONDS_BETWEEN_LINES`` seconds, so
    short work writes nothing there. Work of 0 items shows nothing. Within ``reporting_to``, nothing is shown, and a function
    is called instead.

    Args:
        items: Items to iterate over; None if ``update`` is called instead.
        total: Number of items; None for the length of ``items``, or if it is unknown.
        desc: Name of the work.
        unit: Name of one item.
        leave: Whether the bar stays on the terminal after the work.
        delay: Time in seconds before a bar appears.
        hidden: Whether nothing is shown.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        desc: str,
        unit: str,
        total: int | None = None,
        leave: bool = True,
        delay: float = 0.0,
        hidden: bool = False,
    ) -> None:
        if total is None and isinstance(items, Sized):
            total = len(items)
        self._listener = _listener.get()
        hidden = hidden or total == 0 or rank() > 0 or self._listener is not None
        self._has_bar = not hidden and is_terminal(sys.stderr)
        self._has_lines = not hidden and not self._has_bar
        self._name, self._unit = desc, unit
        self._start = self._last_line = time.monotonic()
        super().__init__(
            items, total=total, desc=desc, unit=unit, leave=leave, delay=delay, disable=not self._has_bar, dynamic_ncols=True
        )

    def __iter__(self) -> Iterator[Any]:
        """Yield the items."""
        if not self._has_lines and self._listener is None:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """Count ``n`` more items, and show them if it is time."""
        if self._listener is not None:
            self.n += n or 0
            self._listener(self._name, self.n, self.total)
            return None
        if not self._has_lines:
            return super().update(n)
        self.n += n or 0
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return None
        self._last_line = now
        of, left = "", ""
        if self.total is not None:
            of = f" of {self.total:,}"
            if self.n:
                left = f", {tqdm.format_interval((self.total - self.n) * (now - self._start) / self.n)} left"
        print(f"{visible(self._name)}: {self.n:,}{of} {self._unit}s{left}", file=sys.stderr, flush=True)
        return True


@contextmanager
def reporting_to(listener: Listener) -> Iterator[None]:
    """Call a function whenever an item of any work in the block is finished, instead of showing progress.

    An exception that the function raises ends the work.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def showing_steps() -> Iterator[None]:
    """Show the progress of ``steps`` in the block."""
    token = _is_shown.set(True)
    try:
        yield
    finally:
        _is_shown.reset(token)


def steps(count: int, what: str) -> Iterator[int]:
    """Yield 0 to ``count`` - 1, and show the progress within ``showing_steps``.

    Args:
        count: Number of steps.
        what: Name of the work.
    """
    yield from Progress(range(count), desc=what, unit="step", leave=False, hidden=not _is_shown.get())
