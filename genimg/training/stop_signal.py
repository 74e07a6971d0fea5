"""The signal that asks a training to stop after its current step."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from genimg.utils.terminal import stop_signals, write_to_stderr

_REPEATED_SECONDS = 0.5  # a second SIGINT within this time counts as a duplicate


class StopSignal:
    """Notes the first of ``terminal.stop_signals``.

    Args:
        what_ends: Function that returns when the training will stop, such as ``after this step``; None says nothing.

    Attributes:
        number: Number of the signal; None if there was none.
    """

    def __init__(self, what_ends: Callable[[], str | None]) -> None:
        self._what_ends = what_ends
        self.number: int | None = None
        self._noted_at = 0.0  # by time.monotonic()

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals within the block, if it runs in the main thread; other threads cannot handle signals."""
        is_main = threading.current_thread() is threading.main_thread()
        previous = {each: signal.signal(each, self._note) for each in stop_signals()} if is_main else {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None:
            # Only a second Ctrl-C by the user quits at once. Other signals may arrive twice: a closing terminal sends SIGHUP
            # through the kernel and through the shell, and some launchers forward a Ctrl-C that has already arrived.
            if number == signal.SIGINT and now - self._noted_at > _REPEATED_SECONDS:
                raise KeyboardInterrupt
            return
        self.number, self._noted_at = number, now
        if (when := self._what_ends()) is not None:  # not logging, because the interrupted code may hold its lock
            quitting = " Press Ctrl-C again to quit without saving." if number == signal.SIGINT else ""
            write_to_stderr(f"\n{signal.Signals(number).name}: Stopping {when} and saving.{quitting}\n")
