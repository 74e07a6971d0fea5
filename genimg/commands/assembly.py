"""From a resolved config to everything that a training needs, with nothing written yet."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from genimg import build
from genimg.commands.common import Config
from genimg.data.placement import Data
from genimg.data.sources import ArraySource, Source
from genimg.distributed import first_of_each_host, world_size
from genimg.evaluation.evaluator import Evaluator
from genimg.interfaces import Method
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.device import Precision, choose_device, choose_precision
from genimg.training.logger import Logger, SilentLogger
from genimg.training.performance import Performance
from genimg.training.schedules import Schedule
from genimg.training.state import TrainerSettings
from genimg.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a config describes, built."""

    config: Config
    device: torch.device
    precision: Precision
    performance: Performance
    settings: TrainerSettings
    source: Source
    method: Method
    optimizers: dict[str, Optimizer]
    schedule: Schedule
    evaluator: Evaluator | None

    def trainer(
        self, data: Data, *, folder: Path, make_logger: Callable[[int, bool], Logger], describe: Mapping[str, Any]
    ) -> Trainer:
        """The trainer of these parts on ``data``.

        Args:
            data: the source's images, or some of them.
            folder: where checkpoints go.
            make_logger, describe: see Trainer.
        """
        return Trainer(
            self.settings,
            self.method,
            self.optimizers,
            self.schedule,
            data,
            self.evaluator,
            precision=self.precision,
            performance=self.performance,
            seed=self.config["seed"],
            folder=CheckpointFolder(folder, keep_last=self.settings.keep_last),
            make_logger=make_logger,
            describe=describe,
        )


def assemble(config: Config, device_name: str) -> Parts:
    """Build a training's parts, the cheap ones first: nobody shall download a dataset to learn of a typing mistake.

    Args:
        config: resolved.
        device_name: of this process.

    Raises:
        ValueError, OSError: for what a config can have wrong, naming the key.
    """
    build.check_top_level(config)
    if type(config["seed"]) is not int or config["seed"] < 0:
        raise ValueError(f"seed={config['seed']} must be a whole number, 0 or more")
    device = choose_device(device_name)
    precision = choose_precision(config["precision"], device)
    precision.apply_globally()
    torch.manual_seed(config["seed"])  # of the initial weights

    if not isinstance(config["allow"], list) or not isinstance(config["optimizer_overrides"], dict):
        raise ValueError("allow must be a list such as allow=[mypackage], and optimizer_overrides a mapping")
    batch_size = config["trainer"]["batch_size"]
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"trainer.batch_size={batch_size} must be 1 or more images")
    builder = build.Builder(allowed=(*build.ALLOWED, *map(str, config["allow"])), epoch_size=1, batch_size=batch_size)
    build.check_pairing(config, builder)
    builder.trainer_settings(config["trainer"])
    performance = builder.build(config["performance"], "performance")
    with first_of_each_host():
        source = build.build_source(config, builder)
    if batch_size > len(source):
        raise ValueError(f"trainer.batch_size={batch_size} is larger than the data: {source.name} has {len(source)} images")
    builder = build.Builder(builder.allowed, epoch_size=len(source), batch_size=batch_size)
    settings = builder.trainer_settings(config["trainer"])
    schedule = build.build_schedule(config, builder)
    method = build.build_method(config, source, builder)
    if settings.sync_batch_norm:
        method = _synchronised(method, device)
    performance.place(method, device)
    optimizers = build.build_optimizers(config, method, builder, lambda kind: performance.of_optimizer(kind, device))
    evaluator = build.build_evaluator(config, builder)  # last, because it may download
    return Parts(config, device, precision, performance, settings, source, method, optimizers, schedule, evaluator)


def _synchronised(method: Method, device: torch.device) -> Method:
    if device.type != "cuda" and world_size() > 1:
        raise ValueError(f"trainer.sync_batch_norm=true needs GPUs, and the device is {device.type}: leave it false")
    return nn.SyncBatchNorm.convert_sync_batchnorm(method)


def find_accumulation(config: Config, device_name: str) -> int:
    """The fewest microbatches with which a step fits into the GPU's memory, found by trying; 1 on a CPU.

    Raises:
        ValueError: if not even single images fit.
    """
    if world_size() > 1:
        raise ValueError(
            "trainer.accumulation=auto tries one process: give a number, which dry_run=true finds on one GPU with "
            f"trainer.batch_size={config['trainer']['batch_size']} / {world_size()} processes"
        )
    batch_size = config["trainer"]["batch_size"]
    for count in (n for n in range(1, batch_size + 1) if batch_size % n == 0):
        parts = assemble({**config, "trainer": {**config["trainer"], "accumulation": count}}, device_name)
        if parts.device.type != "cuda" or _fits(parts):
            return count
        del parts
        gc.collect()
        torch.cuda.empty_cache()
    raise ValueError("not even single images fit into the GPU's memory: choose a smaller data.image_size or model")


def _fits(parts: Parts) -> bool:
    """Whether two steps on empty images do not run out of memory; the first one makes the optimizers' state."""
    source = parts.source
    count = parts.settings.batch_size
    labels = None if source.labels is None else np.zeros(count, dtype=np.int64)
    images = np.zeros((count, *source.shape), dtype=np.uint8)
    sample = Data(ArraySource("empty", images, labels, source.class_names), placement="device", num_workers=0,
                  horizontal_flip=False, max_corrupt=0, device=parts.device)  # fmt: skip
    trainer = parts.trainer(sample, folder=Path(), make_logger=lambda *_: SilentLogger(), describe={})
    steps = trainer.steps()
    try:
        for _ in range(2):
            next(steps)
        torch.cuda.synchronize(parts.device)
    except torch.OutOfMemoryError:
        return False
    return True


def describe_parts(parts: Parts, placement: str) -> None:
    """Say what will be trained, on what, and how."""
    source, groups = parts.source, parts.method.parameter_groups()
    shape = "x".join(map(str, source.shape))
    log.info("data: %s, %d images of %s, placement %s", source.name, len(source), shape, placement)
    if source.labels is not None and "label" not in parts.method.batch_keys:
        log.info("the data's %d classes are not used: the model is unconditional", len(source.class_names))
    counts = (f"{name} {sum(p.numel() for p in parameters):,}" for name, parameters in groups.items())
    log.info("parameters: %s", ", ".join(counts))
    log.info("device %s, precision %s, %d threads", parts.device, parts.precision.name, torch.get_num_threads())
    log.info("performance: %s", parts.performance.describe())
    if world_size() > 1:
        log.info("%d processes, each with %d images of a batch", world_size(), parts.settings.batch_size // world_size())
