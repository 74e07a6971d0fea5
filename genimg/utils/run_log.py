"""The log file of a run, which is opened only after the run has begun.

A run that is rejected at its start must leave its directory unchanged, so earlier messages are kept in memory.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from genimg.utils.terminal import as_many_as_fit, columns_of, visible

STARTED = time.time()
"""When this process loaded its logging, in seconds since the epoch."""


@dataclass(frozen=True)
class ListMessage:
    """A message that is a list, such as that of an evaluation's metrics.

    Attributes:
        head, tail: Text before and after the list.
        parts: Parts of the list, the most important one first.
    """

    head: str
    parts: Sequence[str]
    tail: str = ""

    def __str__(self) -> str:
        return f"{self.head}{', '.join(self.parts)}{self.tail}"

    def fitted(self, width: int) -> str:
        """Return the text with as many parts as fit into ``width`` characters."""
        return f"{self.head}{as_many_as_fit(self.parts, width - len(self.head) - len(self.tail))}{self.tail}"


class ConsoleFormatter(logging.Formatter):
    """Formatter of the terminal, which shortens a ``ListMessage`` to one line. Log files and pipes get all of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record. A message is a listing if it is the record's only argument."""
        listing = record.args[0] if isinstance(record.args, tuple) and len(record.args) == 1 else None
        if isinstance(listing, ListMessage) and (width := columns_of(sys.stdout)):
            return visible(listing.fitted(width))
        return super().format(record)


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
