"""Settings and state of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genimg.utils.distributed import world_size
from genimg.utils.durations import NumImages
from genimg.utils.type_hints import restored


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Durations, sizes and intervals of a training run.

    Attributes:
        duration: Duration of the whole run.
        batch_size: Images per step, over all ranks together.
        accumulation: Number of microbatches per rank and step, to save memory; batch norm sees microbatches.
        max_grad_norm: L2 norm to which each group's gradient is clipped; None for no clipping.
        log_interval, preview_interval, checkpoint_interval: Images between two logs, pictures or checkpoints.
        preview_images: Number of images in each picture.
        keep_last: Number of checkpoints to keep besides the best one.
        checkpoint_minutes, preview_seconds: See Clocks.
        sync_batch_norm: Whether batch norm on several GPUs uses the microbatches of all ranks instead of each rank's own.
        usual_duration: Published duration of this kind of model; only compared with ``duration``.
        weights: Weights that pictures and evaluations use; see ``ema.chosen_weights``.
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
    weights: str = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more")
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if self.batch_size % (self.accumulation * world_size()):
            raise ValueError(
                f"batch_size={self.batch_size} is the total of all {world_size()} processes and must be a multiple of "
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
    """Progress of a training run: the contents of a checkpoint besides the method and the optimizers."""

    images: int = 0
    evaluated_at: int = -1
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_images: int = -1
    num_evaluations: int | None = 0  # among which `best` is the best; None from older versions of genimg
    worse_evaluations: int = 0
    final: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    waiting_seconds: float = 0.0  # part of ``seconds`` spent waiting for batches
    evaluation_seconds: float = 0.0
    threads: list[tuple[int, int]] = field(default_factory=list)  # (step, number of CPU threads from that step on)
    # (first step, number of steps, number of CPU threads) of steps that compared another number; None from older versions
    compared_threads: list[tuple[int, int, int]] | None = field(default_factory=list)

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> TrainingState:
        """Return the state in a checkpoint.

        Raises:
            CheckpointError: If the entry is invalid.
        """
        state = restored(cls, saved, "training")
        if state.best and "num_evaluations" not in saved:
            state.num_evaluations = None
        if "compared_threads" not in saved:
            state.compared_threads = None
        return state

    @property
    def best_description(self) -> str:
        """Description of ``best``: the number of evaluations that were compared, and the images seen at the best one."""
        count = self.num_evaluations
        among = "" if count is None else f" of {count} evaluation{'s' * (count != 1)}"
        return f"best{among}, at {self.best_images} images"

    def forget_evaluations(self) -> None:
        """Forget all evaluations, because the evaluator has changed and earlier values are not comparable."""
        self.evaluated_at, self.last, self.best, self.best_images = -1, {}, {}, -1
        self.num_evaluations, self.worse_evaluations, self.final = 0, 0, {}
