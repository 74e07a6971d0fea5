"""Show the progress of a sweep."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from genimg.sweeps.job import Job
from genimg.utils.terminal import is_terminal

log = logging.getLogger(__name__)

_REDRAW_SECONDS = 2.0


class Display:
    """Log lines and, on a terminal, a table of the running jobs that is redrawn every few seconds.

    Args:
        total: Number of jobs in the whole sweep.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._live = is_terminal(sys.stderr)
        self._drawn = 0
        self._next = 0.0

    def say(self, line: str) -> None:
        """Log a permanent line."""
        self._clear()
        log.info("%s", line)

    def draw(self, running: Sequence[Job], num_done: int) -> None:
        """Show the progress of the running jobs."""
        if not self._live or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REDRAW_SECONDS
        self._clear()
        columns, lines = shutil.get_terminal_size()
        rows = [f"{num_done} of {self._total} jobs done", *map(row, running)][: lines - 1]
        rows = [text[: columns - 1] for text in rows]  # the table could not be erased if lines were wrapped
        sys.stderr.write("\n".join(rows) + "\n")
        sys.stderr.flush()
        self._drawn = len(rows)

    def close(self) -> None:
        """Erase the table."""
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            sys.stderr.flush()
        self._drawn = 0


def row(job: Job) -> str:
    """Return a running job's line: progress, time left, latest value of its first metric, and overrides."""
    job.look()
    total = job.duration()
    if not job.images or not total:
        return f"  #{job.number:<4} starting  {job.words}"
    rate = (job.images - job.images_before) / (time.monotonic() - job.started_at)
    left = "" if rate <= 0 else f"{tqdm.format_interval((total - job.images) / rate)} left"
    metric = f"{job.metric} {job.measured[max(job.measured)]:.5g}" if job.measured else ""
    return f"  #{job.number:<4} {job.images / total:4.0%}  {left:13}  {metric:24}  {job.words}"
