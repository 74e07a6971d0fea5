"""When time, and not the number of images, asks for a checkpoint or a picture."""

from __future__ import annotations

import math
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

    Attributes:
        save_at: Time from which a checkpoint is due; infinite for never.
        show_at: Time from which a picture is due.
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
        """Note that a checkpoint is being written, for whatever reason."""
        self.save_at = self._now() + self._checkpoint_seconds

    def shown(self, seconds_trained: float) -> None:
        """Note that a picture has been made, for whatever reason.

        Args:
            seconds_trained: By all launches of the run together.
        """
        # The time trained grows until the next picture, which is due at a tenth of what it is then.
        self.show_at = self._now() + max(self._preview_seconds, _SHARE / (1.0 - _SHARE) * seconds_trained)
