"""Arguments of the command line as Hydra takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genimg.errors import CheckpointError, ConfigError
from genimg.utils.paths import expanded, run_directory_of
from genimg.utils.torchrun import rank_of_torchrun
from genimg.utils.words import quoted

_FLAGS_WITH_VALUES = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p")


def continued_in_its_own_directory(arguments: Sequence[str]) -> list[str]:
    """``resume=PATH`` continues in the run directory that PATH belongs to, unless another ``run_dir`` is given."""
    if any(argument.startswith("run_dir=") for argument in arguments):
        return list(arguments)
    for argument in arguments:
        key, _, value = argument.partition("=")
        value = value.strip("'\"")
        if key == "resume" and value not in ("", "auto", "null"):
            path = expanded(key, value)
            if not path.exists() and rank_of_torchrun() == 0:  # other hosts need not see it
                raise CheckpointError(f"resume={value} does not exist: give a checkpoint or a run directory")
            return [*arguments, f"run_dir={quoted(str(run_directory_of(path)))}"]
    return list(arguments)


def with_runs(arguments: Sequence[str]) -> list[str]:
    """``DIR DIR`` as Hydra takes it: ``runs=['DIR','DIR']``.

    Raises:
        ConfigError: Where ``runs=`` is given, too.
    """
    words: list[str] = []
    rest: list[str] = []
    previous = ""
    for argument in arguments:
        is_override = "=" in argument and not Path(argument).is_dir()
        is_word = not (is_override or argument.startswith("-") or previous in _FLAGS_WITH_VALUES)
        (words if is_word else rest).append(argument)
        previous = argument
    if not words:
        return rest
    if given := next((argument for argument in rest if argument.startswith("runs=")), None):
        raise ConfigError(f"{given} and {words[0]} both name runs: write all of them after genimg-report, or all in runs=[...]")
    return [*rest, f"runs=[{','.join(map(quoted, words))}]"]
