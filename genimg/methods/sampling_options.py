"""Sampling options that a model declares."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.errors import ConfigError
from genimg.methods.capabilities import Generates, TakesConditions, TranslatesRandomly
from genimg.methods.options import OtherModel, SamplingOptions
from genimg.utils.rng import Stream, keys_of
from genimg.utils.silence import silent
from genimg.utils.type_hints import as_written, describe_hint, fits, type_hints
from genimg.utils.words import nearest


@dataclass(frozen=True)
class Lookup:
    """Functions that find the models and classes to which values of sampling options refer.

    Attributes:
        model: Function that loads another model: (name of the option, path of the checkpoint or run directory) -> model.
        label: Function that finds a class of this model: (name of the option, name or number of the class) -> label.
    """

    model: Callable[[str, str], OtherModel]
    label: Callable[[str, object], int]


def chosen_options(
    method: Generates, given: Mapping[str, Any], lookup: Lookup, others: Collection[str] = ()
) -> SamplingOptions:
    """Return a model's sampling options with the values that a user gives, checked against the model.

    Args:
        method: The model.
        given: Values by name, as a user gives them.
        lookup: Functions that find models and labels.
        others: Names of the caller's own options, to suggest for a misspelt one.

    Raises:
        UserError: If the model has no such option, or does not support a value; the message names the option.
    """
    options = sampling_options(method, looked_up(method, given, lookup), others)
    method.check_options(options)
    return options


def looked_up(method: Generates, given: Mapping[str, Any], lookup: Lookup) -> dict[str, Any]:
    """Return the values of sampling options, with references replaced by the models and labels that they refer to.

    Args:
        method: The model.
        given: Values by name, as a user gives them.
        lookup: Functions that find models and labels.

    Raises:
        UserError: If there is no such model or class, or the model reads no condition that a value could refer to.
    """
    found, fields = dict(given), {field.name: field for field in dataclasses.fields(method.sampling_options)}
    for name, value in given.items():
        kind = fields[name].metadata["refers_to"] if name in fields else None
        if kind == "model" and isinstance(value, str):
            found[name] = lookup.model(name, value)
        if kind == "condition" and value is not None:
            if not {"label", "caption"} & set(method.batch_keys):
                raise ConfigError(f"{name}={value} has no effect on a model that reads no condition: remove it", key=name)
            if isinstance(method, TakesConditions) and method.num_classes:
                found[name] = lookup.label(name, value)
    return found


def sampling_options(
    method: Generates | TranslatesRandomly,
    given: Mapping[str, Any],
    others: Collection[str] = (),
    usual: SamplingOptions | None = None,
) -> SamplingOptions:
    """Return a model's sampling options with the given values, and defaults for the others.

    Args:
        method: The model.
        given: Values by name; see ``looked_up`` for those that refer to a model or a class.
        others: Names of the caller's own options, to suggest for a misspelt one.
        usual: The defaults; None for the model's.

    Raises:
        ConfigError: If the model has no such option, or a value has the wrong type or is out of range.
    """
    usual = method.sampling_options if usual is None else usual
    kind = type(usual)
    names, hints = [field.name for field in dataclasses.fields(kind)], type_hints(kind)
    for name, value in given.items():
        if name not in names:
            suggestion = nearest(name, {*names, *others})
            own = f"the sampling options of this model, a {type(method).__name__}, are {', '.join(names)}"
            raise ConfigError(f"unknown key {name}{suggestion}", own if names else own.replace("are ", "are none"), key=name)
        if fits(value, hints[name], lambda each: isinstance(each, OtherModel)):
            continue
        if isinstance(value, str) and hints[name] == OtherModel | None:
            where = f"with genimg-sample, as sampling.{name} of genimg-eval, and in Python"
            raise ConfigError(f"{name}={value} cannot be loaded here: this option works only {where}", key=name)
        raise ConfigError(f"{name}={as_written(value)} must be {_describe(hints[name])}", key=name)
    try:
        return usual.replaced(**given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def without_effect(check: Callable[[Any], None], usual: SamplingOptions) -> set[str]:
    """Return the names of the options that a model refuses with every other value, such as guidance without a condition.

    A few values of each option are tried: alone, together with one of another option, which may be its condition, and together
    with those that were accepted. An option counts as having an effect if no combination is valid for any model.

    Args:
        check: The model's ``check_options``.
        usual: Usual options; if the model refuses them, all options count as having an effect.
    """
    values = {field.name: _values_to_try(field, usual) for field in dataclasses.fields(usual)}
    tried: set[str] = set()
    accepted: dict[str, dict[str, Any]] = {}  # name of an option -> values of options with which it was accepted

    def attempt(given: dict[str, Any]) -> bool:
        try:
            options = usual.replaced(**given)
        except ValueError:
            return False
        tried.update(given)
        try:
            check(options)
        except ValueError:
            return False
        for name in given:
            accepted.setdefault(name, given)
        return True

    def combine(name: str, others: Iterable[dict[str, Any]]) -> bool:
        return any(attempt({**other, name: value}) for other, value in itertools.product(others, values[name]))

    with silent():
        if not attempt({}):
            return set()
        alone = [name for name in values if not combine(name, [{}])]
        for name in alone:
            if name not in accepted:
                combine(name, [{other: value} for other in values if other != name for value in values[other]])
        for name in alone:
            if name not in accepted:
                combine(name, list(accepted.values()))
    return tried - accepted.keys()


def _values_to_try(field: dataclasses.Field[Any], usual: SamplingOptions) -> list[Any]:
    """Return values of an option that differ from its value in ``usual``."""
    about, hint, now = field.metadata, type_hints(type(usual))[field.name], getattr(usual, field.name)
    if about["refers_to"] == "model":
        return []
    of_condition = (0, "a") if about["refers_to"] == "condition" else ()  # a label, or a caption
    values = of_condition or about["choices"] or about["usual"] or (True, False, 1, 0.5)
    return [value for value in values if value != now and fits(value, hint)]


def translation_keys(seed: int, indices: NDArray[np.int64], number: int) -> Tensor:
    """Return random keys, int64 [N], for the ``number``-th translation of each image; ``indices`` identify the images."""
    return torch.from_numpy(keys_of(seed, Stream.TRANSLATION_NOISE, indices, number).view(np.int64))


def has_steps(options: Any) -> bool:
    """Return whether options have a number of steps, ``steps``, as those of diffusion models."""
    return any(field.name == "steps" for field in dataclasses.fields(options))


def with_one_step(options: Any) -> Any:
    """Return sampling options with ``steps`` = 1, if there is such an option, for the fastest possible sample."""
    return dataclasses.replace(options, steps=1) if has_steps(options) else options


def described(options: SamplingOptions) -> dict[str, Any]:
    """Return the options that are not None, and the number of network evaluations per image if it depends on them."""
    counted = {} if options.num_evaluations is None else {"num_evaluations": options.num_evaluations}
    given = {key: value for key, value in vars(options).items() if value is not None}
    return {key: dict(value.record) if isinstance(value, OtherModel) else value for key, value in given.items()} | counted


def listed(usual: Any) -> list[tuple[str, str, Any, str]]:
    """Return the name, type as text, default and help of every sampling option.

    Args:
        usual: A model's ``sampling_options``.
    """
    hints = type_hints(type(usual))
    return [
        (field.name, _describe(hints[field.name]), getattr(usual, field.name), field.metadata["help"])
        for field in dataclasses.fields(usual)
    ]


def _describe(hint: Any) -> str:
    return describe_hint(hint, of_object="a checkpoint or run directory")
