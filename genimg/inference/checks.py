"""Checks of numbers that the commands and the Python API share; each names the option, its value and the fix."""

from __future__ import annotations

from genimg.errors import ConfigError


def require_least(least: int, **numbers: int) -> None:
    """Refuse numbers that are too small.

    Args:
        least: The smallest allowed number.
        numbers: Values by the names of their options.

    Raises:
        ConfigError: Naming the first that is smaller.
    """
    for name, number in numbers.items():
        if number < least:
            raise ConfigError(f"{name}={number} must be {least} or more")


def check_truncation(truncation: object) -> None:
    """Refuse a truncation that means nothing to any model.

    Args:
        truncation: The value of the option; None for no truncation.

    Raises:
        ConfigError: If it is neither None nor a number, 0 or more.
    """
    if truncation is not None and not (isinstance(truncation, int | float) and truncation >= 0):
        raise ConfigError(f"truncation={truncation} must be a number, 0 or more, or null for none")
