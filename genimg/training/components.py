"""Components of a training run, built but not started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.identity import Identity, identity_of
from genimg.data.loader import ImageLoader
from genimg.methods.base import Method
from genimg.methods.capabilities import Translates
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.decisions import Decisions
from genimg.training.device import Precision
from genimg.training.ema import Profile
from genimg.training.evaluation_schedule import ScheduledEvaluator
from genimg.training.logger import Logger
from genimg.training.performance import Performance
from genimg.training.schedules import OptimizerSchedules
from genimg.training.state import TrainerSettings
from genimg.training.thread_choice import Threads
from genimg.training.trainer import Trainer

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long


@dataclass(frozen=True)
class TrainingComponents:
    """All components of a training run.

    Attributes:
        source: Dataset of training images.
        data: Loader of the same images.
        make_optimizers: Factory of fresh optimizers, for trial steps.
        profiles: Averages of the weights to keep, by name.
        seed: Seed of all randomness.
        images_per_second: Images that a second of a duration stands for; None if durations are not in time.
        sharding: How the method's networks are divided among processes; None if they are not.
        threads: Number of CPU threads to start with; None where it is not chosen.
    """

    device: torch.device
    precision: Precision
    performance: Performance
    settings: TrainerSettings
    source: ImageDataset
    data: ImageLoader
    method: Method
    optimizers: dict[str, Optimizer]
    make_optimizers: Callable[[], dict[str, Optimizer]]
    schedules: OptimizerSchedules
    evaluator: ScheduledEvaluator | None
    profiles: Mapping[str, Profile]
    seed: int
    images_per_second: float | None
    sharding: Sharding | None
    threads: Threads | None = None

    @property
    def decisions(self) -> Decisions:
        """The resolved values of ``auto`` settings."""
        return Decisions(
            self.precision.name,
            self.settings.accumulation,
            self.performance.compile,
            self.performance.graph is True,
            self.images_per_second,
            None if self.threads is None else self.threads.number,
        )

    def identity(self) -> Identity:
        """Return the identity of the images, as recorded in checkpoints."""
        task = self.method.task if isinstance(self.method, Translates) else None
        masks = None if task is None else task.fingerprint()
        return identity_of(self.source, captions="caption" in self.method.batch_keys, masks=masks)

    def trainer(
        self,
        *,
        folder: Path,
        make_logger: Callable[[int, bool], Logger],
        describe: Mapping[str, Any],
        data: ImageLoader | None = None,
        time_limit: float | None = None,
    ) -> Trainer:
        """Return the trainer of these components.

        Args:
            data: Loader of some of the training images; None uses all of them.
            folder: Directory for checkpoints.
            make_logger, describe, time_limit: See Trainer.
        """
        return Trainer(
            self.settings,
            self.method,
            self.optimizers,
            self.schedules,
            data or self.data,
            self.evaluator,
            precision=self.precision,
            performance=self.performance,
            seed=self.seed,
            folder=CheckpointFolder(folder, keep_last=self.settings.keep_last),
            make_logger=make_logger,
            describe=describe,
            profiles=self.profiles,
            sharding=self.sharding,
            time_limit=time_limit,
            threads=self.threads,
        )
