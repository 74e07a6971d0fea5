"""How a training is to run, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genimg.utils.distributed import world_size
from genimg.utils.durations import NumImages
from genimg.utils.type_hints import restored


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How long, how much at once, and how often.

    Attributes:
        duration: of the whole training.
        batch_size: images a step, of all ranks together.
        accumulation: microbatches that each rank cuts its share of a batch into, to save memory; batch norm sees microbatches.
        max_grad_norm: L2 norm to which each group's gradient is clipped; None leaves it.
        log_interval, preview_interval, checkpoint_interval: how often.
        preview_images: in each picture.
        keep_last: checkpoints to keep beside the best one.
        checkpoint_minutes, preview_seconds: see Clocks.
        sync_batch_norm: on several GPUs, batch norm over the whole microbatch of all ranks; else over each rank's own.
        usual_duration: Published duration of this kind of model; only compared with ``duration``.
    """

    duration: NumImages
    batch_size: int
    accumulation: int
    max_grad_norm: float | None
    log_interval: NumImages
    preview_interval: NumImages
    checkpoint_interval: NumImages
    preview_images: int
    keep_last: int
    sync_batch_norm: bool = False
    checkpoint_minutes: float | None = None
    preview_seconds: float | None = None
    usual_duration: NumImages | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more")
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if self.batch_size % (self.accumulation * world_size()):
            raise ValueError(
                f"batch_size={self.batch_size} is that of all {world_size()} processes together and must be a multiple of "
                f"accumulation x processes = {self.accumulation * world_size()}"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be above 0, or null for no clipping")
        for name in ("preview_images", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        for name, unit in (("checkpoint_minutes", "minutes"), ("preview_seconds", "seconds")):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be a positive number of {unit}, or null for none")
        for name in ("duration", "log_interval", "preview_interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} images must be positive")


@dataclass
class TrainingState:
    """What a checkpoint holds besides the method and the optimizers."""

    images: int = 0
    evaluated_at: int = -1
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_images: int = -1
    num_evaluations: int | None = 0  # over which `best` is the extremum; None where an older genimg did not count them
    worse_evaluations: int = 0
    final: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    waiting_seconds: float = 0.0  # of these, for batches
    evaluation_seconds: float = 0.0

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> TrainingState:
        """Return the state that a checkpoint holds.

        Raises:
            CheckpointError: If it holds something else there.
        """
        state = restored(cls, saved, "training")
        if state.best and "num_evaluations" not in saved:
            state.num_evaluations = None
        return state

    @property
    def best_in_words(self) -> str:
        """Return of how many evaluations ``best`` is the best one, and at how many images it was taken."""
        count = self.num_evaluations
        among = "" if count is None else f" of {count} evaluation{'s' * (count != 1)}"
        return f"best{among}, at {self.best_images} images"

    def forget_evaluations(self) -> None:
        """Start a new best: the evaluation has changed, and its values compare with none before."""
        self.evaluated_at, self.last, self.best, self.best_images = -1, {}, {}, -1
        self.num_evaluations, self.worse_evaluations, self.final = 0, 0, {}
