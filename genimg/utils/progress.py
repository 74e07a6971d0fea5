"""Progress of loops deep inside a computation, shown only where a command wants to show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

_is_shown: ContextVar[bool] = ContextVar("_is_shown", default=False)


@contextmanager
def showing_steps() -> Iterator[None]:
    """Show the progress of ``steps`` in the block, if the output is a terminal."""
    token = _is_shown.set(True)
    try:
        yield
    finally:
        _is_shown.reset(token)


def steps(count: int, what: str) -> Iterator[int]:
    """Yield 0 to ``count`` - 1, with a progress bar within ``showing_steps``.

    Args:
        count: Number of steps.
        what: Name of the work.
    """
    yield from tqdm(range(count), desc=what, unit="step", leave=False, disable=None if _is_shown.get() else True)
