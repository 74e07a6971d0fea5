"""Sampling options that a model declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from genimg.errors import ConfigError
from genimg.methods.capabilities import Generates
from genimg.utils.type_hints import as_written, describe_hint, fits, type_hints
from genimg.utils.words import nearest


def sampling_options(method: Generates, given: Mapping[str, Any], others: Collection[str] = ()) -> Any:
    """Return a model's sampling options with the given values, and defaults for the others.

    Args:
        method: The model.
        given: Values by name.
        others: Names of the caller's own options, to suggest for a misspelt one.

    Raises:
        ConfigError: If the model has no such option, or a value has the wrong type or is out of range.
    """
    kind = method.sampling_options
    names, hints = [field.name for field in dataclasses.fields(kind)], type_hints(kind)
    for name, value in given.items():
        if name not in names:
            suggestion = nearest(name, {*names, *others})
            own = f"the sampling options of this model, a {type(method).__name__}, are {', '.join(names)}"
            raise ConfigError(f"unknown key {name}{suggestion}", own if names else own.replace("are ", "are none"), key=name)
        if not fits(value, hints[name]):
            raise ConfigError(f"{name}={as_written(value)} must be {describe_hint(hints[name])}", key=name)
    try:
        return kind(**given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def listed(kind: type[Any]) -> list[tuple[str, str, Any, str]]:
    """Return the name, type as text, default and help of every option of a dataclass of sampling options."""
    hints = type_hints(kind)
    return [
        (field.name, describe_hint(hints[field.name]), field.default, field.metadata["help"])
        for field in dataclasses.fields(kind)
    ]
