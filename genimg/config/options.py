"""Read a command's options into an object of its schema."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from omegaconf import DictConfig

from genimg.config.compose import Config, require_all_values, thaw
from genimg.config.sampling_arguments import as_typed
from genimg.config.schema import options_of
from genimg.config.types import require_type
from genimg.errors import ConfigError
from genimg.utils.type_hints import type_hints
from genimg.utils.words import nearest

Options = TypeVar("Options")


def read_options(composed: DictConfig, schema: type[Options], groups: Collection[str] = ()) -> tuple[Options, dict[str, Any]]:
    """Return the options and the groups of a command.

    Args:
        composed: The composed config.
        schema: Schema of the command, such as ``schema.commands.Sample``.
        groups: Names of groups that the command accepts.

    Returns:
        Copies of the options, as an object of the schema, and of the config's resolved groups by name.

    Raises:
        ConfigError: If a required option has no value, if a key is unknown, such as a misspelt ``+sed=1``, or if a value has
            the wrong type or is not finite.
    """
    require_all_values(composed)
    own = [option.name for option in options_of(schema)]
    known = {*own, *groups}
    for key in map(str, composed):
        if key not in known and not key.startswith("_"):  # keys with _ hold values to which others refer
            problem = f"unknown key {key}{nearest(key, known)}"
            raise ConfigError(problem, "nothing reads it; --cfg job shows all keys", key=key)
    values = thaw(Config.of(composed))
    hints = type_hints(schema)
    for name in own:
        if name not in values:
            raise ConfigError(f"{name} is required", f"set {name}=VALUE", key=name)
        try:
            require_type(values[name], hints[name], name)
        except ConfigError as error:
            raise as_typed(error, schema) from error
    return schema(**{name: values[name] for name in own}), {name: values[name] for name in groups if name in values}
