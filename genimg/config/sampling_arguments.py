"""Sampling options of a model on the command line, where Hydra does not know their names.

``truncation=0.7`` of genimg-sample and genimg-play stands for ``sampling.truncation=0.7``, and ``steps=10`` of
genimg-translate for ``sampling.steps=10``. The other commands have ``sampling`` or ``evaluation.sampling``. All options are
checked once the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from genimg.config.schema import COMMANDS, options_of
from genimg.config.schema.commands import CHECKPOINT_GROUPS
from genimg.errors import ConfigError

WITH_MODEL_OPTIONS = ("sample", "translate", "play")
"""Commands whose unknown options are sampling options of the model."""


def with_sampling_options(arguments: Sequence[str], command: str = "sample") -> list[str]:
    """Prefix with ``sampling.`` every option that a command in ``WITH_MODEL_OPTIONS`` does not have itself."""
    known = {option.name for option in options_of(COMMANDS[command])} | {*CHECKPOINT_GROUPS, "hydra"}
    keys = [re.match(r"([A-Za-z_]\w*)=", argument) for argument in arguments]
    return [
        f"++sampling.{argument}" if key and key[1] not in known else argument
        for key, argument in zip(keys, arguments, strict=True)
    ]


def as_typed(error: ConfigError, schema: type) -> ConfigError:
    """Return an error of a command's option with the name that the user types: ``guidance`` for ``sampling.guidance``.

    Args:
        error: The error.
        schema: Schema of the command.
    """
    if not error.key.startswith("sampling.") or schema not in [COMMANDS[name] for name in WITH_MODEL_OPTIONS]:
        return error
    return ConfigError(error.problem.replace("sampling.", "", 1), error.fix, key=error.key.removeprefix("sampling."))


def with_open_sampling(arguments: Sequence[str]) -> list[str]:
    """Let Hydra add keys to ``sampling``, ``evaluation.sampling`` and ``surface``, whose names it does not know."""
    known = re.compile(r"((evaluation\.)?sampling|surface)(\.\w+)?=")
    return [f"++{argument}" if known.match(argument) else argument for argument in arguments]
