"""Checks of numeric parameters. Each error message gives the parameter, its value and the fix."""

from __future__ import annotations

from genimg.errors import ConfigError


def require_least(least: int, **numbers: int) -> None:
    """Check that numbers are large enough.

    Args:
        least: The smallest allowed number.
        numbers: Values by parameter name.

    Raises:
        ConfigError: For the first number that is smaller.
    """
    for name, number in numbers.items():
        if number < least:
            raise ConfigError(f"{name}={number} must be {least} or more")
