"""Build everything that training needs from a config, without writing any file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.api.data import build_dataset, build_loader, build_task
from genimg.api.default_evaluation import replacement_evaluation
from genimg.api.method import Initialise, build_method
from genimg.config.compatibility import (
    check_pairing,
    check_top_level,
)
from genimg.config.compose import Config
from genimg.config.evaluation import build_expected, build_scheduled_evaluator
from genimg.config.instantiate import ALLOWED, Builder, Named, chosen_nodes, mounted, origins_of
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.facts import DataFacts
from genimg.data.loader import available_keys
from genimg.data.packed_files import LATENT
from genimg.data.split import random_part
from genimg.errors import ConfigError
from genimg.evaluation.extractors.base import MissingWeightsError
from genimg.methods.base import Method, frozen_names, trained_groups
from genimg.methods.capabilities import RegularisesLazily, TakesConditions, TrainsSharded, Translates, offers
from genimg.training.components import TrainingComponents
from genimg.training.decisions import Decisions
from genimg.training.device import Precision, choose_device, choose_precision
from genimg.training.ema import Profile, chosen_weights, require_names
from genimg.training.evaluation_schedule import ScheduledEvaluator
from genimg.training.freezing import freeze
from genimg.training.optimizers import OptimizerSpec, require_capturable
from genimg.training.performance import Performance
from genimg.training.recorder import Recorder
from genimg.training.schedules import OptimizerSchedules
from genimg.training.state import TrainerSettings
from genimg.training.thread_choice import Threads
from genimg.utils.distributed import broadcast_, broadcast_object, first_of_each_host, raise_on_any_rank, world_size

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """A config and the objects built from it.

    Attributes:
        config: The given config, with a different evaluation if the weights of the given one are not available.
        builder: Builder of the config's nodes.
        facts: Facts about the data.
        components: The training components.
        logger: Logger that receives the run's records in addition to its directory; None for ``logger=tensorboard``.
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
    images_per_second: float | None = None,
    may_replace_evaluation: bool = False,
    dataset: ImageDataset | None = None,
    weights: Mapping[str, Tensor] | None = None,
    trained: Mapping[str, Tensor] = MappingProxyType({}),
    labelled: bool = True,
    check_classes: Callable[[Sequence[str]], None] | None = None,
    initialise: Initialise | None = None,
    from_the_start: bool = False,
    evaluates: bool = True,
) -> Assembly:
    """Build the components of a training run. Cheap checks run first, so a typo fails before any download.

    Args:
        config: The composed config. ``trainer.accumulation=auto`` counts as 1 until trials resolve it.
        device_name: Name of this process's device.
        named: See ``Builder``; None for a config that does not come from a checkpoint.
        decided: Resolved ``auto`` settings of the run that is resumed.
        images_per_second: Images that a second of a duration stands for; None if ``trainer.duration`` is not a time.
        may_replace_evaluation: Whether to use another evaluation, or none, if the weights of the given one are unavailable.
        dataset: Images to train on; None builds the config's dataset.
        weights, trained: See ``build_method``. Only the first rank needs ``trained``.
        labelled: See ``Builder``.
        check_classes: Function called with the class names of the data before the model is built.
        initialise: See ``build_method``; only the first rank needs it.
        from_the_start: See ``build_method``.
        evaluates: Whether to build the evaluation.

    Raises:
        ConfigError, DataError: If the config or the data is invalid.
        AnotherProcessError: If another rank could not build its components.
    """
    with raise_on_any_rank():
        builder, trainer_config, method_class = _checked(config, named, decided, images_per_second)
        builder = replace(builder, labelled=labelled)
        augment, logger = (builder.build_group(config, key) for key in ("augment", "logger"))
        device, precision, performance = _placement(config, device_name, decided, builder)
        is_sharded = _is_sharded(config, method_class)
        if is_sharded:
            performance = _for_sharding(performance, config, decided)
    with raise_on_any_rank():
        if (name := broadcast_object(precision.name)) != precision.name:
            raise ConfigError(
                f"precision={config['precision']} is {precision.name} here and {name} on another host: choose one"
            )
    precision.apply_globally()
    torch.manual_seed(config["seed"])  # for the initial weights
    with first_of_each_host():
        dataset = build_dataset(config, builder, dataset)
    with raise_on_any_rank():
        if check_classes is not None:
            check_classes(dataset.class_names)
        dataset = _large_enough(dataset, config, builder.batch_size)
        builder = replace(builder, epoch_size=len(dataset))
        settings = builder.settings(TrainerSettings, trainer_config, "trainer")
        task = build_task(config, dataset, builder)
        with mounted("task", task) if config.get("task") else mounted("data", dataset):
            facts = DataFacts.of(dataset, task)
        profiles: dict[str, Profile] = builder.build(chosen_nodes(config["ema"], "ema"), "ema")
        with mounted("ema", require_names):
            require_names(profiles)
        with mounted("trainer", settings):
            chosen_weights(profiles, settings.weights)
        method = build_method(config, dataset, task, facts, builder, method_class, weights, trained, initialise, from_the_start)
        specs = optimizer_specs(config, method, builder)
        if is_sharded:
            for spec in specs.values():
                spec.require_elementwise()
        schedules = build_schedules(config, specs, builder)
        if settings.sync_batch_norm:
            method = _synchronised(method, device)
        freeze(method, config.get("freeze") or ())
        with mounted("performance", performance):
            if is_sharded:
                performance.prepare(method, device)
            else:
                performance.place(method, device)
    broadcast_(method.state_dict().values())
    sharding = _sharded(method, device) if is_sharded else None
    make_optimizers = partial(_optimizers, specs, method, performance, device, settings.batch_size, sharding)
    with first_of_each_host():
        optimizers = make_optimizers()
        performance = _checked_graphs(config, performance, optimizers, schedules)
        evaluator = None
        if evaluates:
            config, evaluator = _evaluator(config, builder, may_replace_evaluation)  # last, because this may download weights
        if evaluator is not None:
            with mounted("evaluation", evaluator.evaluator):
                evaluator.check(method, dataset)
    with raise_on_any_rank():
        if broadcast_object(str(config["evaluation"])) != str(config["evaluation"]):
            raise ConfigError("the evaluation's weights are not on every host: put them there, or set evaluation=none")
        welcome = _welcome_keys(method, dataset, changes=augment is not None or config["data"].get("horizontal_flip") is True)
        data = build_loader(config, dataset, device, keys=(*method.batch_keys, *welcome), augment=augment, task=task)
    components = TrainingComponents(
        device, precision, performance, settings, dataset, data, method, optimizers, make_optimizers, schedules, evaluator,
        profiles, config["seed"], images_per_second, sharding,
    )  # fmt: skip
    return Assembly(config, builder, facts, components, logger)


def _welcome_keys(method: Method, dataset: ImageDataset, *, changes: bool) -> list[str]:
    """Return the method's optional batch keys that the data has, without packed latents if training changes the images."""
    found = [key for key in method.optional_batch_keys if key in available_keys(dataset)]
    takes_latents = any(key.startswith(LATENT) for key in method.optional_batch_keys)
    has_latents = dataset.latent_key is not None and dataset.latent_key.startswith(LATENT)
    if takes_latents and has_latents and (changes or dataset.latent_key not in found):
        why = "flips and augmentation change the images" if dataset.latent_key in found else "the model has another autoencoder"
        log.warning("the packed latents of %s are not used, because %s", dataset.name, why)
        found = [key for key in found if key != dataset.latent_key]
    return found


def _placement(
    config: Config, device_name: str, decided: Decisions | None, builder: Builder
) -> tuple[torch.device, Precision, Performance]:
    """Return the device, the precision and the performance settings for training.

    Raises:
        ConfigError: If a setting is invalid, or ``performance.graph=true`` is impossible here.
    """
    device = choose_device(device_name)
    wanted = decided.precision if decided is not None and config["precision"] == "auto" else config["precision"]
    precision = choose_precision(wanted, device)
    performance: Performance = builder.build(config["performance"], "performance")
    if decided is not None and performance.compile == "auto":
        with mounted("performance", performance):
            performance = replace(performance, compile=False if performance.activation_checkpointing else decided.compile)
    reason = performance.refusal_of_graphs(device)
    if reason and performance.graph is True:
        problem = f"performance.graph=true is impossible, because {reason}"
        raise ConfigError(problem, "set it to auto or false", key="performance.graph")
    if decided is not None and performance.graph == "auto":
        performance = replace(performance, graph=decided.graph and performance.may_choose_graphs(device))
    return device, precision, performance


def _checked_graphs(
    config: Config, performance: Performance, optimizers: Mapping[str, Optimizer], schedules: OptimizerSchedules
) -> Performance:
    """Return the performance settings, without CUDA graphs if they were not chosen by the user and the optimizers cannot run
    as part of them.

    Raises:
        ConfigError: If the user has chosen graphs that are impossible.
    """
    if performance.graph is not True:
        return performance
    try:
        with mounted("performance", performance):
            for name, optimizer in optimizers.items():
                require_capturable(optimizer, schedules.settings.get(name, {}))
    except ConfigError:
        if config["performance"].get("graph") is True:
            raise
        return replace(performance, graph=False)  # decided by a run that had other optimizers
    return performance


def _is_sharded(config: Config, method_class: type[Method]) -> bool:
    """Return whether to divide the networks among processes.

    Raises:
        ConfigError: If the model's networks cannot be divided.
    """
    if config["distributed"] == "replicated":
        return False
    if config.get("freeze"):
        raise ConfigError("freeze does not work with distributed=fsdp", "choose distributed=replicated", key="freeze")
    if not offers(method_class, TrainsSharded):
        problem = f"distributed=fsdp does not work for the model, a {method_class.__name__}"
        fix = "choose distributed=replicated; fsdp is for diffusion, flow matching, consistency models and restoration"
        raise ConfigError(problem, fix, key="distributed")
    if world_size() == 1:
        log.warning("distributed=fsdp has no effect in a single process: start several with torchrun (docs/distributed.md)")
    return world_size() > 1


def _for_sharding(performance: Performance, config: Config, decided: Decisions | None) -> Performance:
    """Return the performance settings for divided networks.

    Raises:
        ConfigError: If the user has chosen settings that are impossible with them.
    """
    wrong = {
        "performance.channels_last": (config["performance"]["channels_last"] is True, "auto"),
        "performance.compile": (config["performance"]["compile"] not in ("auto", False), "auto"),
        "performance.graph": (config["performance"]["graph"] is True, "auto"),
        "trainer.accumulation": (config["trainer"]["accumulation"] == "auto" and decided is None, "a number"),
        "trainer.sync_batch_norm": (config["trainer"].get("sync_batch_norm") is True, "false"),
    }
    for key, (is_wrong, right) in wrong.items():
        if is_wrong:
            group, name = key.split(".")
            problem = f"{key}={config[group][name]} does not work with distributed=fsdp".replace("=True", "=true")
            raise ConfigError(problem, f"set it to {right}, or choose distributed=replicated", key=key)
    return replace(performance, channels_last=False, compile=False, cpu_optimizations=False)


def _sharded(method: Method, device: torch.device) -> Sharding:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long

    return Sharding(method, device)


def _large_enough(dataset: ImageDataset, config: Config, batch_size: int) -> ImageDataset:
    """Return the dataset, or one batch of it for ``debug.one_batch``.

    Raises:
        ConfigError: If it has fewer images than a batch.
    """
    if batch_size > len(dataset):
        raise ConfigError(
            f"trainer.batch_size={batch_size} is larger than the data: {dataset.name} has {len(dataset)} images: "
            f"set trainer.batch_size={len(dataset)} or less"
        )
    debug = config.get("debug")
    return random_part(dataset, batch_size) if isinstance(debug, dict) and debug.get("one_batch") else dataset


def _optimizers(
    specs: Mapping[str, OptimizerSpec],
    method: Method,
    performance: Performance,
    device: torch.device,
    batch_size: int,
    sharding: Sharding | None,
) -> dict[str, Optimizer]:
    """Create a fresh optimizer for each parameter group."""

    def fused(optimizer: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        with mounted("performance", performance):
            return performance.of_optimizer(optimizer, settings, device)

    groups: dict[str, Any] = {**trained_groups(method)}
    if sharding is not None:
        groups = {name: sharding.optimizer_groups(parameters) for name, parameters in groups.items()}
    made = {name: spec.build(groups[name], batch_size, fused) for name, spec in specs.items()}
    for optimizer in made.values():
        performance.place_optimizer(optimizer)
    return made


def _evaluator(config: Config, builder: Builder, may_replace: bool) -> tuple[Config, ScheduledEvaluator | None]:
    """Build the evaluation, or a replacement whose weights are available.

    Args:
        config: The composed config.
        builder: Builder of its nodes.
        may_replace: Whether a replacement is allowed.

    Returns:
        The config with the evaluation that was built, and the evaluator, which is None for ``evaluation=none``.

    Raises:
        MissingWeightsError: If the weights are unavailable and no replacement is allowed.
    """
    expected = build_expected(config.get("expected"), builder)
    try:
        return config, build_scheduled_evaluator(config["evaluation"], builder, expected)
    except MissingWeightsError as error:
        if not may_replace:
            fix = "; ".join(filter(None, (error.fix, "evaluation=none trains without an evaluation")))
            raise MissingWeightsError(error.problem, fix, key=error.key) from error
        config = config.replaced(evaluation=replacement_evaluation(config, str(error)))
        return config, build_scheduled_evaluator(config["evaluation"], builder, expected)


def optimizer_specs(config: Mapping[str, Any], method: Method, builder: Builder) -> dict[str, OptimizerSpec]:
    """Return the optimizer spec of each parameter group, with the group's overrides.

    Raises:
        ConfigError: For overrides of a group that the method does not have, or for invalid optimizer settings.
    """
    groups = method.parameter_groups()
    overrides: Mapping[str, Mapping[str, Any]] = config["optimizer_overrides"]
    for name in overrides:
        if name not in groups:
            raise ConfigError(f"optimizer_overrides.{name}: the parameter groups of this model are {', '.join(groups)}",
                              key=f"optimizer_overrides.{name}")  # fmt: skip
    specs = {}
    for name in groups:
        node = {**config["optimizer"], **overrides.get(name, {}), "_partial_": True}
        optimizer = builder.build(node, "optimizer")
        ratio = method.lazy_regularisation_ratio(name) if isinstance(method, RegularisesLazily) else 0.0
        specs[name] = OptimizerSpec(optimizer.func, optimizer.keywords).corrected(ratio)
    return specs


def build_schedules(config: Mapping[str, Any], specs: Mapping[str, OptimizerSpec], builder: Builder) -> OptimizerSchedules:
    """Build the optimizer schedules: those of the ``schedule`` group and those within ``optimizer``."""
    return OptimizerSchedules(
        builder.build(config["schedule"], "schedule"), {name: spec.schedules() for name, spec in specs.items()}
    )


def _checked(
    config: Config, named: Named | None, decided: Decisions | None, images_per_second: float | None
) -> tuple[Builder, dict[str, Any], type[Method]]:
    """Return what needs no data: a builder in which an epoch is one image, the ``trainer`` group, and the model's class."""
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
                "trainer.accumulation=auto tests each process alone, which trainer.sync_batch_norm=true does not allow: "
                "give a number"
            )
        trainer["accumulation"] = decided.accumulation if decided else 1
    allowed = (*ALLOWED, *map(str, config["allow"]))
    origins = origins_of(config.raw)
    builder = Builder(
        allowed,
        epoch_size=1,
        batch_size=trainer["batch_size"],
        images_per_second=images_per_second,
        duration=trainer.get("duration"),
        named=named,
        origins=origins,
    )
    method_class = check_pairing(config, builder)
    builder.settings(TrainerSettings, trainer, "trainer")  # only to validate: durations in epochs are not known yet
    return builder, trainer, method_class


def _synchronised(method: Method, device: torch.device) -> Method:
    if world_size() == 1:
        log.warning("trainer.sync_batch_norm=true has no effect in a single process")
    elif device.type != "cuda":
        raise ConfigError(f"trainer.sync_batch_norm=true needs GPUs, but the device is {device.type}: set it to false")
    for name, network in list(method.named_children()):
        if any(parameter.requires_grad for parameter in network.parameters()):  # rank 0 alone samples from averages
            setattr(method, name, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    return method


def _shape(parts: TrainingComponents) -> str:
    """Describe the shape of the images, or of both images of a pair."""
    size = "x".join(map(str, parts.source.shape[1:]))
    if not isinstance(parts.method, Translates):
        return f"images of {parts.source.shape[0]}x{size}"
    source, target = parts.method.task.channels(parts.source.shape)
    return f"pairs of {source}x{size} and {target}x{size}"


def describe_parts(parts: TrainingComponents, config: Mapping[str, Any]) -> None:
    """Log the model, the data and the training settings.

    Args:
        parts: The training components.
        config: Their config.
    """
    source, groups = parts.source, trained_groups(parts.method)
    log.info("data: %s, %d %s, storage %s", source.name, len(source), _shape(parts), parts.data.storage)
    if config["data"].get("classes") is not None:
        log.info("data.classes: %s", ", ".join(source.class_names))
    if source.part_of is not None:
        log.info("data.max_images: a random part of %d images, the same in every run", source.part_of)
    if source.validation is not None:
        log.info("held out for the evaluation: %d", len(source.validation))
    if (key := source.latent_key) is not None and key in parts.data.keys:
        packed = "latents are used, so images are not encoded in each step" if key.startswith(LATENT) else "noise is used"
        log.info("the packed %s", packed)
    if source.labels is not None and not {"label", "caption", "source"} & set(parts.method.batch_keys):
        if isinstance(parts.method, TakesConditions):
            fitting = "projection" if "auxiliary" in config["model"] else "label"  # only GANs have an auxiliary loss
            log.warning(
                "the data's %d classes are ignored: to generate a chosen one, set conditioning=%s",
                len(source.class_names), fitting,
            )  # fmt: skip
        else:
            log.warning("the data's %d classes are ignored, because this model has no labels", len(source.class_names))
    counts = (f"{name} {sum(p.numel() for p in parameters):,}" for name, parameters in groups.items())
    log.info("parameters: %s", ", ".join(counts))
    if frozen := frozen_names(parts.method):
        sizes = [p.numel() for name, p in parts.method.named_parameters() if name in frozen]
        log.info("frozen: %s parameters in %d tensors", f"{sum(sizes):,}", len(sizes))
    threads = parts.threads or Threads(torch.get_num_threads(), torch.get_num_threads())
    log.info("device %s, precision %s, %s", parts.device, parts.precision.name, threads)
    log.info("performance: %s", parts.performance.describe(parts.optimizers.values()))
    settings = parts.settings
    if settings.accumulation > 1:
        log.info("accumulation %d: microbatches of %d images", settings.accumulation,
                 settings.batch_size // (settings.accumulation * world_size()))  # fmt: skip
    if world_size() > 1:
        share = " and a part of all weights" if parts.sharding is not None else ""
        log.info("%d processes, each with %d images of a batch%s", world_size(), settings.batch_size // world_size(), share)
