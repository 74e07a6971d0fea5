"""Resolved values of ``auto`` settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from genimg.utils.type_hints import restored


@dataclass(frozen=True)
class Decisions:
    """Resolved values of ``auto`` settings, kept in checkpoints so that a resumed run trains in the same way.

    Attributes:
        precision: Name of the networks' number format.
        accumulation: Number of microbatches per batch; batch norm sees microbatches.
        compile: Mode of torch.compile, or False.
        graph: Whether steps run as CUDA graphs.
        images_per_second: Images that a second of a duration stands for, if ``trainer.duration`` is a time; else None.
        threads: Number of CPU threads with which a launch started to train on a CPU; None on another device.
    """

    precision: str
    accumulation: int
    compile: str | bool
    graph: bool = False
    images_per_second: float | None = None
    threads: int | None = None

    @classmethod
    def restored(cls, saved: Any) -> Decisions:
        """Return the decisions in a checkpoint.

        Raises:
            CheckpointError: If the entry is invalid.
        """
        return restored(cls, saved, "decisions")

    def record(self) -> dict[str, Any]:
        """Return the decisions in the format of a checkpoint."""
        return asdict(self)
