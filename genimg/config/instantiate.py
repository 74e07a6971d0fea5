"""Build objects from configs. No other module instantiates the class or function that a ``_target_`` names.

A config can come from a downloaded checkpoint, so a target is built only if its name starts with one of the packages below and
it is also defined there: ``genimg.data.datasets.builtin.os.system`` starts with an allowed prefix but is still rejected.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from genimg.config.types import is_node, require_finite, require_instance, require_scalar, require_type
from genimg.data.facts import DataFacts
from genimg.data.identity import had_labels
from genimg.data.tasks.base import Pair, Task
from genimg.errors import ConfigError, NeedsDownloadError, UserError, innermost_module, join, subject_of
from genimg.methods.base import Method
from genimg.methods.capabilities import Translates, offers
from genimg.schedules import Schedule
from genimg.utils.durations import NumImages, to_images
from genimg.utils.machine_local import MachineLocal, is_importable, marker_of
from genimg.utils.mounting import mounting
from genimg.utils.type_hints import fits, type_hints
from genimg.utils.words import nearest

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
    "genimg.data.datasets.external",
    "genimg.data.datasets.huggingface",
    "genimg.data.datasets.lmdb",
    "genimg.data.datasets.unpaired",
    "genimg.data.datasets.webdataset",
    "genimg.diffusion",
    "genimg.evaluation.autoencoder",
    "genimg.evaluation.evaluator",
    "genimg.evaluation.extractors.classifier",
    "genimg.evaluation.extractors.custom",
    "genimg.evaluation.extractors.efficientnet_lite",
    "genimg.evaluation.extractors.foundation",
    "genimg.evaluation.extractors.inception",
    "genimg.evaluation.feature_metrics",
    "genimg.evaluation.likelihood",
    "genimg.evaluation.memorisation",
    "genimg.evaluation.metrics",
    "genimg.evaluation.image_metrics",
    "genimg.evaluation.translation",
    "genimg.evaluation.path_length",
    "genimg.losses",
    "genimg.methods",
    "genimg.networks",
    "genimg.schedules",
    "genimg.training.ema",
    "genimg.training.mlflow",
    "genimg.training.performance",
    "genimg.training.schedules",
    "genimg.training.trackio",
    "genimg.training.wandb",
    "torch.nn",
    "torch.optim",
)
"""Packages whose classes and functions a config may name."""

_GROUPS = {"genimg.data.datasets": "data", "genimg.data.tasks": "task", "genimg.evaluation": "evaluation"}
"""Packages whose members open files, each with the only config group in which a checkpoint may name its members."""

_RENAMED = {"genimg.evaluation.compare.Evaluator": "genimg.evaluation.evaluator.Evaluator"}
"""Current names of targets, by their former names in older checkpoints."""

_SETTABLE = {"image_size": "data.image_size", "channels": "data.channels"}  # keys that determine facts about the data
_HYDRA_KEYS = {"_target_": str, "_partial_": bool, "_args_": Sequence}
_MAY_DOWNLOAD = "may_download"  # parameter of every constructor that downloads missing files
T = TypeVar("T")
Node = dict[str, Any]
Named = frozenset[tuple[str, Any]]


@dataclass(frozen=True)
class Builder:
    """Builds objects from nodes of a resolved config.

    Attributes:
        allowed: Packages whose members may be built.
        epoch_size: Number of images in the training data; 0 while it is unknown, which is before any duration is needed.
        batch_size: Number of images per step.
        images_per_second: Images that a second of a duration stands for; None if ``trainer.duration`` is not a time.
        duration: Text of ``trainer.duration``, of which other durations may be shares; None if it is unknown.
        named: For a checkpoint's config, the values that the command line names for parameters marked as ``MachineLocal``, as
            pairs of parameter name and value; other values are refused. A pair of ``may_download`` and a group means that the
            command line chooses this group, which may then download files. None for a config that the user composed.
        trains: Whether to build objects that only training needs. If False, a parameter whose type has
            ``needed_in_training_only`` receives None (an empty mapping if it takes several objects), and a parameter whose
            type has ``without_training`` receives an object of that class. The config's nodes there are ignored.
        labelled: Whether training data has the labels that its config gives; False for a checkpoint whose data had none,
            because later versions of genimg may find labels in the same data.
        origins: Original keys of nodes that the config repeats by interpolation, such as ``loss`` for ``model.loss``;
            messages name the original key, because it is the key to set.
    """

    allowed: tuple[str, ...] = ALLOWED
    epoch_size: int = 0
    batch_size: int = 1
    images_per_second: float | None = None
    duration: str | None = None
    named: Named | None = None
    trains: bool = True
    labelled: bool = True
    origins: Mapping[str, str] = field(default_factory=dict)

    def build(self, config: Node, key: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """Build the node ``config`` at ``key``.

        Args:
            config: The resolved node.
            key: Dotted key, for messages.
            arguments: Values by parameter name that are known only at run time, such as facts about the data. Each is passed
                to every constructor at or below the node that has such a parameter, unless the config sets it.

        Raises:
            ConfigError: If a target is outside the allowed packages, a key is unknown or missing, or a constructor rejects a
                value.
        """
        if not self._may_download(key):
            arguments = {**arguments, _MAY_DOWNLOAD: False}
        try:
            return self._made(self._prepare(config, key, arguments, schedules=True), key, arguments)
        except NeedsDownloadError as error:
            problem = f"{error.problem}, and nothing is downloaded because a checkpoint names it"
            how = "data=NAME, or real=NAME of genimg-eval" if _group_of(key) == "data" else f"{_group_of(key)}=NAME"
            raise type(error)(problem, f"{error.fix}, or choose it on the command line with {how}", key=error.key) from error

    def check(self, config: Node, key: str, arguments: Mapping[str, Any]) -> None:
        """Check the node ``config`` at ``key`` and everything below it, without building it; see ``build``.

        Raises:
            ConfigError: See ``build``; errors of constructors are not found.
        """
        self._prepare(config, key, arguments, schedules=True)

    def _may_download(self, key: str) -> bool:
        """Return whether the user chose the node at ``key``, either with the config or by naming its group."""
        return self.named is None or (_MAY_DOWNLOAD, _group_of(key)) in self.named

    def choosing(self, *groups: str) -> Builder:
        """Return a builder that treats these groups as chosen by the command line."""
        if self.named is None:
            return self
        labelled = self.labelled or "data" in groups
        return replace(self, named=self.named | {(_MAY_DOWNLOAD, group) for group in groups}, labelled=labelled)

    def build_group(self, config: Mapping[str, Any], key: str) -> Any:
        """Build an optional group; return None if it has no target, even if an experiment sets some of its keys."""
        node = config.get(key) or {}
        return self.build(node, key) if "_target_" in node else None

    def _made(self, node: Any, key: str, arguments: Mapping[str, Any]) -> Any:
        """Build a checked node, children first."""
        if isinstance(node, list):
            return [self._made(item, f"{key}[{i}]", arguments) for i, item in enumerate(node)]
        if not isinstance(node, dict):
            return node
        made = {name: self._made(value, self._key(key, name), arguments) for name, value in node.items()}
        if "_target_" not in made:
            return made
        target = self.locate(made.pop("_target_"), key)
        is_partial, positional = made.pop("_partial_", False), made.pop("_args_", [])
        for name in importable_parameters(target) & made.keys():
            made[name] = self._located(made[name], f"{key}.{name}")
        if _is_own(target):
            types = type_hints(target)
            for name, value in made.items():
                require_instance(value, types.get(name, Any), self._key(key, name))
        taken = inspect.signature(target).parameters
        given = {name: value for name, value in arguments.items() if name in taken and name not in made}
        origins = {**self.origins, **{f"{key}.{name}": _SETTABLE[name] for name in given.keys() & _SETTABLE.keys()}}
        made |= given
        if is_partial and inspect.isclass(target):
            return _Factory.mounted_at(key, target, positional, made, origins)
        if is_partial:  # a function that is called in every step, such as a loss
            return functools.partial(target, *positional, **made)
        with mounted(key, target, origins):
            return target(*positional, **made)

    def locate(self, target: object, key: str) -> Any:
        """Return the class or function named by ``target``, the ``_target_`` of the node at ``key``.

        Raises:
            ConfigError: If it does not exist or building it is not allowed.
        """
        return self._located(target, f"{key}._target_")

    def _located(self, name: object, key: str) -> Any:
        """Return the class or function with this dotted name; ``key`` is the config key that holds the name."""
        if not isinstance(name, str):
            raise ConfigError(f"{key}={name} is not the dotted name of a class or function")
        dotted = present_name(name.replace(":", ".", 1))
        module_name, _, attribute = dotted.rpartition(".")
        private = any(part.startswith("_") for part in dotted.split("."))
        if not private and any(dotted.startswith(prefix + ".") for prefix in self.allowed):
            found = _import(module_name, attribute, key, name)
            home = str(getattr(found, "__module__", ""))
            allowed = inspect.isroutine(found) or inspect.isclass(found)
            allowed = allowed and any(home == prefix or home.startswith(prefix + ".") for prefix in self.allowed)
            if home.startswith("torch."):  # torch also has functions that import modules and register hooks
                allowed = allowed and inspect.isclass(found) and issubclass(found, nn.Module | Optimizer)
                allowed = allowed and not home.startswith("torch.nn.parallel")  # that package connects to other processes
            if allowed:
                return found
        package = dotted.partition(".")[0]
        if not module_name:
            raise ConfigError(f"{key}={name} names no function: write PACKAGE.MODULE:FUNCTION")
        if not private and package in self.allowed:
            raise ConfigError(f"{key}={name} is not a class or function of {package}")
        if private or package in ("genimg", "torch"):
            raise ConfigError(f"{key}={name} is refused: it is not a class or function of {package} that a config may name")
        if self.named is not None and package in sys.stdlib_module_names:
            raise ConfigError(f"{key}={name} is refused in a checkpoint's config", "do not use this checkpoint")
        raise ConfigError(f"{key}={name} is refused, because it is not part of genimg: if you trust it, add allow=[{package}]")

    def _key(self, key: str, name: str) -> str:
        """Return the dotted key of ``name`` below ``key``, or the key that it refers to."""
        return self.origins.get(f"{key}.{name}", f"{key}.{name}")

    def _refuse_elsewhere(self, target: Any, name: str, key: str) -> None:
        """Refuse a target that opens files if it is outside its own group, so using a model reads no data."""
        home, group = f"{getattr(target, '__module__', '')}.", _group_of(key)
        if self.named is None:
            return
        for package, own in _GROUPS.items():
            if home.startswith(f"{package}.") and group != own:
                raise ConfigError(f"{key}._target_={name} is refused in a checkpoint's config: it belongs below {own}")

    def omits(self, target: Any) -> bool:
        """Return whether ``target`` is skipped because only training needs it."""
        return not self.trains and getattr(target, "needed_in_training_only", False)

    def may_take(self, name: str, value: Any, mark: MachineLocal) -> bool:
        """Return whether the parameter ``name``, marked with ``mark``, may have this value of the config."""
        return self.named is None or mark.published(value) or any(pair == (name, value) for pair in self.named)

    def _prepare(self, node: Any, key: str, arguments: Collection[str] = (), *, schedules: bool = False) -> Any:
        """Check every node below ``key`` against its target's signature and convert its durations.

        Args:
            node: A resolved node, or a list, mapping or value below one.
            key: Dotted key.
            arguments: Names of parameters that need no value in the config.
            schedules: Whether a schedule is allowed at ``key``.
        """
        if isinstance(node, list | tuple):
            return [self._prepare(item, f"{key}[{i}]", arguments, schedules=schedules) for i, item in enumerate(node)]
        if isinstance(node, str) and "${" in node:
            # Hydra would resolve it after this check, to an unchecked value.
            raise ConfigError(f"{key}={node} holds an interpolation after the config was resolved: write the value itself")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if not isinstance(node, dict):
            raise ConfigError(f"{key} holds a {type(node).__name__}: a config consists of mappings, lists, numbers and text")
        if "_target_" not in node:
            return {name: self._prepare(value, self._key(key, name), arguments) for name, value in node.items()}
        target = self.locate(node["_target_"], key)
        if _is_kind(target, Schedule) and not schedules:
            raise ConfigError(f"{key} takes no schedule: write a number (docs/schedules.md lists the settings that take one)")
        if self.omits(target):
            return None
        self._refuse_elsewhere(target, node["_target_"], key)
        for name, mark in local_parameters(target).items():
            if name in node and not self.may_take(name, node[name], mark):
                raise ConfigError(name_again({f"{key}.{name}": node[name]}))
        for name in importable_parameters(target) & node.keys():
            if self.named is not None and re.split("[.:]", str(node[name]))[0] in ("genimg", "torch"):
                raise ConfigError(  # the function may have marked parameters, which are not checked here
                    f"{key}.{name}={node[name]} is refused in a checkpoint's config, because it could be given the path of any "
                    "file: give the images yourself, with real=DIR or data_root=DIR"
                )
        parameters = inspect.signature(target).parameters
        partial = bool(node.get("_partial_", False))
        _check_keys(node, parameters, key, () if partial else [name for name in parameters if name not in arguments])
        types = {**_HYDRA_KEYS, **type_hints(target), **dict.fromkeys(importable_parameters(target), Any)}
        is_optimizer = _is_kind(target, Optimizer)
        prepared = {}
        for name, value in node.items():
            hint, here = types.get(name, Any), self._key(key, name)
            if _package_of(target) == "torch":
                require_finite(value, here)
            prepared[name] = self._value(value, hint, here, arguments, schedules=is_optimizer, exact=_is_own(target))
        return prepared

    def _value(
        self, value: Any, hint: Any, key: str, arguments: Collection[str], *, schedules: bool = False, exact: bool = True
    ) -> Any:
        """Check a value and everything below it, and convert its durations.

        Args:
            value: Value of a parameter.
            hint: Type of the parameter.
            key: Dotted key.
            arguments: See ``_prepare``.
            schedules: Whether a schedule is allowed regardless of the hint.
            exact: Whether the hint is exact; hints of PyTorch and of other packages may be wrong.
        """
        if not self.trains and isinstance(value, dict):
            if _is_of_training(hint):
                return {} if typing.get_origin(hint) is Mapping else None
            value = _without_training(value, hint)
        options = typing.get_args(hint)
        is_number = float in options and type(value) in (int, float)
        if hint is NumImages or (NumImages in options and not (value is None or is_number or isinstance(value, dict))):
            return to_images(
                value, epoch_size=self.epoch_size, batch_size=self.batch_size, key=key,
                images_per_second=self.images_per_second, training=None if key == "trainer.duration" else self.duration,
            )  # fmt: skip
        if value == {} and type(None) in options and not fits(value, hint):
            return None  # empty group, such as discriminator_augment=none
        if not exact:
            require_scalar(value, hint, key)
        elif not is_node(value):
            require_type(value, hint, key)
        prepared = self._prepare(value, key, arguments, schedules=schedules or Schedule in options)
        if exact and is_node(value) and prepared is not None:  # last, because an error inside the node is more specific
            require_type(value, hint, key)
        return prepared

    def settings(self, kind: type[T], config: Node, key: str) -> T:
        """Return the settings of a group without a ``_target_`` as an object of the class ``kind``."""
        _check_keys(config, (parameters := inspect.signature(kind).parameters), key, list(parameters))
        types = type_hints(kind)
        values = {name: self._value(value, types[name], f"{key}.{name}", ()) for name, value in config.items()}
        with mounted(key, kind):
            return kind(**values)


def origins_of(raw: Any) -> dict[str, str]:
    """Return, for the key of each interpolation in a config, the key to which it finally refers.

    Args:
        raw: The unresolved config.
    """
    references = _references(raw, "")
    return {key: _last(key, references) for key in references}


def _references(raw: Any, key: str) -> dict[str, str]:
    if isinstance(raw, list):
        return {k: v for i, item in enumerate(raw) for k, v in _references(item, f"{key}[{i}]").items()}
    if isinstance(raw, Mapping):
        return {k: v for name, value in raw.items() for k, v in _references(value, join(key, str(name))).items()}
    found = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    return {key: found[1]} if found else {}


def _last(key: str, references: Mapping[str, str]) -> str:
    """Return the last key of a chain of references. The chain ends, because the config could be resolved."""
    while key in references:
        key = references[key]
    return key


def build_model(config: Mapping[str, Any], facts: DataFacts, builder: Builder, task: Task | None = None) -> Method:
    """Build the ``model`` group.

    Args:
        config: The resolved config.
        facts: Facts about the model's training data.
        builder: Builder of the config.
        task: Task of that data; None builds the config's task.
    """
    arguments = facts.arguments()
    if offers(builder.locate(config["model"]["_target_"], "model"), Translates):
        arguments["task"] = task or build_known_task(config, facts, builder)
        arguments["channels"] = facts.channels_into(backwards=True)  # of the images that the model makes
    node = dict(config["model"])
    if "penalties" in node:
        node["penalties"] = chosen_nodes(node["penalties"], "penalty", "model.penalties")
    method: Method = builder.build(node, "model", arguments)
    return method


def parts_of_training(target: Any) -> set[str]:
    """Return the parameters of a class that only training needs, or that get a simpler object outside training."""
    hints = type_hints(target) if inspect.isclass(target) else {}
    return {name for name, hint in hints.items() if _is_of_training(hint) or _substitute(hint) is not None}


def build_known_task(config: Mapping[str, Any], facts: DataFacts, builder: Builder) -> Task:
    """Build the task that a model was trained for, without reading its data."""
    if config.get("task"):
        task: Task = builder.build(config["task"], "task")
        return task
    assert facts.source_channels is not None
    return Pair(source_channels=facts.source_channels)


def chosen_nodes(nodes: Mapping[str, Any] | None, group: str, key: str = "") -> dict[str, Any]:
    """Return the nodes of the options in a list such as ``penalty=[...]``, without a recipe's settings for other options.

    Args:
        nodes: Nodes by name; None if there are none.
        group: Config group, ``penalty`` or ``ema``.
        key: Dotted key of the nodes; the group by default.

    Raises:
        ConfigError: If ``nodes`` is not a mapping.
    """
    if not isinstance(nodes, Mapping | None):
        raise ConfigError(f"{key or group}={nodes} must be a mapping", f"choose with {group}=[NAME]", key=key or group)
    chosen = {name: node for name, node in (nodes or {}).items() if not isinstance(node, dict) or "_target_" in node}
    return {name: node for name, node in chosen.items() if node is not None}


class _Factory(functools.partial[Any]):
    """A partially applied constructor whose errors name its key in the config."""

    key: str
    origins: Mapping[str, str]

    @classmethod
    def mounted_at(
        cls, key: str, target: Any, positional: Sequence[Any], keywords: Mapping[str, Any], origins: Mapping[str, str]
    ) -> _Factory:
        made = cls(target, *positional, **keywords)
        made.key, made.origins = key, origins
        return made

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        for name, parameter in inspect.signature(self.func).parameters.items():
            is_required = parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
            if is_required and name not in {**self.keywords, **keywords}:
                raise ConfigError(f"{self.key}.{name} is required: set {self.key}.{name}=VALUE", key=f"{self.key}.{name}")
        with mounted(self.key, self.func, self.origins):
            return super().__call__(*arguments, **keywords)


@contextlib.contextmanager
def mounted(key: str, target: Any, origins: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Rewrite errors about an object's parameters in terms of the config keys below ``key``.

    Args:
        key: Dotted key of the object.
        target: The class or function, or an instance of the class.
        origins: See ``Builder``.

    Raises:
        ConfigError: Replaces three kinds of errors: a ValueError whose message begins with a parameter, an error about
            arguments that do not fit the signature of a class outside genimg, and any ValueError or TypeError of PyTorch's
            classes. Other errors are bugs and propagate unchanged.
    """
    owner = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    try:
        with mounting(key, _parameters(owner), origins):
            yield
    except UserError:  # a ConfigError is a ValueError, too
        raise
    except (ValueError, TypeError) as error:
        package = str(getattr(owner, "__module__", "")).partition(".")[0]
        subject = re.split(r"[.\[]", subject_of(str(error)))[0]
        is_named = isinstance(error, ValueError) and subject in _parameters(owner)
        is_of_call = package != "genimg" and innermost_module(error).startswith("genimg.config.")
        if not (is_named or is_of_call or package == "torch"):
            raise
        problem = str(error).splitlines()[0] if package == "torch" and str(error) else str(error)  # omits lines of C++
        text = problem if subject in _parameters(owner) else f"{key}: {problem}"
        raise ConfigError(text).mounted(key, _parameters(owner), origins) from error


def _parameters(target: Any) -> list[str]:
    return [name for name in inspect.signature(target).parameters if name not in ("self", "args", "kwargs")]


def builder_of(state: Node, allow: Sequence[str]) -> Builder:
    """Return a builder for a checkpoint's config that builds nothing that only training needs and reads no local files.

    Args:
        state: The checkpoint's contents.
        allow: Packages that the user trusts in addition to genimg.
    """
    durations = durations_of(state, state["config"])
    return Builder((*ALLOWED, *allow), named=frozenset(), trains=False, labelled=had_labels(state), **durations)


def durations_of(state: Node, config: Node) -> dict[str, Any]:
    """Return the attributes of ``Builder`` that convert the durations of a config to images, as in a checkpoint's training."""
    rate = state["decisions"].get("images_per_second")
    trainer = config["trainer"]
    return {
        "epoch_size": state["num_images"], "batch_size": trainer["batch_size"], "images_per_second": rate,
        "duration": trainer["duration"],
    }  # fmt: skip


def present_name(target: str) -> str:
    """Return the current name of a target that an earlier version wrote into a checkpoint."""
    return _RENAMED.get(target, target)


def local_parameters(target: Any) -> dict[str, MachineLocal]:
    """Return the parameters of a class or function marked as ``MachineLocal``, with their marks."""
    hints = type_hints(target, include_extras=True)
    return {name: mark for name, hint in hints.items() if (mark := marker_of(hint)) is not None}


def importable_parameters(target: Any) -> set[str]:
    """Return the parameters of a class or function whose values are objects named ``package.module:name``."""
    hints = type_hints(target, include_extras=True)
    return {name for name, hint in hints.items() if is_importable(hint)}


def name_again(dropped: Mapping[str, Any]) -> str:
    """Return a message about the machine-local values of a checkpoint's config that were not accepted."""
    listed = ", ".join(f"{key}={value}" for key, value in dropped.items())
    again = " ".join(f"++{key}=PATH" for key in dropped)
    return (
        f"the checkpoint's config names {listed}, but a checkpoint never decides which files of this machine are opened, "
        f"because they may run code: to use a path that you trust, add it to the command line with {again}"
    )


def _group_of(key: str) -> str:
    """Return the config group of a dotted key."""
    return re.split(r"[.\[]", key)[0]


def _kinds(hint: Any) -> list[Any]:
    """Return a type hint and all of its components."""
    return [hint, *(kind for part in typing.get_args(hint) for kind in _kinds(part))]


def _is_of_training(hint: Any) -> bool:
    return any(getattr(kind, "needed_in_training_only", False) for kind in _kinds(hint))


def _substitute(hint: Any) -> type | None:
    return next((kind.without_training for kind in _kinds(hint) if hasattr(kind, "without_training")), None)


def _without_training(node: Node, hint: Any) -> Node:
    """Return the node that replaces ``node`` outside training, or ``node`` if it lacks keys that the replacement needs."""
    kind = _substitute(hint)
    if kind is None or not (parameters := inspect.signature(kind).parameters).keys() <= node.keys():
        return node
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **{name: node[name] for name in parameters}}


def _package_of(target: Any) -> str:
    return str(getattr(target, "__module__", "")).partition(".")[0]


def _is_own(target: Any) -> bool:
    return _package_of(target) == "genimg"


def _is_kind(target: Any, kind: type) -> bool:
    return inspect.isclass(target) and issubclass(target, kind)


def _check_keys(node: Node, parameters: Mapping[str, inspect.Parameter], key: str, needed: Collection[str]) -> None:
    kinds = {parameter.kind for parameter in parameters.values()}
    names = [name for name in parameters if name not in ("self", "params")]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in node:
            if name not in parameters and name not in _HYDRA_KEYS:
                raise ConfigError(f"unknown key {key}.{name}{nearest(name, names)}: {key} takes {', '.join(names)}")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY,
        )  # fmt: skip
        if required and name in needed and name not in node and "_args_" not in node:
            raise ConfigError(f"{key}.{name} is required: set {key}.{name}=VALUE")


def _import(module_name: str, name: str, key: str, target: str) -> Any:
    try:
        with torch.device("cpu"):  # tensors of the module belong on the CPU, even while a model is built on meta
            return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{key}={target}: there is no module {error.name}") from error
        raise ConfigError(f"{key}={target}: {module_name} cannot be imported ({error})") from error
    except SyntaxError as error:
        raise ConfigError(f"{key}={target}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except AttributeError:
        members = vars(importlib.import_module(module_name))
        raise ConfigError(f"{key}={target}: {module_name} has no {name}{nearest(name, members)}") from None
