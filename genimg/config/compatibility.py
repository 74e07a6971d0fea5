"""Check that the choices of a config fit together, before any data is read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genimg.config import schema, untrusted
from genimg.config.instantiate import Builder, chosen_nodes
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.tasks.base import Task
from genimg.errors import ConfigError
from genimg.evaluation.base import HeldOutEvaluator
from genimg.methods.base import Method
from genimg.methods.capabilities import TakesConditions, Translates, offers, require_whole_capabilities
from genimg.utils.paths import config_dir
from genimg.utils.words import nearest


def check_top_level(config: Mapping[str, Any], command: str = "train") -> None:
    """Refuse unknown keys, such as a misspelt ``+sed=1``.

    Keys that begin with an underscore are allowed, because they hold values to which other keys refer.

    Args:
        config: Config of a command.
        command: Name of its primary config.

    Raises:
        ConfigError: If a key is unknown; the message suggests the nearest one.
    """
    primary = OmegaConf.load(Path(config_dir()) / f"{command}.yaml")
    groups = [key for entry in primary.defaults if isinstance(entry, DictConfig) for key in entry]
    own = {option.name for option in schema.options_of(schema.COMMANDS[command])}
    of_checkpoint = untrusted.GROUPS if "ckpt" in own else ()
    known = {*own, *(str(key) for key in groups), *of_checkpoint} - {"experiment"}
    for key in config:
        if key not in known and not key.startswith("_"):
            raise ConfigError(f"unknown key {key}{nearest(key, known)}", "nothing reads it; --cfg job shows all keys", key=key)


def check_pairing(config: Mapping[str, Any], builder: Builder) -> type[Method]:
    """Return the model's class after checking that the loss and the other groups fit it; needs no data.

    Raises:
        ConfigError: If the loss or another group does not fit the model.
    """
    node = config["model"]
    method_class = builder.locate(node["_target_"], "model")
    loss_class = builder.locate(config["loss"]["_target_"], "loss")
    if not (inspect.isclass(method_class) and issubclass(method_class, Method)):
        raise ConfigError(f"model._target_={node['_target_']} is not a training method: choose another model")
    if not (inspect.isclass(loss_class) and issubclass(loss_class, method_class.loss_type)):
        fitting = ", ".join(_options_of_type("loss", method_class.loss_type, builder))
        raise ConfigError(
            f"the loss {loss_class.__name__} does not fit the model, a {method_class.__name__}: choose loss={fitting}"
        )
    try:
        require_whole_capabilities(method_class)
    except TypeError as error:
        raise ConfigError(f"model._target_={node['_target_']}: {error}") from error
    _refuse_without_effect(config, method_class, loss_class)
    return method_class


def _refuse_without_effect(config: Mapping[str, Any], method_class: type[Method], loss_class: type) -> None:
    """Refuse a penalty, augmentation, conditioning or likelihood that the model or loss does not use.

    A group is used if the node of the model or the loss has a key that refers to it; ``model.penalties`` refers to ``penalty``.
    """
    model, loss = config["model"], config["loss"]
    head = (config.get("conditioning") or {}).get("head", "none")
    chosen = {
        "penalty": bool(chosen_nodes(config.get("penalty"), "penalty")) and "penalties" not in model,
        "discriminator_augment": "_target_" in (config.get("discriminator_augment") or {})
        and "discriminator_augment" not in model,
        "conditioning": _is_conditional(config) and not offers(method_class, TakesConditions),
        "sampler": "_target_" in (config.get("sampler") or {}) and "sampler" not in model,
    }
    for group, is_useless in chosen.items():
        if is_useless:
            raise ConfigError(f"{group} has no effect on this model, a {method_class.__name__}: remove it")
    if head not in ("none", "concat") and "auxiliary" not in model:
        raise ConfigError(
            f"this conditioning is for a GAN's discriminator (conditioning.head={head}) and does not work with a "
            f"{method_class.__name__}: choose conditioning=label or conditioning=caption"
        )
    if "sampler" in model and "_target_" not in (config.get("sampler") or {}):
        raise ConfigError(
            f"sampler=none, but the model, a {method_class.__name__}, needs one: choose sampler=heun, euler or another",
            key="sampler",
        )
    has_likelihood = "_target_" in (config.get("likelihood") or {})
    if has_likelihood != ("likelihood" in loss):
        if has_likelihood:
            name = config["likelihood"]["_target_"].rpartition(".")[2]
            raise ConfigError(
                f"likelihood={name} has no effect on the loss {loss_class.__name__} of a {method_class.__name__}: remove it, "
                "or set likelihood=none"
            )
        raise ConfigError(
            f"likelihood=none, but the loss {loss_class.__name__} needs one: choose likelihood=bernoulli, gaussian or another"
        )


def refuse_unread_conditioning(config: Mapping[str, Any], method: Method) -> None:
    """Refuse a conditioning that none of the model's networks reads.

    Raises:
        ConfigError: If there is such a conditioning.
    """
    if _is_conditional(config) and isinstance(method, TakesConditions) and not {"label", "caption"} & {*method.batch_keys}:
        raise ConfigError(
            "conditioning has no effect, because no network of the model reads a condition: set conditioning=none, or store "
            "an encoder in your own network's attribute `condition` (docs/extending.md)",
            key="conditioning",
        )


def _is_conditional(config: Mapping[str, Any]) -> bool:
    """Return whether the group ``conditioning`` gives networks a condition."""
    group = config.get("conditioning") or {}
    encoder = group.get("encoder")
    target = str(encoder.get("_target_")) if isinstance(encoder, Mapping) else ""
    return group.get("head", "none") != "none" or (bool(target) and not target.endswith(".Unconditional"))


def check_kind(method: type[Method], source: ImageDataset, task: Task | None) -> None:
    """Refuse data without input images if the method translates, and data with input images if it does not."""
    translates = offers(method, Translates)
    if translates == (task is not None) and (task is None or set(method.batch_keys) <= set(task.keys)):
        return
    name = method.__name__
    if task is None:
        raise ConfigError(
            f"the model, a {name}, translates images, but data {source.name} has no pairs or domains: choose a task such as "
            "task=denoise or task=inpaint, or data=paired or data=unpaired"
        )
    if not translates:
        raise ConfigError(
            f"the data has {', '.join(task.keys)} for each sample, but the model, a {name}, takes no input images: "
            "choose a model such as pix2pix or restoration" + ("" if source.task else ", or task=none")
        )
    kind = "data=unpaired, two folders of images" if "a" in method.batch_keys else "data=paired, or other data with a task"
    needs, has = " and ".join(method.batch_keys), " and ".join(task.keys)
    raise ConfigError(f"the model, a {name}, needs the batch keys {needs}, but the data has {has}: choose {kind}")


def measures_held_out(config: Mapping[str, Any], builder: Builder) -> bool:
    """Return whether the evaluation, or one of its metrics, needs held-out images."""
    if (target := config["evaluation"].get("_target_")) and issubclass(builder.locate(target, "evaluation"), HeldOutEvaluator):
        return True
    measured = [config["evaluation"], *(config["evaluation"].get("additional") or {}).values()]
    nodes = [node for each in measured if isinstance(each, dict) for node in (each.get("metrics") or {}).values()]
    targets = [node["_target_"] for node in nodes if isinstance(node, dict) and "_target_" in node]
    return any(getattr(builder.locate(target, "evaluation.metrics"), "needs_held_out", False) for target in targets)


def _options_of_type(group: str, loss_type: type, builder: Builder) -> list[str]:
    """Return the options of a config group whose target is a subclass of ``loss_type``."""
    fitting = []
    for path in sorted((Path(config_dir()) / group).glob("*.yaml")):
        target = _target_of(path)
        found = builder.locate(target, group) if target else None
        if inspect.isclass(found) and issubclass(found, loss_type):
            fitting.append(path.stem)
    return fitting


def _target_of(path: Path) -> str | None:
    """Return the target of a config file, or of the file that it extends if it has none."""
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    if "_target_" in node:
        return str(node["_target_"])
    bases = [path.with_name(f"{entry}.yaml") for entry in node.get("defaults", []) if re.fullmatch(r"\w+", str(entry))]
    return next((target for base in bases if base.is_file() and (target := _target_of(base))), None)
