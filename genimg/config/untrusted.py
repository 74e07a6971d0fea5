"""What the config of a checkpoint may not bring: paths and digests that decide which files of this machine are opened.

The parameters are marked where they are declared, see ``genimg.utils.machine_local``. ``Builder`` refuses their values unless
the command line names them; this module finds them, puts the user's values in their place, and says what was dropped.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genimg.config.instantiate import Builder, Node, local_parameters, name_again
from genimg.errors import ConfigError
from genimg.utils.machine_local import MachineLocal, Required

log = logging.getLogger(__name__)

GROUPS = ("conditioning", "evaluation", "loss", "model")
"""Groups in which such parameters stand, and which a command that opens a checkpoint therefore takes keys of."""


@dataclass(frozen=True)
class Place:
    """Where a config sets a machine-local parameter.

    Attributes:
        path: Keys and list positions that lead to it, the parameter's name last.
        node: The mapping that holds it.
        mark: Of the parameter.
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
        """The parameter."""
        return str(self.path[-1])

    @property
    def value(self) -> Any:
        return self.node[self.name]

    def set(self, value: Any) -> None:
        self.node[self.name] = value


def places(node: Any, builder: Builder, path: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Yield every machine-local parameter that a resolved config sets, except of targets that cannot be built."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from places(item, builder, (*path, i))
    if not isinstance(node, dict):
        return
    try:
        target = builder.locate(node["_target_"], ".".join(map(str, path))) if "_target_" in node else None
    except ConfigError:  # raised again where it is built, if it is
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
    """Replace, in place, what a checkpoint's config brings and the command line does not name.

    Args:
        config: The resolved config.
        builder: Which knows what is named.
        groups: The ones to look at; None looks at all of them.

    Returns:
        Where values were replaced.

    Raises:
        ConfigError: For a value that nothing can replace, naming the keys to give again.
    """
    looked_at = config if groups is None else {group: config.get(group) for group in groups}
    dropped = [place for place in places(looked_at, builder) if not builder.may_take(place.name, place.value, place.mark)]
    shortest: dict[str, str] = {}  # by value: several networks may read one encoder's path
    for place in sorted(dropped, key=lambda place: (place.path[0] == "model", len(place.path))):
        if place.mark.instead is Required:
            shortest.setdefault(str(place.value), place.key)
    if shortest:
        raise ConfigError(name_again({key: value for value, key in shortest.items()}), key=next(iter(shortest.values())))
    for place in dropped:
        log.warning(
            "%s=%s comes from the checkpoint's config and is not used, because a checkpoint never decides which files are "
            "opened (%s is used instead): if you trust it, name it on the command line with ++%s=VALUE",
            place.key, place.value, "null" if place.mark.instead is None else place.mark.instead, place.key,
        )  # fmt: skip
        place.set(place.mark.instead)
    return dropped


def named_again(config: Node, builder: Builder, given: Mapping[str, Any]) -> tuple[Node, Builder]:
    """Return a checkpoint's config with the values that the command line names, and the builder that accepts them.

    A value replaces the old one of its key wherever the config has that old one: an encoder's path stands in several networks.

    Args:
        config: Resolved.
        builder: Of the config.
        given: By dotted key.

    Raises:
        ConfigError: For a key that is not machine-local in this config.
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
    """Return the builder that accepts these values, too, each of the parameter that ends its dotted key."""
    pairs = {(key.rpartition(".")[2], value) for key, value in given.items() if value is None or isinstance(value, str)}
    return replace(builder, named=(builder.named or frozenset()) | pairs)
