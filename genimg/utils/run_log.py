"""The log file of a run, which is opened only after the run has begun.

A run that is rejected at its start must leave its directory unchanged, so earlier messages are kept in memory.
"""

from __future__ import annotations

import logging
import time

STARTED = time.time()
"""When this process loaded its logging, in seconds since the epoch."""


class RunLogHandler(logging.FileHandler):
    """Handler that opens its log file in ``begin`` and then writes earlier records, too. See configs/train.yaml.

    Args:
        filename: Name of the log file, which is not opened before ``begin``.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        self._held: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or hold it until ``begin``."""
        if self._held is None:
            super().emit(record)
            return
        record.msg, record.args = record.getMessage(), None  # formatted now, because arguments may change
        self._held.append(record)

    def begin(self) -> None:
        """Open the file and write the held records."""
        with self.lock:  # type: ignore[union-attr]
            if self.stream is None:
                self.stream = self._open()
            held, self._held = self._held or [], None
        for record in held:
            self.handle(record)


def begin() -> None:
    """Open the run's log file, if there is one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLogHandler):
            handler.begin()
