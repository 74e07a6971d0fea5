"""What a user can cause and mend. Everything else that is raised is a bug of genimg.

A message begins with the setting it is about, as ``name=value``. Library code names its own parameters: a network raises
``ValueError("kernel_size=7 is not supported: use 4 or 5")``, or one of the errors below where it is not called by
configuration alone. Only the config layer knows where an object is mounted, and says ``model.discriminator.kernel_size=7``.
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
        problem: What is wrong. It begins with ``key=value`` where it is about a setting.
        fix: What to do about it; follows the problem and a colon. Empty where the problem says it.
        key: The setting that it is about: a parameter, or a dotted key of the config. By default the one that the problem
            begins with, as in ``width=0 must be positive``; empty if there is none.
    """

    def __init__(self, problem: str, fix: str = "", *, key: str | None = None) -> None:
        super().__init__(f"{problem}: {fix}" if fix else problem)
        self.problem = problem
        self.fix = fix
        found = _SUBJECT.match(problem)
        has_value = found is not None and found[2] is not None
        self.key = key if key is not None else found[1] if found and has_value else ""
        self.value = found[2] if found and has_value and found[1] == self.key else None
        """The setting's value as the message shows it; None where it shows none."""

    def mounted(self, path: str, parameters: Collection[str], origins: Mapping[str, str] = MappingProxyType({})) -> Self:
        """Return the same error in terms of the config: parameters of the object at ``path`` are named by their dotted keys.

        Args:
            path: Where the object stands in the config.
            parameters: Names of its parameters.
            origins: Keys that have their values by interpolation, and the keys that these come from.
        """
        subject = self.key or subject_of(self.problem)
        key = join(path, subject) if re.split(r"[.\[]", subject)[0] in parameters else self.key or path
        key = origins.get(key, key)
        problem, fix = (name_in_config(text, path, parameters, origins) for text in (self.problem, self.fix))
        return type(self)(problem, fix, key=key)


class ConfigError(UserError, ValueError):
    """A setting that cannot work: unknown, of a wrong type or value, or at odds with another one or with the data."""


class DataError(UserError, ValueError):
    """Images, labels, captions or statistics that are missing, broken or not what they should be."""


class NeedsDownloadError(DataError):
    """Published files that are not on this machine, and that the caller did not allow to download."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing or broken, comes from another version, or does not fit what is asked of it."""


def is_bug(error: BaseException) -> bool:
    """Return whether an error of a command at work is one that no user can cause.

    That is anything but the errors of this module and of torch.compile, a full memory, a batch too small for batch norm, a
    killed process that read images, and an OSError that names a file. Errors of Hydra and OmegaConf are the user's while a
    config is composed, which is before a command is at work.
    """
    is_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    is_named = isinstance(error, OSError) and error.filename is not None
    is_known = is_memory_full(error) or is_batch_too_small(error) or is_worker_killed(error)
    return not (isinstance(error, UserError) or is_compiler or is_named or is_known)


def is_memory_full(error: BaseException) -> bool:
    """Return whether there was no memory left, on the host or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)  # the CPU's, MPS's and cuBLAS's


def is_batch_too_small(error: BaseException) -> bool:
    """Return whether a batch norm was given a single value for each channel, of which it can take no variance."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel when training")


def is_worker_killed(error: BaseException) -> bool:
    """Return whether the system, or somebody, has killed a process of a PyTorch DataLoader."""
    return isinstance(error, RuntimeError) and re.match(_KILLED, str(error)) is not None


def innermost_module(error: BaseException) -> str:
    """Return the name of the module in whose code an error was raised; of one raised by compiled code, that of its caller."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def subject_of(message: str) -> str:
    """Return the name that a message begins with, such as ``width`` of ``width=0 must be positive``; empty if none."""
    found = _SUBJECT.match(message)
    return found[1] if found else ""


def join(path: str, name: str) -> str:
    """Return the dotted key of a parameter of what stands at ``path``."""
    return f"{path}.{name}" if path and name else path or name


def name_in_config(text: str, path: str, parameters: Collection[str], origins: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a message in which every ``parameter=``, and a parameter that it begins with, carries its dotted key.

    Args:
        text: A message in terms of parameters.
        path: Where the object stands in the config.
        parameters: Names of its parameters.
        origins: Keys that have their values by interpolation, and the keys that these come from.
    """
    if not parameters or not path:
        return text

    def key(found: re.Match[str]) -> str:
        return origins.get(join(path, found[0]), join(path, found[0]))

    names = "|".join(sorted(map(re.escape, parameters), key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])({names})(?==(?!=))|^({names})\b", key, text)
