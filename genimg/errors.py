"""Errors that a user can cause and fix. Any other exception is a bug in genimg.

A message begins with the setting that it is about, as ``name=value``. Library code names its own parameters: a network raises
``ValueError("kernel_size=7 is not supported: use 4 or 5")``, or one of the errors below if it is also called without a config.
Only the config layer has the dotted key of an object, so it changes the name to ``model.discriminator.kernel_size=7``.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Self

_SUBJECT = re.compile(r"[+~]*([A-Za-z_][\w.]*(?:\[\d+\][\w.]*)*)(?==|\b)(?:=(\[[^\]]*\]|\S*?)(?=:?(?:\s|$)))?")


_KILLED = r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
_FULL = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """An error that is shown as one line, without a traceback; the command ends with exit code 2.

    Args:
        problem: Description of the problem. It begins with ``key=value`` if it is about a setting.
        fix: Suggested fix, shown after the problem and a colon. Empty if the problem already says it.
        key: Name of the setting at fault: a parameter, or a dotted key of the config. The default is the name with which the
            problem begins, as in ``width=0 must be positive``, or an empty string if there is none.
    """

    def __init__(self, problem: str, fix: str = "", *, key: str | None = None) -> None:
        super().__init__(f"{problem}: {fix}" if fix else problem)
        self.problem = problem
        self.fix = fix
        found = _SUBJECT.match(problem)
        has_value = found is not None and found[2] is not None
        self.key = key if key is not None else found[1] if found and has_value else ""
        self.value = found[2] if found and has_value and found[1] == self.key else None
        """The setting's value as the message shows it; None if the message shows no value."""

    def mounted(self, path: str, parameters: Collection[str], origins: Mapping[str, str] = MappingProxyType({})) -> Self:
        """Return the same error with the parameters of the object at ``path`` named by their dotted config keys.

        Args:
            path: Dotted key of the object in the config.
            parameters: Names of its parameters.
            origins: Mapping from interpolated keys to the keys that their values come from.
        """
        subject = self.key or subject_of(self.problem)
        key = join(path, subject) if re.split(r"[.\[]", subject)[0] in parameters else self.key or path
        key = origins.get(key, key)
        problem, fix = (name_in_config(text, path, parameters, origins) for text in (self.problem, self.fix))
        return type(self)(problem, fix, key=key)


class ConfigError(UserError, ValueError):
    """A setting that is unknown, has a wrong type or value, or conflicts with another setting or the data."""


class DataError(UserError, ValueError):
    """Images, labels, captions or statistics that are missing, broken or invalid."""


class NeedsDownloadError(DataError):
    """Published files that are not on this machine and that the caller did not allow to be downloaded."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing or broken, comes from another version, or does not support the requested use."""


def is_bug(error: BaseException) -> bool:
    """Return whether an error raised by a running command is a bug, not an error that a user can cause.

    User errors are the classes of this module, errors of torch.compile, running out of memory, a batch that is too small for
    batch norm, a killed DataLoader worker, and an OSError that names a file. Errors of Hydra and OmegaConf are user errors only
    while a config is composed, before a command runs.
    """
    is_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    is_named = isinstance(error, OSError) and error.filename is not None
    is_known = is_memory_full(error) or is_batch_too_small(error) or is_worker_killed(error)
    return not (isinstance(error, UserError) or is_compiler or is_named or is_known)


def is_memory_full(error: BaseException) -> bool:
    """Return whether the host or a GPU ran out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)  # CPU, MPS and cuBLAS


def is_batch_too_small(error: BaseException) -> bool:
    """Return whether a batch norm received a single value per channel, which has no variance."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel when training")


def is_worker_killed(error: BaseException) -> bool:
    """Return whether a worker process of a PyTorch DataLoader was killed."""
    return isinstance(error, RuntimeError) and re.match(_KILLED, str(error)) is not None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def innermost_module(error: BaseException) -> str:
    """Return the name of the module whose code raised an error; for compiled code, the name of its caller."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def subject_of(message: str) -> str:
    """Return the name that a message begins with, such as ``width`` in ``width=0 must be positive``; empty if none."""
    found = _SUBJECT.match(message)
    return found[1] if found else ""


def join(path: str, name: str) -> str:
    """Return the dotted key of a parameter of the object at ``path``."""
    return f"{path}.{name}" if path and name else path or name


def name_in_config(text: str, path: str, parameters: Collection[str], origins: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a message in which dotted keys replace every ``parameter=``, and a parameter at its beginning.

    Args:
        text: Message that names parameters.
        path: Dotted key of the object in the config.
        parameters: Names of its parameters.
        origins: Mapping from interpolated keys to the keys that their values come from.
    """
    if not parameters or not path:
        return text

    def key(found: re.Match[str]) -> str:
        return origins.get(join(path, found[0]), join(path, found[0]))

    names = "|".join(sorted(map(re.escape, parameters), key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])({names})(?==(?!=))|^({names})\b", key, text)
