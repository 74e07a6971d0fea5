"""Resolvers of the configs: names of the directories of runs, sweeps and jobs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf

from genimg.utils.files import new_directory

COMMAND_LINE = "GENIMG_COMMAND_LINE"
"""Environment variable: the command line of a sweep, for the jobs that submitit starts elsewhere."""


def register() -> NewDirectories:
    """Let configs call ``genimg.job_name``, ``genimg.new_run_dir`` and ``genimg.new_sweep_dir``."""
    directories = NewDirectories()
    OmegaConf.register_new_resolver("genimg.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("genimg.new_run_dir", directories.of_run, replace=True)
    # The config's cache takes a sweep's directory along into the processes of its jobs.
    OmegaConf.register_new_resolver("genimg.new_sweep_dir", directories.of_sweep, replace=True, use_cache=True)
    return directories


class NewDirectories:
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


def job_name(number: int, overrides: list[str]) -> str:
    """A directory name for a job of a sweep that needs no quotes on a command line: 003_model-vae_optimizer.lr-1e-4.

    What all jobs have in common is left out.
    """
    params = (HydraConfig.get().sweeper.get("params") if HydraConfig.initialized() else None) or {}
    common = _constants([*shlex.split(os.environ.get(COMMAND_LINE, "")), *(f"{key}={value}" for key, value in params.items())])
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
