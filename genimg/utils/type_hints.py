"""Check plain values from a config or a checkpoint against type hints."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from genimg.errors import CheckpointError

T = TypeVar("T")

SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
"""Names of scalar types for messages."""

_ANOTHER = "use another checkpoint of the same run"
_LISTS = (Sequence, list, tuple)
_MAPPINGS = (Mapping, dict)


def type_hints(function: Any, *, include_extras: bool = False) -> Mapping[str, Any]:
    """Return the type hints of a function or of a class's constructor; empty if they exist only for type checkers."""
    return _evaluated(function, include_extras)


@functools.lru_cache(maxsize=1024)  # hints are requested several times, and evaluating them is slow
def _evaluated(function: Any, include_extras: bool) -> Mapping[str, Any]:
    called = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(called, include_extras=include_extras)
    except (NameError, TypeError):  # as for some of torch's classes
        return {}


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or only the hint if it is not a union."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def part_of(value: Any, hint: Any) -> Any:
    """Return the hint for the items of a list or the values of a mapping; None for any other value or hint."""
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(value, list) and origin in _LISTS and parts:
        return parts[0]
    return parts[1] if isinstance(value, dict) and origin in _MAPPINGS and parts else None


def fits(value: Any, hint: Any, is_object: Callable[[Any], bool] = lambda value: False) -> bool:
    """Return whether a value matches a type hint.

    Args:
        value: A number, string, bool, None, list or mapping.
        hint: The type hint. A hint that is not a scalar, list, mapping, class or callable matches every value.
        is_object: Function that returns whether a value describes an object, which matches every class and callable.
    """
    options = options_of(hint)
    if len(options) > 1:
        return any(fits(value, each, is_object) for each in options)
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint in SCALARS or hint is None:
        return type(value) is hint or value is hint or (hint is float and type(value) is int)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        is_list = isinstance(value, list | tuple) and len(value) == len(parts)
        return is_list and all(fits(each, part, is_object) for each, part in zip(value, parts, strict=True))
    if origin in _LISTS:
        return isinstance(value, list | tuple) and all(fits(each, parts[0], is_object) for each in value if parts)
    if origin in _MAPPINGS:
        return isinstance(value, Mapping) and all(fits(each, parts[1], is_object) for each in value.values() if parts)
    if origin is Callable or (inspect.isclass(hint) and hint not in (Any, object)):  # Any is a class since Python 3.11
        return is_object(value)
    return True


def is_instance(value: Any, hint: Any) -> bool:
    """Return whether an object is an instance of a class, or callable; true if the hint is neither."""
    origin = typing.get_origin(hint) or hint
    if origin is Callable:
        return callable(value)
    return hint is Any or not inspect.isclass(origin) or getattr(hint, "_is_protocol", False) or isinstance(value, origin)


def restored(kind: type[T], saved: Any, name: str) -> T:
    """Restore a dataclass that a checkpoint holds as a mapping.

    Args:
        kind: The dataclass.
        saved: Fields of the dataclass; those with a default may be missing.
        name: Key of the mapping in the checkpoint.

    Raises:
        CheckpointError: If the mapping has other fields, or values of other types.
    """
    hints = type_hints(kind)
    if not isinstance(saved, Mapping) or not saved.keys() <= hints.keys():
        raise CheckpointError(f"the checkpoint's {name} has unknown fields", _ANOTHER)
    for field, value in saved.items():
        if not fits(value, hints[field]):
            problem = f"the checkpoint's {name}.{field}={as_written(value)} must be {describe_hint(hints[field])}"
            raise CheckpointError(problem, _ANOTHER, key="")
    try:
        return kind(**saved)
    except TypeError as error:  # a field without a default is missing
        raise CheckpointError(f"the checkpoint's {name} lacks a field ({error})", _ANOTHER, key="") from error


def as_written(value: Any) -> str:
    """Format a value as on a command line or in a config file."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {as_written(each)}' for name, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def describe_hint(hint: Any, of_object: str = "an object") -> str:
    """Describe a type hint in words: "a whole number or a list such as [64,48]".

    Args:
        hint: The type hint.
        of_object: Text used for any object.
    """
    options = options_of(hint)
    words = [text for kind, text in SCALARS.items() if kind in options and kind is not types.NoneType]
    for each in options:
        origin, parts = typing.get_origin(each) or each, typing.get_args(each)
        if origin is typing.Literal:
            words.append(f"one of {', '.join(map(as_written, parts))}")
        elif origin in _LISTS:
            words.append(f"a list such as {'[a,b]' if parts and parts[0] is str else '[64,48]'}")
        elif origin in _MAPPINGS:
            words.append("a mapping such as {a: 1}")
        elif each not in SCALARS and each not in (None, Any):
            words.append(of_object)
    return " or ".join(dict.fromkeys([*words, *(["null"] if types.NoneType in options else [])]))
