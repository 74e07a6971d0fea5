"""Fault-tolerant terminal output, and the signals that stop a command."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, TextIO

_USUAL_COLUMNS = 80
# Control characters except tab and newline, and characters that change the writing direction.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MOVES = re.compile("\r|\x1b\\[\\d*[AFJK]")  # cursor movements of progress bars and tables of jobs


def visible(text: str) -> str:
    """Return a text with its control characters escaped, as in ``\\x1b``.

    Names of files and classes, and logs of other processes, could otherwise change a terminal's title, its clipboard or
    earlier output.
    """
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text)


class VisibleRecord(logging.LogRecord):
    """A log record with escaped control characters, because messages may hold file names and values from a checkpoint."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible(super().getMessage())


class TolerantStream:
    """A text stream that drops failing writes and escapes control characters except cursor movements.

    A long run must not end because ``tee`` was interrupted first, ``head`` has read enough, the disk of the redirected log
    is full or the terminal was closed.

    Args:
        stream: Stream to write to. All other operations are passed on to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if possible, and return its length in any case."""
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
    """Replace ``sys.stdout`` and ``sys.stderr`` by tolerant streams, and open any closed standard descriptor.

    Log messages are escaped from then on.

    A descriptor that is closed at the start, as by ``2>&-``, would be reused for the next file that is opened, and messages
    could then be written into a checkpoint.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    logging.setLogRecordFactory(VisibleRecord)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the descriptor was closed
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, TolerantStream):
            setattr(sys, name, TolerantStream(stream))


def columns_of(stream: TextIO) -> int:
    """Return the width of a terminal in characters; 0 if the stream is no terminal."""
    if not stream.isatty():
        return 0
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # the stream has no descriptor, or its size cannot be read
        return _USUAL_COLUMNS


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can show something.

    A terminal of 0 columns, as some containers and continuous-integration services provide, counts as none.
    """
    return columns_of(stream) > 0


def as_many_as_fit(parts: Sequence[str], width: int) -> str:
    """Join parts of a line, and omit the last ones with their number if the line would be longer than ``width``.

    The first part is never omitted, and no part is cut.
    """
    for kept in range(len(parts), 1, -1):
        more = [f"{len(parts) - kept} more"] if kept < len(parts) else []
        if len(line := ", ".join([*parts[:kept], *more])) <= width:
            return line
    return ", ".join([parts[0], f"{len(parts) - 1} more"] if len(parts) > 1 else parts)


def write_to_stderr(text: str) -> None:
    """Write without Python's buffers and locks, as a signal handler must, and ignore errors."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that request a stop: SIGINT (Ctrl-C), SIGTERM and, if available, SIGHUP and SIGUSR1.

    SIGHUP means a closed terminal, and SIGUSR1 is SLURM's notice before a time limit. SIGHUP is omitted if it is ignored,
    because ``nohup`` asks the command to continue without the terminal. SIGINT is included even if it is ignored, because
    shells ignore it for background jobs.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    for name in ("SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            found.append(number)
    return tuple(found)
