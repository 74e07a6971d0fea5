"""OmegaConf resolvers that name the directories of runs, sweeps and jobs."""

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
"""Environment variable with the command line of a sweep, for jobs that submitit starts on other hosts."""


def register() -> NewDirectories:
    """Register the resolvers ``genimg.job_name``, ``genimg.new_run_dir`` and ``genimg.new_sweep_dir``."""
    directories = NewDirectories()
    OmegaConf.register_new_resolver("genimg.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("genimg.new_run_dir", directories.of_run, replace=True)
    # The config's cache passes a sweep's directory on to the processes of its jobs.
    OmegaConf.register_new_resolver("genimg.new_sweep_dir", directories.of_sweep, replace=True, use_cache=True)
    return directories


class NewDirectories:
    """Creates the default directory of a run or sweep, once, just before Hydra writes into it.

    Nothing is created when a config is resolved for another purpose: to print it, in a dry run, in other ranks, or in the jobs
    of a sweep, whose directories are inside that of the sweep.
    """

    def __init__(self) -> None:
        self._made: dict[str, str] = {}
        self._shows = any(argument in ("-c", "--cfg") or argument.startswith("--cfg=") for argument in sys.argv[1:])
        self._has_begun = False

    def task_begins(self) -> None:
        """Record that Hydra has created its directory, so no other one is created."""
        self._has_begun = True

    def of_run(self, path: str) -> str:
        """Return the run directory for the wanted name ``path``, creating it if needed."""
        wanted = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN
        return self._new(path, wanted and not self._has_begun)

    def of_sweep(self, path: str) -> str:
        """Return the sweep directory for the wanted name ``path``, creating it if needed."""
        return self._new(path, not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN))

    def _new(self, path: str, is_wanted: bool) -> str:
        if path not in self._made and (self._shows or not is_wanted):
            return path  # not recorded, because it may have to be created later
        if path not in self._made:
            self._made[path] = new_directory(path)
        return self._made[path]


def job_name(number: int, overrides: list[str]) -> str:
    """Return a directory name that needs no shell quotes, for a job of a sweep: 003_model-vae_optimizer.lr-1e-4.

    Overrides that all jobs share are omitted.
    """
    params = (HydraConfig.get().sweeper.get("params") if HydraConfig.initialized() else None) or {}
    common = _constants([*shlex.split(os.environ.get(COMMAND_LINE, "")), *(f"{key}={value}" for key, value in params.items())])
    if "budget=null" in overrides:  # the launcher has replaced a budget by a duration
        common |= {"budget", "trainer.duration"}
    swept = [override for override in overrides if override.partition("=")[0].lstrip("+~") not in common]
    short = [re.sub(r"-?\d+\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", override) for override in swept]
    words = [re.sub(r"[^A-Za-z0-9.+-]+", "-", override).strip("-+") for override in short]
    return f"{int(number):03d}_{'_'.join(words)}"[:120].rstrip("_.-") if words else f"{int(number):03d}"


def _constants(arguments: Sequence[str]) -> set[str]:
    """Return the keys that a command line sets to a single value."""
    parser = OverridesParser.create()
    found = set()
    for argument in arguments:
        if "=" not in argument or argument.startswith("-"):
            continue
        with contextlib.suppress(OverrideParseException):  # reported by Hydra
            if not parser.parse_override(argument).is_sweep_override():
                found.add(argument.partition("=")[0].lstrip("+~"))  # may contain a package, as GROUP@PACKAGE
    return found
