"""Compose a config in Python."""

from __future__ import annotations

from collections.abc import Sequence

from genimg.config.compatibility import check_top_level
from genimg.config.compose import Config, require_all_values
from genimg.config.compose import compose as compose_for
from genimg.errors import ConfigError

_COMMANDS = (
    "train", "eval", "sample", "latents", "translate", "play", "features", "prepare", "augment", "report", "export", "verify",
)  # fmt: skip


def compose(overrides: Sequence[str] = (), *, command: str = "train") -> Config:
    """Compose the config that a command with these arguments would use.

    Args:
        overrides: Arguments such as ``model=dcgan`` and ``trainer.batch_size=32``.
        command: ``train``, ``eval``, ``sample``, ``latents``, ``translate``, ``play``, ``features``, ``prepare``,
            ``augment``, ``report``, ``export`` or ``verify``.

    Returns:
        The resolved config, read-only; ``raw`` holds it with its interpolations.

    Raises:
        ConfigError: For an unknown key or option, a value of a wrong type, or a missing required value.
    """
    if command not in _COMMANDS:
        raise ConfigError(f"command={command} is unknown: choose one of {', '.join(_COMMANDS)}")
    primary = "augment_files" if command == "augment" else command
    composition = compose_for(overrides, primary)
    require_all_values(composition.config)
    config = Config.of(composition.config)
    check_top_level(config, primary)
    return config
