"""When time, and not the number of images, asks for a checkpoint or a picture."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHARE = 0.1  # of the time trained so far, to which the gap between pictures grows


class Clocks:
    """Tells when to save and to make pictures by the time that has passed; it changes nothing that is computed.

    Args:
        checkpoint_minutes: Longest time between two checkpoints; None never asks for one.
        preview_seconds: Longest time between two pictures at first; later it is a tenth of the time trained so far, so that a
            long training makes no more than some dozens. None never asks for one.
        now: Monotonic time in seconds.
    """

    def __init__(
        self, *, checkpoint_minutes: float | None, preview_seconds: float | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._checkpoint_seconds = None if checkpoint_minutes is None else 60.0 * checkpoint_minutes
        self._preview_seconds = preview_seconds
        self._now = now
        self._saved_at = self._shown_at = now()

    def asks_to_save(self) -> bool:
        """Return whether a checkpoint is due; the next one is then due an interval later."""
        if self._checkpoint_seconds is None or self._now() - self._saved_at < self._checkpoint_seconds:
            return False
        self.saved()
        return True

    def saved(self) -> None:
        """Note that a checkpoint is being written, for whatever reason."""
        self._saved_at = self._now()

    def asks_to_show(self, seconds_trained: float) -> bool:
        """Return whether a picture is due.

        Args:
            seconds_trained: By all launches of the run together.
        """
        if self._preview_seconds is None:
            return False
        return self._now() - self._shown_at >= max(self._preview_seconds, _SHARE * seconds_trained)

    def shown(self) -> None:
        """Note that a picture has been made, for whatever reason."""
        self._shown_at = self._now()
