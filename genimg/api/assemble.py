"""From a config to everything that a training needs, with nothing written yet."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from genimg.api.data import build_dataset, build_loader, build_task
from genimg.api.usual import evaluation_at_hand
from genimg.config.compatibility import (
    check_kind,
    check_pairing,
    check_top_level,
    measures_held_out,
    refuse_unread_conditioning,
)
from genimg.config.compose import Config
from genimg.config.instantiate import ALLOWED, Builder, Named, build_model, mounted, origins_of
from genimg.data.captions import caption_length, encode
from genimg.data.datasets.builtin import Source
from genimg.data.facts import DataFacts
from genimg.data.loader import available_keys
from genimg.data.split import random_part
from genimg.data.subsets import random_order
from genimg.data.tasks.base import Task
from genimg.errors import ConfigError
from genimg.evaluation.extractors.base import WeightsNotAtHandError
from genimg.evaluation.periodic import PeriodicEvaluator
from genimg.methods.base import Method
from genimg.methods.image_to_image import Translation
from genimg.training.components import TrainingComponents
from genimg.training.decisions import Decisions
from genimg.training.device import choose_device, choose_precision, keep_freed_memory
from genimg.training.optimizers import OptimizerSpec
from genimg.training.schedules import OptimizerSchedules
from genimg.training.state import TrainerSettings
from genimg.types import Batch
from genimg.utils.distributed import copy_from_first_, failing_together, first_of_each_host, of_first_rank, world_size
from genimg.utils.images import to_float

if TYPE_CHECKING:
    from genimg.training.logger import Recorder  # whose module imports TensorBoard

log = logging.getLogger(__name__)

_HOW_TO_HAVE = {
    "caption": "; captions of a folder are in its metadata.jsonl, or in a .txt beside every image (docs/data.md)",
    "label": "; the classes of a folder are its subdirectories",
}


@dataclass(frozen=True)
class Assembly:
    """A config and what was built of it.

    Attributes:
        config: The given one, or the same with another evaluation, where the given one's weights are not at hand.
        builder: Of the config's nodes.
        facts: About the data.
        components: Of the training.
        logger: Takes the run's records besides its directory; None for ``logger=tensorboard``.
    """

    config: Config
    builder: Builder
    facts: DataFacts
    components: TrainingComponents
    logger: Recorder | None


def assemble(
    config: Config,
    device_name: str,
    *,
    named: Named | None = None,
    decided: Decisions | None = None,
    may_replace_evaluation: bool = False,
    dataset: Source | None = None,
) -> Assembly:
    """Build a training's components; cheap checks run first, so a typo fails before any download.

    Args:
        config: The composed config. ``trainer.accumulation=auto`` stands for 1 until it is resolved by trials.
        device_name: Of this process.
        named: See ``Builder``; None for a config that is not a checkpoint's.
        decided: What ``auto`` meant in the run that is resumed.
        may_replace_evaluation: Whether another evaluation, or none, takes the place of one whose weights cannot be had.
        dataset: Images to train on; None builds the config's.

    Raises:
        ConfigError, DataError: For what a config or the data can have wrong.
        AnotherProcessError: If another rank could not build its components.
    """
    with failing_together():
        builder, trainer_config = _checked(config, named, decided)
        augment, logger = (builder.build_group(config, key) for key in ("data_augment", "logger"))
        device = choose_device(device_name)
        precision = choose_precision(config["precision"], device)
        performance = builder.build(config["performance"], "performance")
        if decided is not None and performance.compile == "auto":
            mode = False if performance.activation_checkpointing else decided.compile
            performance = replace(performance, compile=mode)
    with failing_together():
        if (name := of_first_rank(precision.name)) != precision.name:
            raise ConfigError(f"precision={config['precision']} is {precision.name} here and {name} elsewhere: name one")
    precision.apply_globally()
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config["seed"])  # of the initial weights
    with first_of_each_host():
        dataset = build_dataset(config, builder, dataset)
    with failing_together():
        batch_size = builder.batch_size
        if batch_size > len(dataset):
            raise ConfigError(
                f"trainer.batch_size={batch_size} is larger than the data: {dataset.name} has {len(dataset)} images: "
                f"set trainer.batch_size={len(dataset)} or less"
            )
        if isinstance(debug := config.get("debug"), dict) and debug.get("one_batch"):
            dataset = random_part(dataset, batch_size)
        builder = replace(builder, epoch_size=len(dataset))
        settings = builder.settings(TrainerSettings, trainer_config, "trainer")
        task = build_task(config, dataset, builder)
        with mounted("task", task) if config.get("task") else mounted("data", dataset):
            facts = DataFacts.of(dataset, task)
        method = build_method(config, dataset, task, facts, builder)
        specs = optimizer_specs(config, method, builder)
        schedules = build_schedules(config, specs, builder)
        if settings.sync_batch_norm:
            method = _synchronised(method, device)
        with mounted("performance", performance):
            performance.place(method, device)
    copy_from_first_(method.state_dict().values())

    def fused(optimizer: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        with mounted("performance", performance):
            return performance.of_optimizer(optimizer, settings, device)

    def make_optimizers() -> dict[str, Optimizer]:
        groups = method.parameter_groups()
        made = {name: spec.build(groups[name], batch_size, fused) for name, spec in specs.items()}
        for optimizer in made.values():
            performance.place_optimizer(optimizer)
        return made

    with first_of_each_host():
        optimizers = make_optimizers()
        try:
            evaluator: PeriodicEvaluator | None = builder.build_group(config, "evaluation")  # last, because it may download
        except WeightsNotAtHandError as error:
            if not may_replace_evaluation:
                fix = "; ".join(filter(None, (error.fix, "evaluation=none trains without an evaluation")))
                raise WeightsNotAtHandError(error.problem, fix, key=error.key) from error
            config = config.replaced(evaluation=evaluation_at_hand(config, str(error)))
            evaluator = builder.build_group(config, "evaluation")
        if evaluator is not None:
            with mounted("evaluation", evaluator):
                evaluator.check(method, dataset)
    with failing_together():
        if of_first_rank(str(config["evaluation"])) != str(config["evaluation"]):
            raise ConfigError("the evaluation's weights are not on every host: put them there, or set evaluation=none")
        welcome = [key for key in method.welcome_keys if key in available_keys(dataset)]
        data = build_loader(config, dataset, device, keys=(*method.batch_keys, *welcome), augment=augment, task=task)
    components = TrainingComponents(
        device, precision, performance, settings, dataset, data, method, optimizers, make_optimizers, schedules, evaluator,
        config["seed"],
    )  # fmt: skip
    return Assembly(config, builder, facts, components, logger)


def optimizer_specs(config: Mapping[str, Any], method: Method, builder: Builder) -> dict[str, OptimizerSpec]:
    """Return the optimizer of each parameter group, with that group's overrides.

    Raises:
        ConfigError: For overrides of a group that the method does not have, or settings that no optimizer takes.
    """
    groups = method.parameter_groups()
    overrides: Mapping[str, Mapping[str, Any]] = config["optimizer_overrides"]
    for name in overrides:
        if name not in groups:
            raise ConfigError(f"optimizer_overrides.{name}: the model has no such parameter group, but {', '.join(groups)}",
                              key=f"optimizer_overrides.{name}")  # fmt: skip
    specs = {}
    for name in groups:
        node = {**config["optimizer"], **overrides.get(name, {}), "_partial_": True}
        optimizer = builder.build(node, "optimizer")
        specs[name] = OptimizerSpec(optimizer.func, optimizer.keywords).corrected(method.lazy_share(name))
    return specs


def build_schedules(config: Mapping[str, Any], specs: Mapping[str, OptimizerSpec], builder: Builder) -> OptimizerSchedules:
    """Build what changes in the optimizers while they train: the ``schedule`` group, and schedules within ``optimizer``."""
    return OptimizerSchedules(
        builder.build(config["schedule"], "schedule"), {name: spec.schedules() for name, spec in specs.items()}
    )


def build_method(config: Config, dataset: Source, task: Task | None, facts: DataFacts, builder: Builder) -> Method:
    """Build the model, and check it against its loss and the data.

    Raises:
        ConfigError: If the loss does not fit the method, the data lacks what it needs, or shapes do not match.
    """
    method_class = check_pairing(config, builder)
    check_kind(method_class, dataset, task)
    method = build_model(config, facts, builder, task)
    refuse_unread_conditioning(config, method)
    reconstructs = method.reconstructs and bool((config.get("evaluation") or {}).get("reconstructions"))
    held_out = method.translates or method.likelihood is not None or reconstructs or measures_held_out(config, builder)
    takes_some = not isinstance(config["data"].get("validation"), str)  # another split takes nothing from the training
    if dataset.validation is not None and takes_some and not held_out:
        raise ConfigError(
            f"data.validation={config['data']['validation']} has no effect on this model, a {type(method).__name__}, which is "
            "measured against all images: set data.validation=0, or choose a metric of held-out images such as memorisation"
        )
    available = set(task.keys if task else available_keys(dataset))
    missing = [key for key in method.batch_keys if key not in available]
    if missing:
        raise ConfigError(
            f"the model needs {', '.join(missing)}, but data {dataset.name} has only {', '.join(sorted(available))}: choose "
            "conditioning=none, or other data" + _HOW_TO_HAVE.get(missing[0], ""),
            key="conditioning",
        )
    if "label" in method.batch_keys and method.num_classes != facts.num_classes:
        raise ConfigError(
            f"the model is made for {method.num_classes} classes, but data {dataset.name} has {facts.num_classes}: remove "
            "num_classes from the model and the conditioning",
            key="conditioning.encoder.num_classes",
        )
    _check_shapes(method, dataset, task)
    if method.num_remembered:
        method.remember(_conditions(dataset, method))
    return method


def _conditions(dataset: Source, method: Method) -> Batch:
    """All labels, or the captions of random images, as they stand in a batch, if the method asks for them."""
    batch: Batch = {}
    if "label" in method.batch_keys and dataset.labels is not None:
        batch["label"] = torch.from_numpy(dataset.labels)
    if "caption" in method.batch_keys:
        # A small source's captions are repeated, each equally often to within one.
        texts = dataset.captions(np.resize(random_order(len(dataset), seed=0), method.num_remembered))
        batch["caption"] = encode(texts, caption_length(texts))
    return batch


def _check_shapes(method: Method, dataset: Source, task: Task | None) -> None:
    channels, height, width = dataset.shape
    if height % method.multiple or width % method.multiple:
        raise ConfigError(
            f"the model takes images whose sides are multiples of {method.multiple} pixels, not {height}x{width}: change "
            "data.image_size"
        )
    image = to_float(torch.zeros(2, *dataset.shape, dtype=torch.uint8))
    try:
        with torch.no_grad(), mounted("model", method):
            method.eval()
            method.check({"image": image} if task is None else task(image, np.arange(2, dtype=np.int64), 0))
            made = dataset.shape if task else tuple(method.sample(method.draw(range(2), 0)).shape[1:])
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Expected more than 1"):  # instance norm's, of one pixel
            raise
        fix = (
            "give larger images with data.image_size, or a discriminator with fewer strided convolutions "
            "(model.discriminator.num_strided)" if task else
            "remove channels and image_size below model, which follow the data"
        )  # fmt: skip
        raise ConfigError(
            f"the model's networks do not fit the data's images of {channels} channels and {height}x{width} pixels "
            f"({str(error).splitlines()[0]}): {fix}"
        ) from error
    finally:
        method.train()
    if made != dataset.shape:
        raise ConfigError(
            f"the model makes images of {made[0]} channels and {made[1]}x{made[2]} pixels, but data {dataset.name} has "
            f"{channels} channels and {height}x{width} pixels: remove channels and image_size below model, which follow the "
            "data"
        )


def _checked(config: Config, named: Named | None, decided: Decisions | None) -> tuple[Builder, dict[str, Any]]:
    """Return what needs no data: a builder, whose epochs are of one image, and the ``trainer`` group."""
    check_top_level(config)
    if type(config["seed"]) is not int or config["seed"] < 0:
        raise ConfigError(f"seed={config['seed']} must be a whole number, 0 or more")
    if not isinstance(config["allow"], list) or not isinstance(config["optimizer_overrides"], dict):
        raise ConfigError("allow must be a list such as allow=[mypackage], and optimizer_overrides a mapping", key="allow")
    trainer = dict(config["trainer"])
    if type(trainer.get("batch_size")) is not int or trainer["batch_size"] < 1:
        raise ConfigError(f"trainer.batch_size={trainer.get('batch_size')} must be 1 or more images")
    if trainer.get("accumulation") == "auto":
        if world_size() > 1 and trainer.get("sync_batch_norm"):
            raise ConfigError(
                "trainer.accumulation=auto tries each process alone, which trainer.sync_batch_norm=true does not allow: "
                "give a number"
            )
        trainer["accumulation"] = decided.accumulation if decided else 1
    builder = Builder((*ALLOWED, *map(str, config["allow"])), epoch_size=1, batch_size=trainer["batch_size"], named=named)
    builder = replace(builder, origins=origins_of(config.raw))
    check_pairing(config, builder)
    builder.settings(TrainerSettings, trainer, "trainer")
    return builder, trainer


def _synchronised(method: Method, device: torch.device) -> Method:
    if world_size() == 1:
        log.warning("trainer.sync_batch_norm=true has no effect in a single process")
    elif device.type != "cuda":
        raise ConfigError(f"trainer.sync_batch_norm=true needs GPUs, and the device is {device.type}: leave it false")
    for name, network in list(method.named_children()):
        if any(parameter.requires_grad for parameter in network.parameters()):  # the first rank samples averages by itself
            setattr(method, name, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    return method


def _shape(parts: TrainingComponents) -> str:
    """Of the images, or of both images of a pair."""
    size = "x".join(map(str, parts.source.shape[1:]))
    if not isinstance(parts.method, Translation):
        return f"images of {parts.source.shape[0]}x{size}"
    source, target = parts.method.task.channels(parts.source.shape)
    return f"pairs of {source}x{size} and {target}x{size}"


def describe_parts(parts: TrainingComponents) -> None:
    """Say what will be trained, on what, and how."""
    source, groups = parts.source, parts.method.parameter_groups()
    log.info("data: %s, %d %s, placement %s", source.name, len(source), _shape(parts), parts.data.placement)
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
