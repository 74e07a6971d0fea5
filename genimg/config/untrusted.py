"""Handle machine-local values in a checkpoint's config: paths and digests that decide which local files are opened.

These parameters are marked where they are declared (see ``genimg.utils.machine_local``). ``Builder`` refuses their values
unless the command line names them. This module finds them, inserts the user's values and logs the dropped ones.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genimg.config.instantiate import Builder, Node, local_parameters, name_again
from genimg.config.schema.commands import CHECKPOINT_GROUPS
from genimg.errors import ConfigError
from genimg.utils.machine_local import MachineLocal, Required

log = logging.getLogger(__name__)

GROUPS = CHECKPOINT_GROUPS


@dataclass(frozen=True)
class Place:
    """A place where a config sets a machine-local parameter.

    Attributes:
        path: Keys and list positions from the root, ending with the parameter's name.
        node: Mapping that holds the parameter.
        mark: Mark of the parameter.
    """

    path: tuple[str | int, ...]
    node: Node
    mark: MachineLocal

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(map(str, self.path))

    @property
    def name(self) -> str:
        """The parameter's name."""
        return str(self.path[-1])

    @property
    def value(self) -> Any:
        return self.node[self.name]

    def set(self, value: Any) -> None:
        self.node[self.name] = value


def places(node: Any, builder: Builder, path: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Yield every place where a resolved config sets a machine-local parameter, skipping targets that cannot be built."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from places(item, builder, (*path, i))
    if not isinstance(node, dict):
        return
    try:
        target = builder.locate(node["_target_"], ".".join(map(str, path))) if "_target_" in node else None
    except ConfigError:  # it is raised again if the target is built
        target = None
    if target is not None and builder.omits(target):
        return
    marks = local_parameters(target) if target is not None else {}
    for name, value in node.items():
        if name in marks:
            yield Place((*path, name), node, marks[name])
        else:
            yield from places(value, builder, (*path, name))


def take_out(config: Node, builder: Builder, groups: Sequence[str] | None = None) -> list[Place]:
    """Replace, in place, machine-local values of a checkpoint's config that the command line does not name.

    Args:
        config: The resolved config.
        builder: Builder that holds the values named on the command line.
        groups: Groups to search; None searches all.

    Returns:
        Places whose values were replaced.

    Raises:
        ConfigError: If a value has no replacement; the message names the keys to set on the command line.
    """
    looked_at = config if groups is None else {group: config.get(group) for group in groups}
    dropped = [place for place in places(looked_at, builder) if not builder.may_take(place.name, place.value, place.mark)]
    shortest: dict[str, str] = {}  # shortest key of each value: several networks may read one encoder's path
    for place in sorted(dropped, key=lambda place: (place.path[0] == "model", len(place.path))):
        if place.mark.instead is Required:
            shortest.setdefault(str(place.value), place.key)
    if shortest:
        raise ConfigError(name_again({key: value for value, key in shortest.items()}), key=next(iter(shortest.values())))
    for place in dropped:
        log.warning(
            "%s=%s comes from the checkpoint's config and is not used, because a checkpoint never decides which files are "
            "opened (%s is used instead): if you trust it, set ++%s=VALUE on the command line",
            place.key, place.value, "null" if place.mark.instead is None else place.mark.instead, place.key,
        )  # fmt: skip
        place.set(place.mark.instead)
    return dropped


def named_again(config: Node, builder: Builder, given: Mapping[str, Any]) -> tuple[Node, Builder]:
    """Return a checkpoint's config with the values that the command line names, and a builder that accepts them.

    A new value replaces the parameter's old value wherever that occurs, because several networks can share an encoder's path.

    Args:
        config: The resolved config.
        builder: Builder of the config.
        given: Values by dotted key.

    Raises:
        ConfigError: If a key is not machine-local in this config.
    """
    config = copy.deepcopy(config)
    found = list(places({group: config.get(group) for group in GROUPS}, builder))
    olds = {place.key: place.value for place in found}
    for key, value in given.items():
        if key not in olds:
            raise ConfigError(
                f"{key}={value} has no effect on this checkpoint: only its own paths and digests can be named again, which "
                f"are {', '.join(olds) or 'none here'}"
            )
        for place in found:
            if place.key == key or (place.name == key.rpartition(".")[2] and olds[place.key] == olds[key]):
                place.set(value)
    return config, naming(builder, given)


def naming(builder: Builder, given: Mapping[str, Any]) -> Builder:
    """Return a builder that also accepts these values, each for the parameter at the end of its dotted key."""
    pairs = {(key.rpartition(".")[2], value) for key, value in given.items() if value is None or isinstance(value, str)}
    return replace(builder, named=(builder.named or frozenset()) | pairs)
