"""The entry points. Nothing heavy is imported before the config is composed, so help and completion answer at once."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import shlex
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genimg.config import help
from genimg.config.messages import explain, explain_flag
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.utils.files import new_directory
from genimg.utils.paths import config_dir, expanded, relative, run_directory_of
from genimg.utils.terminal import protect_standard_streams
from genimg.utils.torchrun import arguments_of_rank, is_of_several, rank_of_torchrun
from genimg.utils.words import quoted

_COMMAND_LINE = "GENIMG_COMMAND_LINE"  # of the sweep, for the jobs that submitit starts elsewhere
_SECONDS_FOR_THE_FIRST_RANK = 2.0
_BUG, _USERS_MISTAKE = 1, 2  # exit codes
_HAS_ENDED = "another process has ended"
_FLAGS_WITH_VALUES = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p")
_ANOTHER_HAS_GONE = re.compile(r"closed by peer|[Cc]onnection (reset|refused)|[Bb]roken pipe|NCCL|gloo|ProcessGroup")


def train() -> None:
    """genimg-train"""
    protect_standard_streams()
    try:
        sys.argv[1:] = arguments_of_rank(_continue_in_its_own_directory(sys.argv[1:]))
    except UserError as error:
        _say("train", f"error: {error}")
        _leave(_USERS_MISTAKE)
    _run("train")


def evaluate() -> None:
    """genimg-eval"""
    _run("eval")


def sample() -> None:
    """genimg-sample"""
    _run("sample")


def translate() -> None:
    """genimg-translate"""
    _run("translate")


def features() -> None:
    """genimg-features"""
    _run("features")


def prepare() -> None:
    """genimg-prepare"""
    _run("prepare")


def augment() -> None:
    """genimg-augment"""
    _run("augment", config="augment_files")  # configs/augment/ is a group of genimg-train


def report() -> None:
    """genimg-report"""
    protect_standard_streams()
    try:
        sys.argv[1:] = _with_runs(sys.argv[1:])
    except UserError as error:
        _say("report", f"error: {error}")
        _leave(_USERS_MISTAKE)
    _run("report")


def export() -> None:
    """genimg-export"""
    _run("export")


def _task(name: str) -> Callable[[DictConfig], Any]:
    """What the command does; imported late, because it imports torch."""
    module, function = {
        "train": ("train", "train"),
        "eval": ("evaluate", "evaluate"),
        "sample": ("sample", "sample"),
        "translate": ("translate", "translate"),
        "features": ("features", "train_features"),
        "prepare": ("prepare", "prepare"),
        "augment": ("augment", "augment"),
        "report": ("report", "report"),
        "export": ("export", "export"),
    }[name]
    return getattr(importlib.import_module(f"genimg.commands.{module}"), function)


@dataclass(frozen=True)
class _Failure:
    """What ended a command, or one job of a sweep in this process.

    Attributes:
        error: The exception.
        allowed: Packages that ``allow=[...]`` names.
        log_file: Where the traceback is kept; None if nowhere.
        job: Number of the job; None for a single run.
    """

    error: Exception
    allowed: tuple[str, ...] = ()
    log_file: Path | None = None
    job: int | None = None


def _run(name: str, config: str | None = None) -> None:
    """Compose the config, run the command on it, and turn what a user can cause into one message.

    Args:
        name: Name of the command, without genimg-.
        config: Name of its primary config, where that is another one.
    """
    protect_standard_streams()
    primary = config or name
    if help.is_requested(sys.argv[1:]):
        print(help.page(primary, sys.argv[1:]))
        return
    if message := explain_flag(primary, sys.argv[1:]):
        _say(name, f"error: {message}")
        _leave(_USERS_MISTAKE)
    OmegaConf.register_new_resolver("genimg.job_name", _job_name, replace=True)
    directories = _NewDirectories()
    OmegaConf.register_new_resolver("genimg.new_run_dir", directories.of_run, replace=True)
    # The config's cache takes a sweep's directory along into the processes of its jobs.
    OmegaConf.register_new_resolver("genimg.new_sweep_dir", directories.of_sweep, replace=True, use_cache=True)
    if name == "train":
        importlib.import_module("genimg.sweeps.plugins").register()
        os.environ[_COMMAND_LINE] = shlex.join(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors pass to us instead of printing them in its own way
    logging.raiseExceptions = False  # a log file on a full disk must not bury the message under tracebacks
    failures: list[_Failure] = []

    def guarded(composed: DictConfig) -> Any:
        """In a single run, keep the error from Hydra, which would print lines of its own about it."""
        directories.task_begins()
        try:
            return _task(name)(composed)
        except Exception as error:
            config = HydraConfig.get()
            is_job = config.mode == RunMode.MULTIRUN
            failures.append(_Failure(error, _allowed(composed), _log_file(), int(config.job.num) if is_job else None))
            if is_job:
                raise

    try:
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=primary)(guarded)()
        if failures:
            raise failures[0].error
    except KeyboardInterrupt:
        print(f"genimg-{name}: interrupted", file=sys.stderr)
        _leave(130)
    except Exception as error:
        failure = next((each for each in failures if each.error is error), _Failure(error))
        _end(name, primary, failure, [each for each in failures if each.job is not None and failure.job is not None])


def _end(name: str, primary: str, failure: _Failure, jobs: Sequence[_Failure]) -> NoReturn:
    """End a command that has failed.

    Args:
        name: Name of the command.
        primary: Name of its primary config.
        failure: What ended it.
        jobs: All jobs of a sweep in this process that have failed; empty without one.
    """
    in_words = {id(each): _in_words(each.error, primary) for each in (failure, *jobs)}
    bugs = [each for each in jobs if in_words[id(each)] is None]
    failure = bugs[0] if bugs else failure
    numbers = ", ".join(f"#{each.job}{' by a bug' if each in bugs else ''}" for each in jobs)
    sweep = f"{len(jobs)} job{'s' * (len(jobs) > 1)} of the sweep failed, {numbers}" if jobs else ""
    message, error = in_words[id(failure)], failure.error
    elsewhere: str = getattr(error, "details", "")  # of an AnotherProcessError, whose module imports torch
    trace = elsewhere or "".join(traceback.format_exception(error))
    if message is None or elsewhere:
        _say(name, f"{_whose_bug(failure, elsewhere)}{f' ({sweep})' if sweep else ''}", trace)
        _leave(_BUG)
    wants_traceback = any(argument in ("traceback=true", "traceback=True") for argument in sys.argv[1:])
    of_first = "the first: " if len(jobs) > 1 else ""
    _say(name, f"error: {f'{sweep}: {of_first}' if sweep else ''}{message}", trace if wants_traceback else "")
    _leave(_BUG if getattr(error, "has_bug", False) else _USERS_MISTAKE)  # of a job in another process


def _in_words(error: Exception, primary: str) -> str | None:
    """Return what to tell the user, or None for a bug."""
    message = explain(error, primary, sys.argv[1:])
    if message is None and is_of_several() and _ANOTHER_HAS_GONE.search(str(error)):
        return f"{_HAS_ENDED} ({str(error).splitlines()[0][:120]})"
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    if message is None and isinstance(error, ValueError) and _module(innermost).startswith("hydra."):
        return str(error).splitlines()[0]  # flags that exclude each other
    return message


def _whose_bug(failure: _Failure, elsewhere: str) -> str:
    """Return a line that says in whose code a bug is, and where its traceback is kept."""
    place = f" and {relative(failure.log_file)}" if failure.log_file is not None and failure.log_file.is_file() else ""
    if not elsewhere and (package := _foreign_package(failure.error, failure.allowed)):
        return f"this is a bug of the package {package}, not of genimg: see the lines above{place}"
    or_theirs = f", or of a package in allow=[{','.join(failure.allowed)}]" if failure.allowed else ""
    return f"this is a bug of genimg{or_theirs}: please report it with the lines above{place}"


def _foreign_package(error: Exception, allowed: Sequence[str]) -> str:
    """Return the user's own package that raised an error; empty for genimg.

    It is the package of the innermost frame that is neither Python's nor an installed library's, which only pass on what they
    are given.
    """
    libraries = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module, file = _module(frame), frame.f_code.co_filename
        if module.partition(".")[0] == "genimg":
            return ""
        if named := next((each for each in allowed if f"{module}.".startswith(f"{each}.")), None):
            return named
        if not file.startswith(("<", *libraries)) and not {"site-packages", "dist-packages"} & set(Path(file).parts):
            return module.partition(".")[0]
    return ""


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _allowed(composed: DictConfig) -> tuple[str, ...]:
    """Return the packages that ``allow=[...]`` names."""
    found = composed.get("allow") or ()
    return (found,) if isinstance(found, str) else tuple(map(str, found))


def _log_file() -> Path | None:
    """Return where a traceback is kept, if anywhere."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    return next((path for handler in handlers if (path := Path(handler.baseFilename)).is_file()), None)


def _say(name: str, line: str, trace: str = "") -> None:
    """Print what ended a command. What went wrong everywhere is said once: torchrun ends the others when the first one ends."""
    if is_of_several() and (rank_of_torchrun() > 0 or _HAS_ENDED in line):
        time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
        line = f"process {rank_of_torchrun()}: {line}"
    if trace:
        print(trace, file=sys.stderr)
    print(f"genimg-{name}: {line}", file=sys.stderr)


def _leave(code: int) -> NoReturn:
    """End; one of several processes without Python's way out, in which torch.distributed would wait for the others."""
    if is_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _continue_in_its_own_directory(arguments: list[str]) -> list[str]:
    """``resume=PATH`` continues in the run directory that PATH belongs to, unless another ``run_dir`` is given."""
    if any(argument.startswith("run_dir=") for argument in arguments):
        return arguments
    for argument in arguments:
        key, _, value = argument.partition("=")
        value = value.strip("'\"")
        if key == "resume" and value not in ("", "auto", "null"):
            path = expanded(key, value)
            if not path.exists() and rank_of_torchrun() == 0:  # other hosts need not see it
                raise CheckpointError(f"resume={value} does not exist: give a checkpoint or a run directory")
            return [*arguments, f"run_dir={quoted(str(run_directory_of(path)))}"]
    return arguments


def _with_runs(arguments: Sequence[str]) -> list[str]:
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


class _NewDirectories:
    """Makes the directory of a run or a sweep that was given none, once, when Hydra is about to write into it.

    Configs are resolved for other reasons, too: to be shown, in a dry run, in other ranks, and in the jobs of a sweep, whose
    directories lie in the sweep's. Then nothing is made.
    """

    def __init__(self) -> None:
        self._made: dict[str, str] = {}
        self._shows = any(argument in ("-c", "--cfg") or argument.startswith("--cfg=") for argument in sys.argv[1:])
        self._has_begun = False

    def task_begins(self) -> None:
        """Note that Hydra has made what it needs."""
        self._has_begun = True

    def of_run(self, path: str) -> str:
        """Return the directory of the run that would be called ``path``."""
        wanted = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN
        return self._new(path, wanted and not self._has_begun)

    def of_sweep(self, path: str) -> str:
        """Return the directory of the sweep that would be called ``path``."""
        return self._new(path, not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN))

    def _new(self, path: str, is_wanted: bool) -> str:
        if path not in self._made and (self._shows or not is_wanted):
            return path  # and not remembered: it may be wanted later
        if path not in self._made:
            self._made[path] = new_directory(path)
        return self._made[path]


def _job_name(number: int, overrides: list[str]) -> str:
    """A directory name for a job of a sweep that needs no quotes on a command line: 003_model-vae_optimizer.lr-1e-4.

    What all jobs have in common is left out.
    """
    params = (HydraConfig.get().sweeper.get("params") if HydraConfig.initialized() else None) or {}
    common = _constants([*shlex.split(os.environ.get(_COMMAND_LINE, "")), *(f"{key}={value}" for key, value in params.items())])
    swept = [override for override in overrides if override.partition("=")[0].lstrip("+~") not in common]
    short = [re.sub(r"-?\d+\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", override) for override in swept]
    words = [re.sub(r"[^A-Za-z0-9.+-]+", "-", override).strip("-+") for override in short]
    return f"{int(number):03d}_{'_'.join(words)}"[:120].rstrip("_.-") if words else f"{int(number):03d}"


def _constants(arguments: Sequence[str]) -> set[str]:
    """Keys that a command line gives one value."""
    parser = OverridesParser.create()
    found = set()
    for argument in arguments:
        if "=" not in argument or argument.startswith("-"):
            continue
        with contextlib.suppress(OverrideParseException):  # Hydra says so
            override = parser.parse_override(argument)
            if not override.is_sweep_override():
                found.add(override.key_or_group)
    return found
