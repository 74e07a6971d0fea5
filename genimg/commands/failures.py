"""End a failed command: one clear message for what a user can cause, a traceback for a bug, and the exit code."""

from __future__ import annotations

import logging
import os
import re
import sys
import sysconfig
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from omegaconf import DictConfig

from genimg.commands.arguments import parted, value_of
from genimg.config.messages import explain
from genimg.errors import innermost_module, is_bug
from genimg.utils.paths import relative
from genimg.utils.terminal import visible
from genimg.utils.torchrun import is_of_several, rank_of_torchrun

_SECONDS_FOR_THE_FIRST_RANK = 2.0
_BUG, _USERS_MISTAKE = 1, 2  # exit codes
_HAS_ENDED = "another process has ended"
_ANOTHER_HAS_GONE = re.compile(
    r"closed by peer|[Cc]onnection (reset|refused)|[Bb]roken pipe|remote process exit|communicator was aborted"
)


@dataclass(frozen=True)
class Failure:
    """The failure of a command, or of one job of a sweep in this process.

    Attributes:
        error: The exception.
        allowed: Packages in ``allow=[...]``.
        log_file: File that holds the traceback; None if there is none.
        job: Number of the job; None for a single run.
        is_at_work: Whether the config had been composed.
        wants_traceback: Whether ``traceback=true`` is set.
    """

    error: Exception
    allowed: tuple[str, ...] = ()
    log_file: Path | None = None
    job: int | None = None
    is_at_work: bool = False
    wants_traceback: bool = False

    @classmethod
    def of_task(cls, error: Exception, composed: DictConfig, job: int | None) -> Failure:
        """Return the failure of a task function that Hydra called.

        Args:
            error: The exception.
            composed: The task's config.
            job: Number of the job; None for a single run.
        """
        allowed = composed.get("allow") or ()
        packages = (allowed,) if isinstance(allowed, str) else tuple(map(str, allowed))
        return cls(error, packages, _log_file(), job, is_at_work=True, wants_traceback=composed.get("traceback") is True)


def end(name: str, primary: str, failure: Failure, jobs: Sequence[Failure]) -> NoReturn:
    """End a command that has failed.

    Args:
        name: Name of the command.
        primary: Name of its primary config.
        failure: The failure that ended it.
        jobs: All failed jobs of a sweep in this process; empty without a sweep.
    """
    messages = {id(each): _user_message(each, primary) for each in (failure, *jobs)}
    bugs = [each for each in jobs if messages[id(each)] is None]
    failure = bugs[0] if bugs else failure
    numbers = ", ".join(f"#{each.job}{' because of a bug' if each in bugs else ''}" for each in jobs)
    sweep = f"{len(jobs)} job{'s' * (len(jobs) > 1)} of the sweep failed, {numbers}" if jobs else ""
    message, error = messages[id(failure)], failure.error
    elsewhere: str = getattr(error, "details", "")  # only AnotherProcessError has it; its module would import torch
    trace = elsewhere or "".join(traceback.format_exception(error))
    if message is None or elsewhere:
        say(name, f"{_whose_bug(failure, elsewhere)}{f' ({sweep})' if sweep else ''}", trace)
        leave(_BUG)
    wants_traceback = failure.wants_traceback or str(value_of("traceback", sys.argv[1:])).lower() == "true"
    of_first = "the first: " if len(jobs) > 1 else ""
    say(name, f"error: {f'{sweep}: {of_first}' if sweep else ''}{message}", trace if wants_traceback else "")
    has_bug = getattr(error, "has_bug", False)  # set by the error of a sweep whose jobs ran in other processes
    leave(_BUG if has_bug else _USERS_MISTAKE)


def _user_message(failure: Failure, primary: str) -> str | None:
    """Return the message for the user, or None for a bug."""
    error = failure.error
    if failure.is_at_work and is_bug(error):
        is_alone = is_of_several() and isinstance(error, RuntimeError) and _ANOTHER_HAS_GONE.search(str(error))
        return f"{_HAS_ENDED} ({str(error).splitlines()[0][:120]})" if is_alone else None
    message = explain(error, primary, parted(sys.argv[1:])[0])
    if message is None and isinstance(error, ValueError) and innermost_module(error).startswith("hydra."):
        return str(error).splitlines()[0]  # two flags that cannot be combined
    return message


def _whose_bug(failure: Failure, elsewhere: str) -> str:
    """Return a line that names the package with the bug and the file with its traceback."""
    place = f" and {relative(failure.log_file)}" if failure.log_file is not None and failure.log_file.is_file() else ""
    if not elsewhere and (package := _foreign_package(failure.error, failure.allowed)):
        return f"this is a bug in the package {package}, not in genimg: see the lines above{place}"
    or_theirs = f", or in a package in allow=[{','.join(failure.allowed)}]" if failure.allowed else ""
    return f"this is a bug in genimg{or_theirs}: please report it with the lines above{place}"


def _foreign_package(error: Exception, allowed: Sequence[str]) -> str:
    """Return the user's package that raised an error, or an empty string for genimg.

    It is the package of the innermost frame outside the standard library and installed packages, because those only pass
    errors on.
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


def _log_file() -> Path | None:
    """Return the file that holds the traceback, if any."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    return next((path for handler in handlers if (path := Path(handler.baseFilename)).is_file()), None)


def say(name: str, line: str, trace: str = "") -> None:
    """Print the message about a failure.

    All ranks but the first wait before they print. If all ranks fail, torchrun ends the waiting ones when the first exits, so
    the message appears only once.
    """
    if is_of_several() and (rank_of_torchrun() > 0 or _HAS_ENDED in line):
        time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
        line = f"process {rank_of_torchrun()}: {line}"
    if trace:
        print(visible(trace), file=sys.stderr)
    print(f"genimg-{name}: {visible(line)}", file=sys.stderr)


def leave(code: int) -> NoReturn:
    """Exit. With several processes, skip Python's cleanup, because torch.distributed would wait there for the others."""
    if is_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
