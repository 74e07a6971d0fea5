"""Sampling options that a model declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
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
    usual = method.sampling_options
    kind = type(usual)
    names, hints = [field.name for field in dataclasses.fields(kind)], type_hints(kind)
    for name, value in given.items():
        if name not in names:
            suggestion = nearest(name, {*names, *others})
            own = f"the sampling options of this model, a {type(method).__name__}, are {', '.join(names)}"
            raise ConfigError(f"unknown key {name}{suggestion}", own if names else own.replace("are ", "are none"), key=name)
        if not fits(value, hints[name]):
            raise ConfigError(f"{name}={as_written(value)} must be {describe_hint(hints[name])}", key=name)
    try:
        replaced = getattr(usual, "replaced", None) or partial(dataclasses.replace, usual)
        return replaced(**given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def has_steps(options: Any) -> bool:
    """Return whether options have a number of steps, ``steps``, as those of diffusion models."""
    return any(field.name == "steps" for field in dataclasses.fields(options))


def with_one_step(options: Any) -> Any:
    """Return sampling options with ``steps`` = 1, if there is such an option, for the fastest possible sample."""
    return dataclasses.replace(options, steps=1) if has_steps(options) else options


def described(options: Any) -> dict[str, Any]:
    """Return the options that are not None, and the number of network evaluations per image if the options state it."""
    evaluations = getattr(options, "num_evaluations", None)
    counted = {} if evaluations is None else {"num_evaluations": evaluations}
    return {key: value for key, value in vars(options).items() if value is not None} | counted


def listed(usual: Any) -> list[tuple[str, str, Any, str]]:
    """Return the name, type as text, default and help of every sampling option.

    Args:
        usual: A model's ``sampling_options``.
    """
    hints = type_hints(type(usual))
    return [
        (field.name, describe_hint(hints[field.name]), getattr(usual, field.name), field.metadata["help"])
        for field in dataclasses.fields(usual)
    ]
