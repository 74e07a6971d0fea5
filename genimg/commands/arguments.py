"""Rewrite command-line arguments for Hydra."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from genimg.errors import CheckpointError, ConfigError
from genimg.utils.paths import RUN_FILES, config_dir, directory_to_continue_in, expanded
from genimg.utils.regular_files import require_plain
from genimg.utils.torchrun import is_restarted, may_restart, rank_of_torchrun
from genimg.utils.words import quoted, unquoted

_FLAGS_WITH_VALUES = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p",
                      "--experimental-rerun")  # fmt: skip
_FLAG_WITH_OPTIONAL_VALUE, _ITS_VALUES = ("--info", "-i"), (
    "all", "config", "defaults", "defaults-tree", "plugins", "searchpath"
)  # fmt: skip
_YES = ("true", "yes", "y", "on", "1")


def value_of(key: str, arguments: Sequence[str]) -> str | None:
    """Return the last value of a key in the arguments, without quotes, or None if the key is not given."""
    found = [value for name, equals, value in (each.lstrip("+").partition("=") for each in arguments) if equals and name == key]
    return unquoted(found[-1]) if found else None


def continued_in_its_own_directory(arguments: Sequence[str]) -> list[str]:
    """Add the run directory that contains PATH to arguments with ``resume=PATH``, unless ``run_dir`` is given."""
    resume = value_of("resume", arguments)
    if resume in (None, "", "auto", "null") or value_of("run_dir", arguments) is not None:
        return list(arguments)
    path = expanded("resume", resume)
    if not path.exists() and rank_of_torchrun() == 0:  # other hosts may not have the file
        raise CheckpointError(f"resume={resume} does not exist: give a checkpoint or a run directory")
    return [*arguments, f"run_dir={quoted(str(directory_to_continue_in(path)))}"]


def arguments_of_rank(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a training run for this rank.

    Only the first rank has a run directory and a log file; a dry run has neither. A restarted run continues from its
    newest checkpoint, even if it was first started from another one.

    Raises:
        ConfigError: If a restarted run could not find its checkpoints.
        UnsafeFileError: If the run directory holds a link, named pipe or device where training writes.
    """
    given = value_of("run_dir", arguments)
    if may_restart() and (given is None or "${" in given):
        raise ConfigError(
            "torchrun --max-restarts needs a fixed run_dir=DIR (or resume=RUN), where a restarted run finds its checkpoints"
        )
    if given and "${" not in given and rank_of_torchrun() == 0:
        require_plain(expanded("run_dir", given), RUN_FILES)  # before Hydra writes into it
    if is_restarted() and given is not None:
        resume = value_of("resume", arguments)
        has_checkpoints = any(expanded("run_dir", given).glob("checkpoints/step-*.pt"))
        is_path = resume not in (None, "auto", "null", "")
        if has_checkpoints or not is_path:
            arguments = [argument for argument in arguments if argument.lstrip("+").partition("=")[0] != "resume"]
        if has_checkpoints and is_path:
            arguments = [*arguments, f"resume={quoted(given)}"]
    if rank_of_torchrun() > 0 or str(value_of("dry_run", arguments)).lower() in _YES:
        # Hydra then creates no directory and no file.
        arguments = [
            *arguments,
            "hydra.run.dir=.",
            "hydra.output_subdir=null",
            f"hydra.job_logging.handlers.file.filename={os.devnull}",
        ]
    return list(arguments)


def in_hydras_order(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with all flags after the overrides, because Hydra accepts no overrides after a flag with a value.

    Raises:
        ConfigError: If ``--config-dir`` does not exist or has a file that Hydra would misread, if ``run_dir=`` is empty, or
            if a group is chosen twice.
    """
    words, flags = parted(arguments)
    for flag, value in zip_longest(flags, flags[1:], fillvalue=""):
        name, equals, own = flag.partition("=")
        given = own if equals else value
        if name in ("--config-dir", "-cd") and given and not given.startswith("-") and not Path(given).is_dir():
            raise ConfigError(f"--config-dir {given} does not exist: give a directory of configs", key="")
        if name in ("--config-dir", "-cd") and given and (marked := _with_byte_order_mark(Path(given))):
            raise ConfigError(
                f"{marked} begins with a byte order mark, which hides its first line",
                "save the file as UTF-8 without a byte order mark",
            )
    keys = {word.partition("=")[0] for word in words}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if word.startswith("+") and key in keys and Path(config_dir(), key).is_dir():  # Hydra would silently ignore it
            raise ConfigError(f"{word} has no effect together with another {key}=: give only one", key=key)
    if value_of("run_dir", words) == "":
        raise ConfigError("run_dir= is empty: name a directory, or omit it", key="run_dir")
    return [*words, *flags]


def _with_byte_order_mark(folder: Path) -> Path | None:
    """Return the first config in a directory or its groups that begins with a byte order mark, which some editors write."""
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*/*.yaml"))):
        if path.is_file():  # opening a named pipe would block
            with contextlib.suppress(OSError), path.open("rb") as file:
                if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                    return path
    return None


def with_runs(arguments: Sequence[str]) -> list[str]:
    """Replace arguments such as ``DIR DIR`` by ``runs=['DIR','DIR']``.

    Raises:
        ConfigError: If ``runs=`` is also given.
    """
    given_words, flags = parted(arguments)
    words = [word for word in given_words if "=" not in word or Path(word).is_dir()]
    rest = [*(word for word in given_words if word not in words), *flags]
    if not words:
        return rest
    if given := next((argument for argument in rest if argument.lstrip("+").startswith("runs=")), None):
        raise ConfigError(f"{given} and {words[0]} both name runs: write all of them after genimg-report, or all in runs=[...]")
    return [*rest, f"runs=[{','.join(map(quoted, words))}]"]


def with_run(arguments: Sequence[str]) -> list[str]:
    """Replace an argument such as ``DIR`` by ``run='DIR'``.

    Raises:
        ConfigError: If there are several, or ``run=`` is also given.
    """
    given_words, flags = parted(arguments)
    words = [word for word in given_words if "=" not in word or Path(word).is_dir()]
    rest = [*(word for word in given_words if word not in words), *flags]
    if not words:
        return rest
    others = [*words[1:], *(each for each in rest if each.lstrip("+").startswith("run="))]
    if others:
        raise ConfigError(f"{words[0]} and {others[0]} both name a run: give one of them", key="run")
    return [*rest, f"run={quoted(words[0])}"]


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into those that are not flags, and the flags with their values."""
    words: list[str] = []
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
            continue
        flags.append(argument)
        if rest and (argument in _FLAGS_WITH_VALUES or (argument in _FLAG_WITH_OPTIONAL_VALUE and rest[0] in _ITS_VALUES)):
            flags.append(rest.pop(0))
    return words, flags
