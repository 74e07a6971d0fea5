"""Declare the type, default and help of config options, and the nodes that OmegaConf uses to check values."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, ValueNode
from omegaconf.base import Metadata
from omegaconf.errors import ValidationError

_NAMES = {int: "int", float: "number", str: "text", bool: "true | false", list: "list", dict: "mapping"}
_LARGEST_SEED = 2**63 - 1  # accepted by both torch and NumPy
_SPOKEN = {
    "int": "a whole number", "number": "a number", "list": "a list such as [a,b]", "mapping": "a mapping such as {a: 1}",
    "duration": "a duration such as '25 epochs'", "path": "a path", "file": "a file", "directory": "a directory",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """An option as a user sees it.

    Attributes:
        name: Key of the option.
        type: Type, or the allowed values, in words.
        default: Default value; "???" if a value is required.
        help: One line of help.
        heading: Heading of the help section that starts with this option; empty if the option does not start a section.
    """

    name: str
    type: str
    default: Any
    help: str
    heading: str


class OneOf(ValueNode):
    """A node whose value is in a closed set, or has an allowed type and lies within bounds.

    Args:
        value: The value; an interpolation or "???" is checked when it is replaced.
        words: Allowed values.
        types: Types of other allowed values.
        is_optional: Whether null is allowed.
        bounds: Minimum and maximum of a number, inclusive.
    """

    _words: tuple[str | bool, ...]
    _types: tuple[type, ...]
    _bounds: tuple[float, float]

    def __init__(
        self,
        value: Any,
        words: tuple[str | bool, ...],
        types: tuple[type, ...],
        *,
        is_optional: bool,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        # Node overrides __setattr__
        self.__dict__["_words"], self.__dict__["_types"], self.__dict__["_bounds"] = words, types, bounds
        metadata = Metadata(key=None, optional=is_optional, ref_type=str, object_type=str)
        super().__init__(parent=None, value=value, metadata=metadata)

    def _validate_and_convert_impl(self, value: Any) -> Any:
        is_word = any(type(value) is type(word) and value == word for word in self._words)
        is_within = type(value) in self._types and (isinstance(value, str) or self._bounds[0] <= value <= self._bounds[1])
        if not is_word and not is_within:
            raise ValidationError(f"Value '$VALUE' must be {describe_values(self._words, self._types)}")
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> OneOf:
        copied = OneOf(None, self._words, self._types, is_optional=True, bounds=self._bounds)
        self._deepcopy_impl(copied, memo)
        return copied


def option(
    help: str,
    default: Any = MISSING,
    *,
    type: str = "",
    one_of: tuple[str | bool, ...] = (),
    or_type: tuple[type, ...] = (),
    heading: str = "",
    optional: bool = False,
    least: int | None = None,
    most: int | None = None,
) -> Any:
    """Return the dataclass field of an option.

    Args:
        help: One line of help.
        default: Default; omit it if a value is required.
        type: Type in words, where the annotation is not precise enough.
        one_of: Allowed values of a closed set.
        or_type: Types of allowed values besides ``one_of``.
        heading: Heading of the help section that starts with this option.
        optional: Whether a closed set allows null; a default of null implies it.
        least: Minimum of a whole number.
        most: Maximum of a whole number.
    """
    if isinstance(default, bool) and not one_of:
        one_of = (True, False)  # OmegaConf's own type would accept 3 and "yes" as true
    is_bounded = least is not None or most is not None
    if is_bounded and not or_type:
        or_type = (int,)
    bounds = (-math.inf if least is None else least, math.inf if most is None else most)
    if one_of or is_bounded:
        optional = optional or default is None
        type = type or describe_values(one_of, or_type, least, most) + " | null" * optional

        def make() -> Any:
            return OneOf(default, one_of, or_type, is_optional=optional, bounds=bounds)
    else:

        def make() -> Any:
            return _copied(default)

    metadata = {"help": help, "type": type, "heading": heading, "default": default}
    return dataclasses.field(default_factory=make, metadata=metadata)


def seed_option(help: str, default: int | None = 0, *, heading: str = "") -> Any:
    """Return the dataclass field of a seed.

    Args:
        help: One line of help.
        default: Default.
        heading: Heading of the help section that starts with this option.
    """
    return option(help, default, least=0, most=_LARGEST_SEED, heading=heading)


def _copied(value: Any) -> Any:
    """Return a copy of a default that can be changed safely."""
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return list(value) if isinstance(value, list) else value


def describe_values(
    words: tuple[str | bool, ...], types: tuple[type, ...], least: int | None = None, most: int | None = None
) -> str:
    """Return the allowed values as they are written in a config file: ``auto | true | int`` or ``int from 0 to 9``."""
    to = "" if most is None else " to 2^63-1" if most == _LARGEST_SEED else f" to {most}"
    bounds = ("" if least is None else f" from {least}") + to
    shown = [str(word).lower() if isinstance(word, bool) else word for word in words]
    return " | ".join([*shown, *dict.fromkeys(_NAMES[each] + bounds for each in types if not (each is int and float in types))])


def options_of(schema: type) -> Iterator[Option]:
    """Yield the options of a schema in the order of declaration, without ``_target_``."""
    hints = get_type_hints(schema)
    for each in dataclasses.fields(schema):
        if each.name != "_target_":
            given = each.metadata
            yield Option(
                each.name, given["type"] or _of_annotation(hints[each.name]), given["default"], given["help"], given["heading"]
            )


def sentence(type: str) -> str:
    """Return a type or a set of values in prose: "auto or a whole number"."""
    words = [word.partition(" from ") for word in type.split(" | ")]
    *others, last = [_SPOKEN.get(word, word) + joint + bounds for word, joint, bounds in words]
    return f"{', '.join(others)} or {last}" if others else last


def _of_annotation(hint: Any) -> str:
    parts = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = tuple(get_origin(part) or part for part in parts if part is not types.NoneType)
    return describe_values((), plain) + " | null" * (types.NoneType in parts)
