"""Check that a training config has the required groups and keys; their contents are checked when they are built."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genimg.config import schema
from genimg.config.compose import thaw
from genimg.config.types import is_node, require_finite
from genimg.errors import CheckpointError, ConfigError
from genimg.utils.type_hints import as_written

_BUILT = ("model", "data", "loss", "optimizer", "schedule", "performance")  # training builds an object from each
_OPTIONAL = ("conditioning", "discriminator_augment", "augment", "task", "likelihood", "sampler", "logger", "debug")
_OF_EVERY_DATA = ("horizontal_flip", "storage", "num_workers", "max_corrupt")


def require_structure(config: Mapping[str, Any]) -> None:
    """Check that a training config has all options, and that its groups are mappings.

    Args:
        config: Resolved config, composed by a command or loaded from a checkpoint.

    Raises:
        ConfigError: If an option or a group is missing or has the wrong type.
    """
    require_options(config, schema.COMMANDS["train"])
    for group in (*_BUILT, "trainer", "evaluation"):
        if not isinstance(config.get(group), Mapping):
            value = as_written(config[group]) if group in config else "(absent)"
            raise ConfigError(f"{group}={value} must be one of the group's options", f"set {group}=NAME", key=group)
    for group in _OPTIONAL:
        if not isinstance(config.get(group) or {}, Mapping):
            raise ConfigError(f"{group}={as_written(config[group])} must be one of the group's options", f"set {group}=NAME")
    for group in _BUILT:
        if not is_node(config[group]):
            raise ConfigError(f"{group}._target_ is required", f"set {group}=NAME", key=f"{group}._target_")
    for key, value in config.items():
        require_finite(value, key)  # also checks keys that no other check covers
    require_options(config["trainer"], schema.GROUPS["trainer"]["trainer"], "trainer")
    require_options(config["data"], schema.OPEN["data"]["common"], "data", _OF_EVERY_DATA)


def require_saved_structure(config: Mapping[str, Any], path: Path) -> None:
    """Check that the config of a checkpoint has the groups that are read whenever the checkpoint is used.

    Other options may be missing, as in checkpoints of older versions, until they are needed.

    Args:
        config: The checkpoint's resolved config.
        path: Path of the checkpoint, for messages.

    Raises:
        CheckpointError: If a group is missing or has the wrong type.
    """
    for group in ("model", "data", "trainer", "evaluation"):
        if not isinstance(config.get(group), Mapping):
            raise _no_config(path, f"{group} is not a mapping")
    for group in ("model", "data"):
        if not isinstance(config[group].get("_target_"), str):
            raise _no_config(path, f"{group}._target_ is not text")
    batch_size = config["trainer"].get("batch_size")
    if type(batch_size) is not int or batch_size < 1:
        raise _no_config(path, f"trainer.batch_size is {as_written(batch_size)}")


def _no_config(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds no valid training config: {problem}", "use another checkpoint of the same run", key=""
    )


def require_groups(config: Mapping[str, Any]) -> None:
    """Check that a composed config has every group.

    Raises:
        ConfigError: If a group was removed, for example by ``~augment``.
    """
    for group in (*_BUILT, "trainer", "evaluation", *_OPTIONAL):
        if group not in config:
            raise ConfigError(f"{group} is required", f"set {group}=NAME", key=group)
    for group in ("penalty", "ema"):
        for name, node in (config[group] or {}).items():
            if not isinstance(node, Mapping | DictConfig | None):
                raise ConfigError(f"{group}.{name}={as_written(node)} must be a mapping", f"choose it with {group}=[{name}]")


def require_options(values: Mapping[str, Any], kind: type, group: str = "", names: Collection[str] = ()) -> None:
    """Check that a mapping has every option of a schema, with values of the schema's types.

    Args:
        values: Values by name; other names are ignored.
        kind: The schema.
        group: Key of the mapping; empty at the top level.
        names: Options to check; all by default.

    Raises:
        ConfigError: If an option is missing or has the wrong type.
    """
    types = {option.name: option.type for option in schema.options_of(kind)}
    typed: Any = OmegaConf.structured(kind)
    OmegaConf.set_readonly(typed, False)  # schemas of commands are read-only
    for name in names or types:
        key = f"{group}.{name}" if group else name
        if name not in values:
            raise ConfigError(f"{key} is required", f"set {key}=VALUE", key=key)
        with contextlib.suppress(OmegaConfBaseException):
            typed[name] = thaw(values[name])
            if not (OmegaConf.is_interpolation(typed, name) or OmegaConf.is_missing(typed, name)):
                continue
        raise ConfigError(f"{key}={as_written(values[name])} must be {schema.sentence(types[name])}", key=key)
