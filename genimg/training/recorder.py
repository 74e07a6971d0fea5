"""Additional destinations of a run's records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

Outcome = Literal["completed", "stopped", "failed"]


class Recorder(Protocol):
    """An additional destination of a run's records, besides its directory."""

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start the record, or continue that of an earlier launch of the run.

        Raises:
            ValueError: If it cannot be opened.
        """

    def scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Record numbers by name."""

    def picture(self, step: int, images: int, name: str, picture: Tensor) -> None:
        """Record a uint8 picture [C, H, W]."""

    def close(self, outcome: Outcome) -> None:
        """Close the record.

        Args:
            outcome: ``completed``, also if the time of ``trainer.duration`` is over; ``stopped`` by a signal; or ``failed``,
                for example because of divergence.
        """
