"""Whether numbers, texts, lists and mappings, of a config or a checkpoint, are what type hints say."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from genimg.errors import CheckpointError, ConfigError

T = TypeVar("T")

_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
_LARGEST = 2**63  # of whole numbers: tensors hold them in 64 bits
_ANOTHER = "use another checkpoint of its run"
_LISTS = (Sequence, list, tuple)
_MAPPINGS = (Mapping, dict)


def type_hints(function: Any, *, include_extras: bool = False) -> Mapping[str, Any]:
    """Return the type hints of a function or of a class's constructor; empty where only a type checker can see them."""
    return _evaluated(function, include_extras)


@functools.lru_cache(maxsize=1024)  # every constructor is asked for several times, and evaluating its text takes a while
def _evaluated(function: Any, include_extras: bool) -> Mapping[str, Any]:
    called = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(called, include_extras=include_extras)
    except (NameError, TypeError):  # as of some of torch's
        return {}


def require_type(value: Any, hint: Any, key: str) -> None:
    """Refuse a value of a resolved config that is not of the type of what takes it.

    Args:
        value: Numbers, texts, truth values, null, lists and mappings; a mapping with a ``_target_`` fits every class.
        hint: Type of the parameter. What is neither a scalar, a list, a mapping nor a class fits everything.
        key: Dotted key, for messages.

    Raises:
        ConfigError: If it is not; for a number that is not finite; and for a whole number of more than 64 bits.
    """
    if not fits(value, hint):
        raise ConfigError(f"{key}={as_written(value)} must be {words_of(hint)}", key=key)
    require_finite(value, key)


def require_finite(value: Any, key: str) -> None:
    """Refuse NaN, infinity and whole numbers of more than 64 bits in a value of a resolved config.

    Args:
        value, key: See ``require_type``.

    Raises:
        ConfigError: For such a number.
    """
    if any(isinstance(each, float) and not math.isfinite(each) for each in _numbers(value)):
        raise ConfigError(f"{key}={as_written(value)} must be a finite number", key=key)
    if any(isinstance(each, int) and not -_LARGEST <= each < _LARGEST for each in _numbers(value)):
        raise ConfigError(f"{key}={as_written(value)} must be a whole number of at most 64 bits", key=key)


def require_scalar(value: Any, hint: Any, key: str) -> None:
    """Refuse a number, text, truth value or null that a type hint, which may be imprecise, has no room for.

    Args:
        value, hint, key: See ``require_type``.

    Raises:
        ConfigError: If it is such a value, and the hint names other scalars than this one.
    """
    options = set(_options(hint))
    names_others = bool(options & {int, float, bool, str}) and Any not in options
    if type(value) in _SCALARS and names_others and not fits(value, hint):
        raise ConfigError(f"{key}={as_written(value)} must be {words_of(hint)}", key=key)


def require_instance(value: Any, hint: Any, key: str) -> None:
    """Refuse an object, made of a mapping with a ``_target_``, that is not of the class of what takes it.

    Objects of your own packages pass: they may do what is asked of them without being of the class.

    Raises:
        ConfigError: If it is not.
    """
    for each in _options(hint):
        origin, parts = typing.get_origin(each) or each, typing.get_args(each)
        if isinstance(value, list) and origin in _LISTS and parts:
            for i, item in enumerate(value):
                require_instance(item, parts[0], f"{key}[{i}]")
        if isinstance(value, dict) and origin in _MAPPINGS and parts:
            for name, item in value.items():
                require_instance(item, parts[1], f"{key}.{name}")
    if type(value) not in (*_SCALARS, list, dict) and not any(_is_of(value, each) for each in _options(hint)):
        wanted = " or ".join(_name(each) for each in _options(hint) if each is not types.NoneType)
        raise ConfigError(f"{key} is a {type(value).__name__}, but must be a {wanted}", "choose another _target_", key=key)


def restored(kind: type[T], saved: Any, name: str) -> T:
    """Return the dataclass that a checkpoint holds as a mapping.

    Args:
        kind: The dataclass.
        saved: Its fields; those with a default may be missing.
        name: Key of the mapping in the checkpoint.

    Raises:
        CheckpointError: If the mapping has other fields, or values of other types.
    """
    hints = type_hints(kind)
    if not isinstance(saved, Mapping) or not saved.keys() <= hints.keys():
        raise CheckpointError(f"the checkpoint's {name} has unknown fields", _ANOTHER)
    for field, value in saved.items():
        if not fits(value, hints[field]):
            raise CheckpointError(
                f"the checkpoint's {name}.{field}={as_written(value)} must be {words_of(hints[field])}", _ANOTHER, key=""
            )
    try:
        return kind(**saved)
    except TypeError as error:  # a field without a default is missing
        raise CheckpointError(f"the checkpoint's {name} is not whole ({error})", _ANOTHER, key="") from error


def as_written(value: Any) -> str:
    """Return a value as a command line or a config file writes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {as_written(each)}' for name, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; the hint alone if it is none."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type, see ``require_type``."""
    options = _options(hint)
    if len(options) > 1:
        return any(fits(value, each) for each in options)
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint in _SCALARS or hint is None:
        return type(value) is hint or value is hint or (hint is float and type(value) is int)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin in _LISTS:
        return isinstance(value, list | tuple) and all(fits(each, parts[0]) for each in value if parts)
    if origin in _MAPPINGS:
        return isinstance(value, Mapping) and all(fits(each, parts[1]) for each in value.values() if parts)
    if origin is Callable or (inspect.isclass(hint) and hint not in (Any, object)):  # Any is a class since Python 3.11
        return isinstance(value, Mapping) and "_target_" in value
    return True


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether an object is of a class, or callable; what cannot be told is."""
    origin = typing.get_origin(hint) or hint
    if origin is Callable:
        return callable(value)
    if hint is Any or not inspect.isclass(origin) or getattr(hint, "_is_protocol", False):
        return True
    return isinstance(value, origin) or type(value).__module__.partition(".")[0] not in ("genimg", "torch")


def _numbers(value: Any) -> list[Any]:
    """Return the numbers in a value, without those of nodes with a ``_target_``, which are checked where they are taken."""
    if isinstance(value, Mapping):
        return [] if "_target_" in value else [number for each in value.values() for number in _numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [value] if type(value) in (int, float) else []


def words_of(hint: Any) -> str:
    """Return a type hint as a sentence says it: "a whole number or a list such as [64,48]"."""
    options = _options(hint)
    words = [text for kind, text in _SCALARS.items() if kind in options and kind is not types.NoneType]
    for each in options:
        origin, parts = typing.get_origin(each) or each, typing.get_args(each)
        if origin is typing.Literal:
            words.append(f"one of {', '.join(map(as_written, parts))}")
        elif origin in _LISTS:
            example = "[a,b]" if parts and parts[0] is str else "[64,48]"
            words.append(f"a list such as {example}")
        elif origin in _MAPPINGS:
            words.append("a mapping such as {a: 1}")
        elif each not in _SCALARS and each not in (None, Any):
            words.append("a mapping with a _target_")
    return " or ".join(dict.fromkeys([*words, *(["null"] if types.NoneType in options else [])]))


def _name(hint: Any) -> str:
    return str(getattr(typing.get_origin(hint) or hint, "__name__", hint))
