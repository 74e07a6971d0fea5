"""Checks of numbers; each names the parameter, its value and the fix."""

from __future__ import annotations

from genimg.errors import ConfigError


def require_least(least: int, **numbers: int) -> None:
    """Refuse numbers that are too small.

    Args:
        least: The smallest allowed number.
        numbers: Values by the names of their parameters.

    Raises:
        ConfigError: Naming the first that is smaller.
    """
    for name, number in numbers.items():
        if number < least:
            raise ConfigError(f"{name}={number} must be {least} or more")
