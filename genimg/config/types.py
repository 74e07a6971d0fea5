"""Check values of a config against the types of the parameters that receive them."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from types import NoneType
from typing import Any

from genimg.errors import ConfigError
from genimg.utils.type_hints import SCALARS, as_written, describe_hint, fits, is_instance, options_of, part_of

_LARGEST = 2**63  # whole numbers must fit into the 64-bit integers of tensors


def is_node(value: Any) -> bool:
    """Return whether a value is a mapping with a ``_target_``."""
    return isinstance(value, Mapping) and "_target_" in value


def require_type(value: Any, hint: Any, key: str) -> None:
    """Refuse a value of a resolved config that does not have the type of its parameter.

    Args:
        value: The value; a mapping with a ``_target_`` stands for an object.
        hint: Type of the parameter.
        key: Dotted key.

    Raises:
        ConfigError: If the value has another type, or contains a number that is not finite or needs more than 64 bits.
    """
    if not fits(value, hint, is_node):
        raise _wrong(value, hint, key)
    require_finite(value, key)


def require_finite(value: Any, key: str) -> None:
    """Refuse NaN, infinity and whole numbers of more than 64 bits, except in nodes, which are checked when they are built.

    Args:
        value, key: See ``require_type``.

    Raises:
        ConfigError: If there is such a number.
    """
    if isinstance(value, Mapping) and not is_node(value):
        for name, each in value.items():
            require_finite(each, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            require_finite(each, f"{key}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={as_written(value)} must be a finite number", key=key)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ConfigError(f"{key}={as_written(value)} must be a whole number of at most 64 bits", key=key)


def require_scalar(value: Any, hint: Any, key: str) -> None:
    """Refuse a number, text, Boolean or null that contradicts a type hint, which may be imprecise.

    Args:
        value, hint, key: See ``require_type``.

    Raises:
        ConfigError: If the value is a scalar that does not fit, and the hint names other scalar types.
    """
    options = set(options_of(hint))
    names_others = bool(options & (SCALARS.keys() - {NoneType})) and Any not in options
    if type(value) in SCALARS and names_others and not fits(value, hint):
        raise _wrong(value, hint, key)


def require_instance(value: Any, hint: Any, key: str) -> None:
    """Refuse an object of genimg or PyTorch that is not an instance of its parameter's type.

    Objects of other packages pass, because they may have the required interface without being instances.

    Args:
        value: Object built from a node, or a list or mapping of them.
        hint, key: See ``require_type``.

    Raises:
        ConfigError: If the object has another type.
    """
    for each in options_of(hint):
        if (part := part_of(value, each)) is not None:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for name, item in items:
                require_instance(item, part, f"{key}.{name}" if isinstance(value, dict) else f"{key}[{name}]")
    package = type(value).__module__.partition(".")[0]
    if package in ("genimg", "torch") and not any(is_instance(value, each) for each in options_of(hint)):
        expected = " or ".join(_name(each) for each in options_of(hint) if each is not NoneType)
        raise ConfigError(
            f"{key} is a {type(value).__name__}, but must be of type {expected}", "choose another _target_", key=key
        )


def _wrong(value: Any, hint: Any, key: str) -> ConfigError:
    return ConfigError(f"{key}={as_written(value)} must be {describe_hint(hint, 'a mapping with a _target_')}", key=key)


def _name(hint: Any) -> str:
    return str(getattr(typing.get_origin(hint) or hint, "__name__", hint))
