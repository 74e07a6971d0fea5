"""The config schemas: types, defaults and help of all options of the commands and of the groups with fixed keys.

Importing this package stores the schemas in Hydra's ConfigStore. The config files include them in their defaults lists, as
``/_schema/train@_global_``, so OmegaConf rejects wrong types during composition.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from genimg.config.schema.commands import COMMANDS
from genimg.config.schema.groups import GROUPS, OPEN
from genimg.config.schema.option import Option, options_of, sentence

__all__ = ["COMMANDS", "GROUPS", "OPEN", "Option", "options_of", "sentence", "type_of"]


def type_of(key: str, command: str, schema: Any = None) -> str:
    """Return the type of an option in words, or an empty string if no schema has the key.

    Args:
        key: Dotted key.
        command: Name of the primary config.
        schema: Schema of the mapping that holds the key; None if there is none.
    """
    group, _, name = key.partition("[")[0].rpartition(".")
    schemas = [COMMANDS[command]] if not group else [*OPEN.get(group, {}).values(), *GROUPS.get(group, {}).values()]
    if schema in schemas:
        schemas = [schema]
    return next((each.type for kind in schemas for each in options_of(kind) if each.name == name), "")


def _without_type(schema: type) -> DictConfig:
    """Return a mapping that checks the values of the schema's keys and accepts other keys."""
    typed: Any = OmegaConf.structured(schema)
    return DictConfig({name: typed._get_node(name) for name in typed})


def _register() -> None:
    store = ConfigStore.instance()
    for name, schema in COMMANDS.items():
        # A command's groups add keys to its schema.
        store.store(name, _without_type(schema), group="_schema")
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            store.store(name, schema, group=f"_schema/{group}")
    for group, schemas in OPEN.items():
        for name, schema in schemas.items():
            store.store(name, _without_type(schema), group=f"_schema/{group}")


_register()
