"""The option ``surface`` of genimg-eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genimg.errors import ConfigError
from genimg.utils.type_hints import as_written


def check_axes(axes: Mapping[str, Any]) -> None:
    """Check the form of the option ``surface``, without a model.

    Raises:
        ConfigError: If there is no axis, or an axis is not a list of one or more different values.
    """
    if not axes:
        raise ConfigError("surface={} has no axes: give lists of values, such as surface={steps:[5,10,20]}", key="surface")
    for name, values in axes.items():
        key, written = f"surface.{name}", as_written(values)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{key}={written} must be a list of one or more values, such as [5,10]", key=key)
        if any(isinstance(value, list | dict) for value in values):
            raise ConfigError(f"{key}={written} must be a list of single values, such as [5,10]", key=key)
        if len({as_written(value) for value in values}) < len(values):
            raise ConfigError(f"{key}={written} has the same value twice: remove one", key=key)
