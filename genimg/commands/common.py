"""What several commands do: check their options, print a table, write JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from genimg.config.instantiate import Config
from genimg.errors import ConfigError
from genimg.utils.words import nearest

log = logging.getLogger(__name__)


def refuse_unknown_keys(options: Config, known: Iterable[str]) -> None:
    """Refuse keys that the command does not read, such as a misspelt ``+sed=1``.

    Args:
        options: Options of the command.
        known: Keys that it reads.

    Raises:
        ConfigError: For the first unknown key, with the nearest known one.
    """
    for key in options:
        if key not in known:
            problem = f"unknown key {key}{nearest(key, known)}"
            raise ConfigError(problem, "nothing reads it; --cfg job shows all keys", key=key)
