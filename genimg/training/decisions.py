"""What ``auto`` turned out to mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from genimg.utils.type_hints import restored


@dataclass(frozen=True)
class Decisions:
    """What was decided where the config says ``auto``: kept in checkpoints, so that a resumed run trains in the same way.

    Attributes:
        precision: Name of the number format of networks.
        accumulation: Microbatches that each batch is cut into; batch norm sees microbatches.
        compile: Mode of torch.compile, or False.
    """

    precision: str
    accumulation: int
    compile: str | bool

    @classmethod
    def restored(cls, saved: Any) -> Decisions:
        """Return the decisions that a checkpoint holds.

        Raises:
            CheckpointError: If it holds something else there.
        """
        return restored(cls, saved, "decisions")

    def record(self) -> dict[str, Any]:
        """Return the decisions as a checkpoint holds them."""
        return asdict(self)
