"""genimg-train: start or continue the run that a config describes."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from genimg.api.train import alone_in_run, dry_run, prepare, remove_if_nothing_began
from genimg.config.compose import Composition, overrides_in, resolved
from genimg.errors import ConfigError, is_bug
from genimg.training.thread_choice import same_threads_afterwards
from genimg.utils import run_log
from genimg.utils.distributed import (
    AnotherProcessError,
    broadcast_object,
    processes_of_torchrun,
    rank,
    world_size,
)
from genimg.utils.files import atomically
from genimg.utils.torchrun import rank_of_torchrun

log = logging.getLogger(__name__)


def train(composed: DictConfig) -> float | None:
    """Start or continue the run that the config describes.

    Returns:
        Best value of the evaluator's first metric, which a sweeper minimises, or None without evaluation.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    try:
        device, is_dry = resolved(composed, "device"), resolved(composed, "dry_run")
        with processes_of_torchrun(device) as device_name, logging_redirect_tqdm(), same_threads_afterwards():
            if rank() > 0:
                logging.disable(logging.WARNING)  # the first rank logs the same
            if world_size() > 1 and hydra.mode == RunMode.MULTIRUN:
                raise ConfigError("torchrun trains one run: start a sweep (-m) without it, or start torchrun once for each run")
            _refuse_what_has_no_effect(hydra)
            if is_dry and hydra.mode == RunMode.MULTIRUN:
                raise ConfigError("dry_run=true checks a single run: remove -m")
            composition = Composition.of_hydra(composed)
            _refuse_a_budget(composition, hydra.mode)
            if is_dry:
                dry_run(composition, run_dir, device_name)
                remove_if_nothing_began(run_dir)
                return None
            with alone_in_run(run_dir) if rank() == 0 else contextlib.nullcontext():
                training = prepare(composition, broadcast_object(run_dir), device_name)
                if rank() == 0:
                    _write_hydras_configs(run_dir, composed)
                with training.recorded() as trainer:
                    trainer.fit()
            assert training.run is not None
            if training.run.signal is not None:
                sys.exit(128 + training.run.signal)
            return training.run.best
    except KeyboardInterrupt:
        if hydra.mode == RunMode.RUN and rank_of_torchrun() == 0:
            remove_if_nothing_began(run_dir)
        raise
    except Exception as error:
        elsewhere = error.details if isinstance(error, AnotherProcessError) else ""
        has_bug = is_bug(error) or bool(elsewhere)
        if has_bug or hydra.mode == RunMode.MULTIRUN:  # the logs of these runs are kept
            with contextlib.suppress(OSError):  # if the log cannot be written, the error itself is still reported
                run_log.begin()
        _write_to_log_file(elsewhere or traceback.format_exc())
        if hydra.mode == RunMode.RUN and rank_of_torchrun() == 0 and not has_bug:
            remove_if_nothing_began(run_dir)
        if hydra.mode == RunMode.MULTIRUN:  # Hydra goes on with the next job and reports errors only at the end
            log.error("this job failed%s: %s", f" because of a bug, {type(error).__name__}" if has_bug else "", error)
        raise


def _refuse_what_has_no_effect(hydra: Any) -> None:
    """Refuse launcher or sweeper options without a sweep, and ``run_dir`` or a predefined search in a sweep.

    Raises:
        ConfigError: If there is such an option.
    """
    of_sweeps = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.", "hydra.sweep.")
    if hydra.mode == RunMode.RUN and (
        found := [each for each in overrides_in(hydra.overrides.hydra) if each.startswith(of_sweeps)]
    ):
        raise ConfigError(f"{found[0]} has no effect on a single run: add -m for a sweep, or remove it")
    if hydra.mode == RunMode.MULTIRUN:
        for override in overrides_in(hydra.overrides.task):
            if override.startswith("run_dir="):
                raise ConfigError(f"{override} has no effect in a sweep: give hydra.sweep.dir")
            if override.startswith("sweep=") and override != "sweep=null":
                raise ConfigError(f"{override}: choose only one predefined search, without -m")


def _refuse_a_budget(composition: Composition, mode: RunMode | None) -> None:
    """Refuse ``budget``, which the queue of a sweep replaces by a duration for each job.

    Raises:
        ConfigError: If it is set.
    """
    budget = composition.config["budget"]
    if budget is not None and mode == RunMode.RUN:
        raise ConfigError(
            f"budget={budget} is the time for all runs of a sweep", f"set trainer.duration='{budget}' for one run"
        )
    if budget is not None:
        raise ConfigError(
            f"budget={budget} needs a queue of processes", "add hydra/launcher=gpu_queue, or set trainer.duration"
        )


def _write_hydras_configs(run_dir: Path, composed: DictConfig) -> None:
    """Write Hydra's config files into the run directory. Hydra itself would write them before the run is checked."""
    hydra = HydraConfig.instance().cfg
    assert hydra is not None
    for name, node in {"config": composed, "hydra": hydra, "overrides": HydraConfig.get().overrides.task}.items():
        with atomically(run_dir / ".hydra" / f"{name}.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(node), encoding="utf-8")


def _write_to_log_file(text: str) -> None:
    """Write a traceback to the run's log file, not to the terminal."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("genimg", logging.ERROR, "", 0, text, None, None))
