"""From a resolved config to everything that a training needs, with nothing written yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from genimg.api.usual import evaluation_at_hand
from genimg.config import instantiate
from genimg.config.instantiate import Config
from genimg.data.datasets.builtin import Source
from genimg.data.loader import Data
from genimg.data.split import random_part
from genimg.evaluation.extractors.base import WeightsNotAtHandError
from genimg.evaluation.periodic import PeriodicEvaluator
from genimg.methods.base import Method
from genimg.methods.image_to_image import Translation
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.device import Precision, choose_device, choose_precision, keep_freed_memory
from genimg.training.logger import Logger
from genimg.training.performance import Performance
from genimg.training.schedules import OptimizerSchedules
from genimg.training.state import TrainerSettings
from genimg.training.trainer import Trainer
from genimg.utils.distributed import copy_from_first_, failing_together, first_of_each_host, of_first_rank, world_size

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
    make_optimizers: Callable[[], dict[str, Optimizer]]
    schedules: OptimizerSchedules
    evaluator: PeriodicEvaluator | None
    builder: instantiate.Builder

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
            self.schedules,
            data,
            self.evaluator,
            precision=self.precision,
            performance=self.performance,
            seed=self.config["seed"],
            folder=CheckpointFolder(folder, keep_last=self.settings.keep_last),
            make_logger=make_logger,
            describe=describe,
        )


def assemble(
    config: Config, device_name: str, named: instantiate.Named | None = None, *, may_replace_evaluation: bool = False
) -> Parts:
    """Build a training's parts, the cheap ones first: nobody shall download a dataset to learn of a typing mistake.

    Args:
        config: resolved. ``trainer.accumulation=auto`` stands for 1 until ``autotune.settle``.
        device_name: of this process.
        named: see ``Builder``; None for a config that is not a checkpoint's.
        may_replace_evaluation: Whether another evaluation, or none, takes the place of one whose weights cannot be had; it is
            written into the config.

    Raises:
        ValueError, OSError: for what a config can have wrong, naming the key.
        AnotherProcessError: if another rank could not build its parts.
    """
    with failing_together():
        builder, trainer_config = _checked(config, named)
        device = choose_device(device_name)
        precision = choose_precision(config["precision"], device)
        performance = builder.build(config["performance"], "performance")
    with failing_together():
        if (name := of_first_rank(precision.name)) != precision.name:
            raise ValueError(f"precision={config['precision']} is {precision.name} here and {name} elsewhere: name one")
    precision.apply_globally()
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config["seed"])  # of the initial weights
    with first_of_each_host():
        source = instantiate.build_source(config, builder)
    with failing_together():
        batch_size = builder.batch_size
        if batch_size > len(source):
            raise ValueError(
                f"trainer.batch_size={batch_size} is larger than the data: {source.name} has {len(source)} images: "
                f"set trainer.batch_size={len(source)} or less"
            )
        if isinstance(debug := config.get("debug"), dict) and debug.get("one_batch"):
            source = random_part(source, batch_size)
        builder = replace(builder, epoch_size=len(source))
        settings = builder.trainer_settings(trainer_config)
        method = instantiate.build_method(config, source, builder)
        schedules = instantiate.build_schedules(config, method, builder)
        if settings.sync_batch_norm:
            method = _synchronised(method, device)
        performance.place(method, device)
    copy_from_first_(method.state_dict().values())

    def make_optimizers() -> dict[str, Optimizer]:
        made = instantiate.build_optimizers(config, method, builder, lambda *of: performance.of_optimizer(*of, device))
        for optimizer in made.values():
            performance.place_optimizer(optimizer)
        return made

    with first_of_each_host():
        optimizers = make_optimizers()
        try:
            evaluator = instantiate.build_evaluator(config, builder)  # last, because it may download
        except WeightsNotAtHandError as error:
            if not may_replace_evaluation:
                raise
            config["evaluation"] = evaluation_at_hand(config, str(error))
            evaluator = instantiate.build_evaluator(config, builder)
        if evaluator is not None:
            with instantiate.mounted("evaluation", evaluator):
                evaluator.check(method, source)
    with failing_together():
        if of_first_rank(str(config["evaluation"])) != str(config["evaluation"]):
            raise ValueError("the evaluation's weights are not on every host: put them there, or set evaluation=none")
    return Parts(
        config, device, precision, performance, settings, source, method, optimizers, make_optimizers, schedules, evaluator,
        builder,
    )  # fmt: skip


def _checked(config: Config, named: instantiate.Named | None) -> tuple[instantiate.Builder, Config]:
    """What needs no data: a builder, whose epochs are of one image, and the ``trainer`` group."""
    instantiate.check_top_level(config)
    if type(config["seed"]) is not int or config["seed"] < 0:
        raise ValueError(f"seed={config['seed']} must be a whole number, 0 or more")
    if not isinstance(config["allow"], list) or not isinstance(config["optimizer_overrides"], dict):
        raise ValueError("allow must be a list such as allow=[mypackage], and optimizer_overrides a mapping")
    trainer = dict(config["trainer"])
    if type(trainer.get("batch_size")) is not int or trainer["batch_size"] < 1:
        raise ValueError(f"trainer.batch_size={trainer.get('batch_size')} must be 1 or more images")
    if trainer.get("accumulation") == "auto":
        if world_size() > 1 and trainer.get("sync_batch_norm"):
            raise ValueError(
                "trainer.accumulation=auto tries each process alone, which trainer.sync_batch_norm=true does not allow: "
                "give a number"
            )
        trainer["accumulation"] = 1
    builder = instantiate.Builder(
        allowed=(*instantiate.ALLOWED, *map(str, config["allow"])), epoch_size=1, batch_size=trainer["batch_size"], named=named
    )
    instantiate.check_pairing(config, builder)
    instantiate.build_augment(config, builder)
    instantiate.build_recorder(config, builder)
    builder.trainer_settings(trainer)
    return builder, trainer


def _synchronised(method: Method, device: torch.device) -> Method:
    if world_size() == 1:
        log.warning("trainer.sync_batch_norm=true has no effect in a single process")
    elif device.type != "cuda":
        raise ValueError(f"trainer.sync_batch_norm=true needs GPUs, and the device is {device.type}: leave it false")
    for name, network in list(method.named_children()):
        if any(parameter.requires_grad for parameter in network.parameters()):  # the first rank samples averages by itself
            setattr(method, name, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    return method


def _shape(parts: Parts) -> str:
    """Of the images, or of both images of a pair."""
    size = "x".join(map(str, parts.source.shape[1:]))
    if not isinstance(parts.method, Translation):
        return f"images of {parts.source.shape[0]}x{size}"
    source, target = parts.method.task.channels(parts.source.shape)
    return f"pairs of {source}x{size} and {target}x{size}"


def describe_parts(parts: Parts, placement: str) -> None:
    """Say what will be trained, on what, and how."""
    source, groups = parts.source, parts.method.parameter_groups()
    log.info("data: %s, %d %s, placement %s", source.name, len(source), _shape(parts), placement)
    if source.validation is not None:
        log.info("held out for the evaluation: %d", len(source.validation))
    if source.labels is not None and not {"label", "caption", "source"} & set(parts.method.batch_keys):
        log.warning(
            "the model does not use the data's %d classes (a GAN does with conditioning=projection, a VAE with concat)",
            len(source.class_names),
        )
    counts = (f"{name} {sum(p.numel() for p in parameters):,}" for name, parameters in groups.items())
    log.info("parameters: %s", ", ".join(counts))
    log.info("device %s, precision %s, %d threads", parts.device, parts.precision.name, torch.get_num_threads())
    log.info("performance: %s", parts.performance.describe(parts.optimizers.values()))
    settings = parts.settings
    if settings.accumulation > 1:
        log.info("accumulation %d: microbatches of %d images", settings.accumulation,
                 settings.batch_size // (settings.accumulation * world_size()))  # fmt: skip
    if world_size() > 1:
        log.info("%d processes, each with %d images of a batch", world_size(), parts.settings.batch_size // world_size())
