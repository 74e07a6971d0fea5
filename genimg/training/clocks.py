"""Checkpoints and pictures that are due by time instead of by the number of images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_SHARE = 0.1  # time between pictures, as a fraction of the time trained so far


class Clocks:
    """Decides from the elapsed time when to save and when to make pictures; it has no effect on the trained weights.

    Args:
        checkpoint_minutes: Maximum time between two checkpoints; None for no timed checkpoints.
        preview_seconds: Maximum time between two pictures at first. Later it is a tenth of the time trained so far, so a long
            run makes a few dozen pictures at most. None for no timed pictures.
        now: Monotonic time in seconds.

    Attributes:
        save_at: Time from which a checkpoint is due; infinite for never.
        show_at: Time from which a picture is due; infinite for never.
    """

    def __init__(
        self, *, checkpoint_minutes: float | None, preview_seconds: float | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._checkpoint_seconds = math.inf if checkpoint_minutes is None else 60.0 * checkpoint_minutes
        self._preview_seconds = math.inf if preview_seconds is None else preview_seconds
        self._now = now
        self.saved()
        self.shown(0.0)

    def saved(self) -> None:
        """Note that a checkpoint is being written, for any reason."""
        self.save_at = self._now() + self._checkpoint_seconds

    def shown(self, seconds_trained: float) -> None:
        """Note that a picture has been made, for any reason.

        Args:
            seconds_trained: Total training time over all launches of the run.
        """
        # The time trained keeps growing, so the next picture is due when the gap is a tenth of the time trained by then.
        self.show_at = self._now() + max(self._preview_seconds, _SHARE / (1.0 - _SHARE) * seconds_trained)
