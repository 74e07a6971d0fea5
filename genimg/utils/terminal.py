"""The terminal and its signals: output that survives whatever becomes of it, and the signals that ask a command to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from typing import Any, TextIO

# Control characters but the tabulator and the end of a line, and characters that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MOVES = re.compile("\r|\x1b\\[\\d*[AFJK]")  # what progress bars and tables of jobs move the cursor by


def visible(text: str) -> str:
    """Return a text whose control characters are written as ``\\x1b``.

    Names of files and classes, and logs of other processes, could otherwise change a terminal's title, its clipboard or what
    has been printed before.
    """
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text)


class VisibleRecord(logging.LogRecord):
    """A log record whose message moves no cursor: it may hold names of files and values of a checkpoint."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible(super().getMessage())


class TolerantStream:
    """A text stream without control characters but those that move the cursor, whose failing writes are dropped.

    Hours of training must not end because ``tee`` was interrupted first, ``head`` has read enough, the disk of the redirected
    log is full or the terminal was closed.

    Args:
        stream: The stream to write to. Everything but writing is passed on to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible; return its length in any case."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            parts, moves = _MOVES.split(text), [*_MOVES.findall(text), ""]
            self._stream.write("".join(visible(part) + move for part, move in zip(parts, moves, strict=True)))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect_standard_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by tolerant ones, and open those of the three descriptors that are closed.

    What is logged from then on moves no cursor.

    A descriptor that is closed at the start, as by ``2>&-``, would be given to the next file that is opened, and messages would
    then be written into a checkpoint.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    logging.setLogRecordFactory(VisibleRecord)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Python's way to say that the descriptor was closed
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, TolerantStream):
            setattr(sys, name, TolerantStream(stream))


def write_to_stderr(text: str) -> None:
    """Write without Python's buffers and locks, as a signal handler must, and drop what cannot be written."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask for a stop: Ctrl-C, SIGTERM, and where they exist SIGHUP (a closed terminal) and SIGUSR1
    (SLURM's notice before a time limit).

    SIGHUP is left out where it is ignored, because ``nohup`` asks to go on without the terminal. SIGINT stays in where it is
    ignored: a shell does that to its background jobs.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    for name in ("SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            found.append(number)
    return tuple(found)
