"""From config to objects: the only place that instantiates what a ``_target_`` names.

Configs can come out of a downloaded checkpoint, so a target is built only if it lives in one of the packages below, and
is defined there: ``genimg.data.datasets.builtin.os.system`` begins well and is refused all the same.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from genimg.config import schema
from genimg.data.captions import caption_length, encode
from genimg.data.datasets.builtin import Source
from genimg.data.datasets.unpaired import UnpairedSource
from genimg.data.loader import Data, UnpairedData, available_keys
from genimg.data.split import without_validation
from genimg.data.subsets import random_order
from genimg.data.tasks.base import Pair, Task
from genimg.data.transforms import SampleAugment
from genimg.errors import ConfigError, UserError, subject_of
from genimg.evaluation.periodic import PeriodicEvaluator
from genimg.methods.base import Method
from genimg.methods.image_to_image import Translation
from genimg.schedules import Schedule
from genimg.training.schedules import OptimizerSchedules, holds_schedule, valued
from genimg.training.state import TrainerSettings
from genimg.types import Batch
from genimg.utils.durations import NumImages, to_images
from genimg.utils.images import to_float
from genimg.utils.machine_local import MachineLocal, marker_of
from genimg.utils.paths import config_dir
from genimg.utils.words import nearest

if TYPE_CHECKING:
    from genimg.training.logger import Recorder  # whose module imports TensorBoard

ALLOWED = (
    "genimg.data.datasets.npz",
    "genimg.data.transforms",
    "genimg.data.tasks.degradations",
    "genimg.data.tasks.edges",
    "genimg.data.tasks.masks",
    "genimg.data.datasets.paired",
    "genimg.data.datasets.prepared",
    "genimg.data.datasets.shapes",
    "genimg.data.datasets.builtin",
    "genimg.data.datasets.unpaired",
    "genimg.evaluation.compare",
    "genimg.evaluation.extractors.classifier",
    "genimg.evaluation.extractors.custom",
    "genimg.evaluation.extractors.foundation",
    "genimg.evaluation.extractors.inception",
    "genimg.evaluation.likelihood",
    "genimg.evaluation.memorisation",
    "genimg.evaluation.metrics",
    "genimg.evaluation.image_metrics",
    "genimg.evaluation.translation",
    "genimg.losses",
    "genimg.methods",
    "genimg.networks",
    "genimg.schedules",
    "genimg.training.performance",
    "genimg.training.schedules",
    "genimg.training.wandb",
    "torch.nn",
    "torch.optim",
)
"""Packages whose classes and functions a config may name."""

_HYDRA_KEYS = {"_target_", "_partial_", "_args_"}
_PLACEMENT_KEYS = ("placement", "num_workers", "horizontal_flip", "max_corrupt")
SETTLED = ("num_classes", "source_channels", "target_channels")
"""Keys of ``data`` that are known only when the data is, and are then written wherever the config refers to them."""

Config = dict[str, Any]
Named = frozenset[tuple[str, Any]]


@dataclass(frozen=True)
class Builder:
    """Builds parts of a resolved config.

    Attributes:
        allowed: packages whose members may be built.
        epoch_size: images in the training data; 0 while they are not known, before any duration is needed.
        batch_size: images a step.
        named: Where the config is a checkpoint's, what the command line names for parameters marked as ``MachineLocal``: pairs
            of a parameter's name and its value. Any other value is refused. None for a config that the user composed.
        trains: Whether what only training needs is built, too.
    """

    allowed: tuple[str, ...] = ALLOWED
    epoch_size: int = 0
    batch_size: int = 1
    named: Named | None = None
    trains: bool = True

    def build(self, config: Config, key: str) -> Any:
        """Build the node ``config``, which stands at ``key``.

        Raises:
            ConfigError: For a target outside the allowed packages, an unknown or missing key, or a value that the
                constructor refuses.
        """
        return self._made(self._prepare(config, key, schedules=True), key)

    def _made(self, node: Any, key: str) -> Any:
        """Build a checked node, its parts first."""
        if isinstance(node, list):
            return [self._made(item, f"{key}[{i}]") for i, item in enumerate(node)]
        if not isinstance(node, dict):
            return node
        made = {name: self._made(value, f"{key}.{name}") for name, value in node.items()}
        if "_target_" not in made:
            return made
        target = self.locate(made.pop("_target_"), key)
        is_partial, positional = made.pop("_partial_", False), made.pop("_args_", [])
        if is_partial:
            return functools.partial(target, *positional, **made)
        with mounted(key, target):
            return target(*positional, **made)

    def locate(self, target: object, key: str) -> Any:
        """The class or function that ``target`` names, if it may be built."""
        if not isinstance(target, str):
            raise ValueError(f"{key}._target_={target} is not the dotted name of a class or function")
        module_name, _, name = target.rpartition(".")
        private = any(part.startswith("_") for part in target.split("."))
        allowed = not private and any(target.startswith(prefix + ".") for prefix in self.allowed)
        if allowed:
            found = _import(module_name, name, key, target)
            home = str(getattr(found, "__module__", ""))
            if inspect.isroutine(found) or inspect.isclass(found):
                allowed = any(home == prefix or home.startswith(prefix + ".") for prefix in self.allowed)
            else:
                allowed = False
            if target.startswith("torch."):  # its packages also hold functions that import modules and register hooks
                allowed = allowed and inspect.isclass(found) and issubclass(found, nn.Module | Optimizer)
            if allowed:
                return found
        raise ValueError(
            f"{key}._target_={target} is refused: only {', '.join(self.allowed)} may be built from a config; "
            "if you trust it, name your package with allow=[PACKAGE]"
        )

    def omits(self, target: Any) -> bool:
        """Return whether ``target`` is left out because only training needs it."""
        return not self.trains and getattr(target, "needed_in_training_only", False)

    def may_take(self, name: str, value: Any, mark: MachineLocal) -> bool:
        """Return whether the parameter ``name``, which carries ``mark``, may have this value of the config."""
        return self.named is None or mark.published(value) or any(pair == (name, value) for pair in self.named)

    def _prepare(self, node: Any, key: str, *, schedules: bool = False) -> Any:
        """Check every node below ``key`` against its target's signature and convert its durations.

        Args:
            schedules: whether a schedule may stand at ``key``.
        """
        if isinstance(node, list | tuple):
            return [self._prepare(item, f"{key}[{i}]", schedules=schedules) for i, item in enumerate(node)]
        if isinstance(node, str) and "${" in node:
            # Hydra would resolve it after this check, into whatever it likes.
            raise ValueError(f"{key}={node} holds an interpolation after the config was resolved: write the value itself")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if not isinstance(node, dict):
            raise ValueError(f"{key} holds a {type(node).__name__}: a config consists of mappings, lists, numbers and text")
        if "_target_" not in node:
            return {name: self._prepare(value, f"{key}.{name}") for name, value in node.items()}
        target = self.locate(node["_target_"], key)
        if _is_kind(target, Schedule) and not schedules:
            raise ValueError(f"{key} takes no schedule: write a number (docs/schedules.md lists what a schedule can drive)")
        if self.omits(target):
            return None
        for name, mark in local_parameters(target).items():
            if name in node and not self.may_take(name, node[name], mark):
                raise ValueError(name_again({f"{key}.{name}": node[name]}))
        parameters = inspect.signature(target).parameters
        partial = bool(node.get("_partial_", False))
        _check_keys(node, parameters, key, partial=partial)
        types = _type_hints(target.__init__ if inspect.isclass(target) else target)
        any_number = _is_kind(target, Optimizer)
        return {
            name: self._value(value, types.get(name, Any), f"{key}.{name}", schedules=any_number)
            for name, value in node.items()
        }

    def _value(self, value: Any, hint: Any, key: str, *, schedules: bool = False) -> Any:
        options = typing.get_args(hint)
        is_number = float in options and type(value) in (int, float)
        if hint is NumImages or (NumImages in options and not (value is None or is_number or isinstance(value, dict))):
            return to_images(value, epoch_size=self.epoch_size, batch_size=self.batch_size, key=key)
        _check_type(value, hint, key)
        return self._prepare(value, key, schedules=schedules or Schedule in options)

    def trainer_settings(self, config: Config) -> TrainerSettings:
        """The ``trainer`` group."""
        _check_keys(config, inspect.signature(TrainerSettings).parameters, "trainer", partial=False)
        types = typing.get_type_hints(TrainerSettings)
        return TrainerSettings(**{name: self._value(value, types[name], f"trainer.{name}") for name, value in config.items()})


@contextlib.contextmanager
def mounted(key: str, target: Any) -> Iterator[None]:
    """Say in terms of the config what an object that stands at ``key`` refuses in terms of its parameters.

    Args:
        key: Dotted key.
        target: The class or function, or an instance of the class.

    Raises:
        ConfigError: For a ValueError whose message begins with a parameter, and for any of a constructor that is not
            genimg's own. Another ValueError is a bug and passes.
    """
    owner = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    try:
        yield
    except UserError as error:
        raise error.mounted(key, _parameters(owner)) from error
    except (ValueError, TypeError) as error:
        is_ours = str(getattr(owner, "__module__", "")).partition(".")[0] == "genimg"
        subject = re.split(r"[.\[]", subject_of(str(error)))[0]
        if is_ours and (isinstance(error, TypeError) or subject not in _parameters(owner)):
            raise
        text = str(error) if subject in _parameters(owner) else f"{key}: {error}"
        raise ConfigError(text).mounted(key, _parameters(owner)) from error


def _parameters(target: Any) -> list[str]:
    return [name for name in inspect.signature(target).parameters if name not in ("self", "args", "kwargs")]


def builder_of(state: Config, allow: Sequence[str], named: Named = frozenset()) -> Builder:
    """Return what builds the parts of a checkpoint's config for anything but training.

    Args:
        state: The checkpoint's contents.
        allow: Packages that the user trusts, besides genimg's own.
        named: Values of machine-local parameters that the user names, see ``Builder``.
    """
    batch_size = state["config"]["trainer"]["batch_size"]
    return Builder((*ALLOWED, *allow), epoch_size=state["num_images"], batch_size=batch_size, named=named, trains=False)


def local_parameters(target: Any) -> dict[str, MachineLocal]:
    """Return the parameters of a class or function that are marked as ``MachineLocal``, with their marks."""
    hints = _type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    return {name: mark for name, hint in hints.items() if (mark := marker_of(hint)) is not None}


def name_again(dropped: Mapping[str, Any]) -> str:
    """Return the message about values by key that a checkpoint's config brings and must not."""
    listed = ", ".join(f"{key}={value}" for key, value in dropped.items())
    again = " ".join(f"++{key}=PATH" for key in dropped)
    return (
        f"the checkpoint's config names {listed}, but a checkpoint never decides which files of this machine are opened, "
        f"because they may run code: if you trust it, name it on the command line with {again}"
    )


def check_top_level(config: Config) -> None:
    """Refuse keys that nothing reads, such as a misspelt ``+sed=1``.

    Names that begin with an underscore are free, for values that other keys refer to.

    Raises:
        ValueError: naming the key and the nearest one.
    """
    train = OmegaConf.load(Path(config_dir()) / "train.yaml")
    groups = [key for entry in train.defaults if isinstance(entry, DictConfig) for key in entry]
    own = (option.name for option in schema.options_of(schema.COMMANDS["train"]))
    known = {*own, *(str(key) for key in groups)} - {"experiment"}
    for key in config:
        if key not in known and not key.startswith("_"):
            raise ValueError(f"unknown key {key}{nearest(key, known)}: nothing reads it; --cfg job shows all keys")


def build_source(config: Config, builder: Builder) -> Source:
    """The ``data`` group's images to train on, without the keys that say where they live."""
    data, validation = config["data"], config["data"].get("validation", 0)
    if not isinstance(validation, str):
        return without_validation(builder.build(_without_placement(data), "data"), validation)
    other = other_split(data, validation, key="data.validation", instead="give a share such as 0.1")
    source: Source = builder.build(_without_placement(data), "data")
    try:
        source.validation = builder.build(_without_placement(other), "data")
    except ValueError as error:
        raise ValueError(f"data.validation={validation}: {error}") from error
    if source.validation.fingerprint == source.fingerprint:
        raise ValueError(f"data.validation={validation} are the images that are trained on: change data.images or data.split")
    return source


def _without_placement(data: Config) -> Config:
    return {key: value for key, value in data.items() if key not in (*_PLACEMENT_KEYS, *SETTLED, "validation")}


def other_split(data: Config, split: str, *, key: str, instead: str) -> Config:
    """Return the config of another split of the same data, without holding anything out.

    Args:
        data: Config of the training data.
        split: Name of the other split.
        key: Key that named it, for messages.
        instead: Another way to name images, for messages.

    Raises:
        ValueError: If the dataset has no splits, or this is the one to train on.
    """
    if "split" not in data:
        raise ValueError(f"{key}={split}: the data has no splits: {instead}")
    if split == (data["split"] or "train"):  # an archive that names no split is read for its training arrays
        raise ValueError(f"{key}={split} is the split that is trained on: name another one, or {instead}")
    arrays: Config = {}
    if "images" in data:  # names of an archive's arrays are those of one split
        arrays = {"images": None, "labels": "none" if data["labels"] == "none" else "auto"}
    return {**data, **arrays, "split": split, "validation": 0}


def build_task(config: Config, source: Source, builder: Builder) -> Task | None:
    """What makes sources and targets: the ``task`` group, or the data itself where it has pairs.

    Raises:
        ValueError: if both do, or the images do not fit the task.
    """
    if not config.get("task"):
        return source.task
    if source.task is not None:
        raise ValueError(f"data {source.name} has sources and targets of its own, and task makes others: set task=none")
    task: Task = builder.build(config["task"], "task")
    task.channels(source.shape)
    return task


def build_augment(config: Config, builder: Builder) -> SampleAugment | None:
    """None for ``data_augment=none``, and where nothing is trained."""
    node = config.get("data_augment") or {}  # an experiment may have set some keys of it beforehand
    return builder.build(node, "data_augment") if "_target_" in node else None


def task_of(config: Config, builder: Builder) -> Task:
    """The task of a settled config, as a checkpoint has it, without its data."""
    if config.get("task"):
        task: Task = builder.build(config["task"], "task")
        return task
    return Pair(source_channels=config["data"]["source_channels"])


def build_data(
    config: Config,
    source: Source,
    device: torch.device,
    *,
    keys: Sequence[str] = ("image",),
    builder: Builder | None = None,
) -> Data:
    """A place for the source's images to live in.

    Args:
        config: resolved.
        source: the images.
        device: where batches go.
        keys: of the batches; those of a task if there is one.
        builder: of the augmentation and the task; None builds genimg's own.

    Raises:
        ValueError: if the source or its images do not fit the settings.
    """
    builder = builder or Builder()
    augment, task = build_augment(config, builder), build_task(config, source, builder)
    placement = {key: config["data"][key] for key in _PLACEMENT_KEYS}
    if isinstance(source, UnpairedSource):
        return UnpairedData(source, device=device, augment=augment, **placement)
    return Data(source, device=device, keys=("image",) if task else keys, augment=augment, task=task, **placement)


def build_method(config: Config, source: Source, builder: Builder) -> Method:
    """The ``model`` group, checked against its loss and the data.

    Raises:
        ValueError: if the loss does not fit the method, the data lacks what it needs, or shapes do not match.
    """
    method_class = check_pairing(config, builder)
    task = build_task(config, source, builder)
    _check_kind(method_class, source, task)
    settle(config, source, task)
    if "penalties" in config["model"]:
        config["model"]["penalties"] = _chosen(config["model"]["penalties"])
    method: Method = builder.build(config["model"], "model")
    reconstructs = method.reconstructs and bool((config.get("evaluation") or {}).get("reconstructions"))
    held_out = method.translates or method.likelihood is not None or reconstructs or _measures_held_out(config, builder)
    takes_some = not isinstance(config["data"].get("validation"), str)  # another split takes nothing from the training
    if source.validation is not None and takes_some and not held_out:
        raise ValueError(
            f"data.validation={config['data']['validation']} has no effect on this model, a {type(method).__name__}, which is "
            "measured against all images: set data.validation=0, or choose a metric of held-out images such as memorisation"
        )
    if isinstance(method, Translation):
        assert task is not None
        method.task = task
    available = set(task.keys if task else available_keys(source))
    missing = [key for key in method.batch_keys if key not in available]
    if missing:
        raise ValueError(
            f"the model needs {', '.join(missing)}, but data {source.name} has only {', '.join(sorted(available))}: choose "
            "conditioning=none, or other data" + _HOW_TO_HAVE.get(missing[0], "")
        )
    if "label" in method.batch_keys and method.num_classes != len(source.class_names):
        raise ValueError(
            f"the model is made for {method.num_classes} classes, but data {source.name} has {len(source.class_names)}: leave "
            "conditioning.encoder.num_classes and data.num_classes null"
        )
    _check_shapes(method, source, task)
    if method.num_remembered:
        method.remember(_conditions(source, method))
    return method


def _chosen(penalties: Config | None) -> Config:
    """Those of ``penalty=[...]``, without settings of others that a recipe has made beforehand."""
    return {name: node for name, node in (penalties or {}).items() if not isinstance(node, dict) or "_target_" in node}


_HOW_TO_HAVE = {
    "caption": "; captions of a folder are in its metadata.jsonl, or in a .txt beside every image (docs/data.md)",
    "label": "; the classes of a folder are its subdirectories",
}


def _measures_held_out(config: Config, builder: Builder) -> bool:
    """Whether a metric of the evaluation compares with images that training does not see."""
    nodes = (config["evaluation"].get("metrics") or {}).values()
    targets = [node["_target_"] for node in nodes if isinstance(node, dict) and "_target_" in node]
    return any(getattr(builder.locate(target, "evaluation.metrics"), "needs_held_out", False) for target in targets)


def _check_kind(method: type[Method], source: Source, task: Task | None) -> None:
    """Refuse data without sources for a method that translates, and with them for one that does not."""
    if method.translates == (task is not None) and (task is None or set(method.batch_keys) <= set(task.keys)):
        return
    name = method.__name__
    if task is None:
        raise ValueError(
            f"the model, a {name}, makes images from images, but data {source.name} has images alone: choose a task such as "
            "task=denoise or task=inpaint, or data=paired or data=unpaired"
        )
    if not method.translates:
        raise ValueError(
            f"the data has a {' and a '.join(task.keys)} of each sample, but the model, a {name}, makes images from nothing: "
            "choose a model such as pix2pix or restoration" + ("" if source.task else ", or task=none")
        )
    kind = "data=unpaired, two folders of images" if "a" in method.batch_keys else "data=paired, or another data with a task"
    needs, has = " and ".join(method.batch_keys), " and ".join(task.keys)
    raise ValueError(f"the model, a {name}, needs {needs}, but the data has {has}: choose {kind}")


def settle(config: Config, source: Source, task: Task | None) -> None:
    """Write what only the data knows wherever the config leaves it to the data: classes, and channels of a task.

    Raises:
        ValueError: if ``data.num_classes`` or a number of channels is given and is another.
    """
    if task is not None:
        for key, count in zip(("source_channels", "target_channels"), task.channels(source.shape), strict=True):
            given = config["data"].get(key)
            if type(given) is int and given != count:
                raise ValueError(f"data.{key}={given}, but the data has {count}: leave it of_{key.removesuffix('_channels')}")
            config["data"][key] = count
            _replace(config["model"], f"of_{key.removesuffix('_channels')}", count)
    found = len(source.class_names) if source.labels is not None else 0
    given = config["data"].get("num_classes")
    if given is not None and found and given != found:
        raise ValueError(
            f"data.num_classes={given}, but data {source.name} has {found} classes: leave it null, or, in a resumed run, which "
            "keeps its number of classes, give the images of before"
        )
    count = found if given is None else given
    config["data"]["num_classes"] = count
    for group in ("model", "conditioning"):
        _fill_num_classes(config.get(group), count)


_OF_CLASSES = ("num_classes", "condition_channels", "image_channels")  # what configs set to ${data.num_classes}


def _fill_num_classes(node: Any, count: int) -> None:
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in _OF_CLASSES and value is None:
            node[key] = count
        else:
            _fill_num_classes(value, count)


def _replace(node: Any, value: str, by: int) -> None:
    for key, entry in node.items() if isinstance(node, dict) else ():
        if entry == value:
            node[key] = by
        else:
            _replace(entry, value, by)


def _conditions(source: Source, method: Method) -> Batch:
    """All labels, or the captions of random images, as they stand in a batch, if the method asks for them."""
    batch: Batch = {}
    if "label" in method.batch_keys and source.labels is not None:
        batch["label"] = torch.from_numpy(source.labels)
    if "caption" in method.batch_keys:
        # A small source's captions are repeated, each equally often to within one.
        texts = source.captions(np.resize(random_order(len(source), seed=0), method.num_remembered))
        batch["caption"] = encode(texts, caption_length(texts))
    return batch


def check_pairing(config: Config, builder: Builder) -> type[Method]:
    """The model's class, whose loss must be of the kind it can be trained with; needs no data.

    Raises:
        ValueError: naming the losses that fit.
    """
    node = config["model"]
    method_class = builder.locate(node["_target_"], "model")
    loss_class = builder.locate(config["loss"]["_target_"], "loss")
    if not (inspect.isclass(method_class) and issubclass(method_class, Method)):
        raise ValueError(f"model._target_={node['_target_']} is not a training method: choose another model")
    if not (inspect.isclass(loss_class) and issubclass(loss_class, method_class.loss_type)):
        fitting = ", ".join(_options_of_type("loss", method_class.loss_type, builder))
        raise ValueError(
            f"the loss {loss_class.__name__} does not fit the model, a {method_class.__name__}: choose loss={fitting}"
        )
    _refuse_without_effect(config, method_class, loss_class)
    return method_class


def _refuse_without_effect(config: Config, method_class: type[Method], loss_class: type) -> None:
    """Groups that only some methods have a place for."""
    parameters = inspect.signature(method_class).parameters
    augment, head = config.get("augment") or {}, (config.get("conditioning") or {}).get("head", "none")
    chosen = {
        "penalty": bool(_chosen(config.get("penalty"))) and "penalties" not in parameters,
        "augment": not str(augment.get("_target_", "NoAugment")).endswith("NoAugment") and "augment" not in parameters,
        "conditioning": head != "none" and not method_class.takes_conditions,
    }
    for group, is_useless in chosen.items():
        if is_useless:
            raise ValueError(f"{group} has no effect on this model, a {method_class.__name__}: leave it away")
    if head not in ("none", "concat") and "auxiliary" not in parameters:
        raise ValueError(
            f"this conditioning is of a GAN's discriminator (conditioning.head={head}), and does not go with a "
            f"{method_class.__name__}: choose conditioning=concat, for labels"
        )
    has_likelihood = "_target_" in (config.get("likelihood") or {})
    if has_likelihood != ("likelihood" in inspect.signature(loss_class).parameters):
        if has_likelihood:
            name = config["likelihood"]["_target_"].rpartition(".")[2]
            raise ValueError(
                f"likelihood={name} has no effect on the loss {loss_class.__name__} of a {method_class.__name__}: leave it "
                "away, or set likelihood=none"
            )
        raise ValueError(
            f"likelihood=none, but the loss {loss_class.__name__} needs one: choose likelihood=bernoulli, gaussian or another"
        )


def build_optimizers(
    config: Config,
    method: Method,
    builder: Builder,
    defaults: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] = lambda *_: {},
) -> dict[str, Optimizer]:
    """One optimizer for each parameter group, with that group's overrides.

    Args:
        config: resolved.
        method: on its device.
        builder: of the config's nodes.
        defaults: more keyword arguments, for an optimizer's class and those that the config gives.
    """
    groups = method.parameter_groups()
    overrides: Mapping[str, Config] = config["optimizer_overrides"]
    for name in overrides:
        if name not in groups:
            raise ValueError(f"optimizer_overrides.{name}: the model has no such parameter group, but {', '.join(groups)}")
    optimizers = {}
    for name, parameters in groups.items():
        node = {**config["optimizer"], **overrides.get(name, {})}
        try:
            make, settings = _optimizer_settings(node, builder, method.lazy_share(name))
            settings = {key: valued(value, 0, builder.batch_size) for key, value in settings.items()}
            optimizers[name] = make(parameters, **{**defaults(make, settings), **settings})
        except (IndexError, TypeError) as error:
            raise ValueError(f"the optimizer does not take its settings {node} ({error})") from error
        except (ValueError, RuntimeError) as error:  # RuntimeError: settings that exclude each other
            raise ValueError(f"optimizer: {error}") from error
    return optimizers


def _optimizer_settings(node: Config, builder: Builder, share: float) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """An optimizer's class and its settings, which may hold schedules, corrected for lazy penalties.

    A group that these update ``share`` times more for each of its own updates has, with c = 1 / (1 + share), c times the
    learning rate and the c-th powers of Adam's betas: Karras et al. 2020, "Analyzing and improving the image quality of
    StyleGAN", appendix B, where share is 1 / interval.
    """
    optimizer = builder.build({**node, "_partial_": True}, "optimizer")
    settings = dict(optimizer.keywords)
    if share:
        c = 1.0 / (1.0 + share)
        defaults = inspect.signature(optimizer.func).parameters
        for key, change in (("lr", lambda lr: lr * c), ("betas", lambda beta: beta**c)):
            if key in settings or key in defaults:
                settings[key] = _changed(settings[key] if key in settings else defaults[key].default, change)
    return optimizer.func, settings


def _changed(value: Any, change: Callable[[float], float]) -> Any:
    """A setting whose every number, and every schedule's, is changed."""
    if isinstance(value, list | tuple):
        return [_changed(each, change) for each in value]
    return value.map(change) if isinstance(value, Schedule) else change(value)


def build_schedules(config: Config, method: Method, builder: Builder) -> OptimizerSchedules:
    """What changes in the optimizers while they train: the ``schedule`` group, and schedules within ``optimizer``."""
    overrides: Mapping[str, Config] = config["optimizer_overrides"]
    settings = {}
    for name in method.parameter_groups():
        node = {**config["optimizer"], **overrides.get(name, {})}
        _, all_settings = _optimizer_settings(node, builder, method.lazy_share(name))
        settings[name] = {key: value for key, value in all_settings.items() if holds_schedule(value)}
    return OptimizerSchedules(builder.build(config["schedule"], "schedule"), settings)


def _is_kind(target: Any, kind: type) -> bool:
    return inspect.isclass(target) and issubclass(target, kind)


def build_evaluator(config: Config, builder: Builder) -> PeriodicEvaluator | None:
    """None for ``evaluation=none``, also where an experiment has set some of its keys."""
    return builder.build(config["evaluation"], "evaluation") if "_target_" in config["evaluation"] else None


def build_recorder(config: Config, builder: Builder) -> Recorder | None:
    """What takes a run's records besides its directory; None for ``logger=tensorboard``."""
    return builder.build(config["logger"], "logger") if config.get("logger") else None


def _check_keys(node: Config, parameters: Mapping[str, inspect.Parameter], key: str, *, partial: bool) -> None:
    kinds = {parameter.kind for parameter in parameters.values()}
    names = [name for name in parameters if name not in ("self", "params")]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in node:
            if name not in parameters and name not in _HYDRA_KEYS:
                raise ValueError(f"unknown key {key}.{name}{nearest(name, names)}: {key} takes {', '.join(names)}")
    if partial:
        return
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY,
        )  # fmt: skip
        if required and name not in node and "_args_" not in node:
            raise ValueError(f"{key}.{name} is required: set {key}.{name}=VALUE")


_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def _type_hints(function: Any, *, include_extras: bool = False) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=include_extras)
    except (NameError, TypeError):  # hints that only a type checker can see, as some of torch's
        return {}


def _check_type(value: Any, hint: Any, key: str) -> None:
    """Refuse a number, text, truth value or null where the signature says that it takes something else."""
    options = set(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, UnionType) else {hint}
    if not options & set(_SCALARS) or type(value) not in _SCALARS or type(value) in options:
        return
    if type(value) is int and float in options:
        return
    if not isinstance(value, str) and not options <= set(_SCALARS):
        return
    wanted = " or ".join(words for kind, words in _SCALARS.items() if kind in options)
    wanted += " or a list such as [64,48]" if any(typing.get_origin(option) is Sequence for option in options) else ""
    raise ValueError(f"{key}={'null' if value is None else value} must be {wanted}")


def _import(module_name: str, name: str, key: str, target: str) -> Any:
    try:
        return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ValueError(f"{key}._target_={target}: there is no module {module_name} ({error})") from error
    except AttributeError:
        members = vars(importlib.import_module(module_name))
        raise ValueError(f"{key}._target_={target}: {module_name} has no {name}{nearest(name, members)}") from None


def _options_of_type(group: str, wanted: type, builder: Builder) -> list[str]:
    """The files of a config group whose target is of the wanted type."""
    fitting = []
    for path in sorted((Path(config_dir()) / group).glob("*.yaml")):
        target = _target_of(path)
        found = builder.locate(target, group) if target else None
        if inspect.isclass(found) and issubclass(found, wanted):
            fitting.append(path.stem)
    return fitting


def _target_of(path: Path) -> str | None:
    """A file's own target, or that of the file beside it which it changes."""
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    if "_target_" in node:
        return str(node["_target_"])
    bases = [path.with_name(f"{entry}.yaml") for entry in node.get("defaults", []) if re.fullmatch(r"\w+", str(entry))]
    return next((target for base in bases if base.is_file() and (target := _target_of(base))), None)


def _check_shapes(method: Method, source: Source, task: Task | None) -> None:
    channels, height, width = source.shape
    if height % method.multiple or width % method.multiple:
        raise ValueError(
            f"the model takes images whose sides are multiples of {method.multiple} pixels, not {height}x{width}: change "
            "data.image_size"
        )
    image = to_float(torch.zeros(2, *source.shape, dtype=torch.uint8))
    try:
        with torch.no_grad():
            method.eval()
            method.check({"image": image} if task is None else task(image, np.arange(2, dtype=np.int64), 0))
            made = source.shape if task else tuple(method.sample(method.draw(range(2), 0)).shape[1:])
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Expected more than 1"):  # instance norm's, of one pixel
            raise
        fix = (
            "give larger images with data.image_size, or a discriminator with fewer strided convolutions (num_strided, below "
            "model.discriminator or model.discriminator_a)" if task else
            "leave channels and image_size below model to follow data"
        )  # fmt: skip
        raise ValueError(
            f"the model's networks do not fit the data's images of {channels} channels and {height}x{width} pixels "
            f"({str(error).splitlines()[0]}): {fix}"
        ) from error
    finally:
        method.train()
    if made != source.shape:
        raise ValueError(
            f"the model makes images of {made[0]} channels and {made[1]}x{made[2]} pixels, but data {source.name} has "
            f"{channels} channels and {height}x{width} pixels: leave channels and image_size below model to follow data"
        )
