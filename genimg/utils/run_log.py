"""The log file of a run, which is not touched before the run has begun.

A run that is refused at its start must leave its directory as it was: what it says until then is kept in memory.
"""

from __future__ import annotations

import logging


class RunLogHandler(logging.FileHandler):
    """Writes a log file from ``begin`` on, with what was said before; configs/train.yaml names it to Hydra.

    Args:
        filename: Of the log file; nothing is opened before ``begin``.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        self._held: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or hold it until ``begin``."""
        if self._held is None:
            super().emit(record)
            return
        record.msg, record.args = record.getMessage(), None  # as it is now: arguments may change
        self._held.append(record)

    def begin(self) -> None:
        """Open the file and write what was held."""
        with self.lock:  # type: ignore[union-attr]
            if self.stream is None:
                self.stream = self._open()
            held, self._held = self._held or [], None
        for record in held:
            self.handle(record)


def begin() -> None:
    """Let the run's log file begin, if there is one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLogHandler):
            handler.begin()
