"""hydra/launcher=gpu_queue: run the jobs of a sweep as separate processes, a few at a time, each on its own GPU.

Every job is an ordinary run in its own directory, ``genimg-train OVERRIDES run_dir=SWEEP/JOB``, so it can be interrupted and
resumed like any run. Launching the same sweep again skips complete runs and continues the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from genimg.errors import ConfigError
from genimg.sweeps.budget import Budget
from genimg.sweeps.job import Job, compose_job, report_on, table_of, write_table
from genimg.sweeps.queue import Jobs, SweepError, alone_in_sweep, work_off

log = logging.getLogger(__name__)


class GpuQueueLauncher(Launcher):
    """Runs at most ``n_jobs`` jobs at a time, or one for each of ``gpus``.

    Args:
        n_jobs: Number of jobs at a time, if no GPUs are given.
        gpus: Indices for CUDA_VISIBLE_DEVICES; a GPU that is listed twice runs two jobs.
        skip_finished: Whether to skip runs that an earlier launch completed.

    Raises:
        ConfigError: If a setting is invalid.
    """

    def __init__(self, n_jobs: int = 1, gpus: Sequence[int | str] | None = None, skip_finished: bool = True) -> None:
        if type(n_jobs) is not int or n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={n_jobs} must be 1 or more jobs at a time")
        if not isinstance(skip_finished, bool):
            raise ConfigError(f"hydra.launcher.skip_finished={skip_finished} must be true or false")
        is_list = isinstance(gpus, Sequence) and not isinstance(gpus, str)
        if gpus is not None and (not is_list or not gpus or not all(isinstance(gpu, int | str) for gpu in gpus)):
            raise ConfigError(f"hydra.launcher.gpus={gpus} must be a list of GPUs such as 'hydra.launcher.gpus=[0,1]', or null")
        if gpus and n_jobs != 1:
            raise ConfigError(
                f"hydra.launcher.n_jobs={n_jobs} has no effect with hydra.launcher.gpus, which runs one job per GPU"
            )
        self.slots: list[str | None] = [str(gpu) for gpu in gpus] if gpus else [None] * n_jobs
        self.skip_finished = skip_finished

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        is_basic = str(self._config.hydra.sweeper._target_).endswith(".BasicSweeper")
        if is_basic and self._config.hydra.sweeper.max_batch_size is not None:
            raise ConfigError(
                "hydra.sweeper.max_batch_size has no effect with hydra/launcher=gpu_queue: give hydra.launcher.n_jobs"
            )
        sweep = Path(str(self._config.hydra.sweep.dir)).resolve()
        budget = Budget.of_sweep(self._config, len(job_overrides), len(self.slots), sweep)
        if budget is not None:
            if not is_basic:  # it may launch jobs several times, and their number is unknown
                raise ConfigError(f"budget={budget.text} does not work with this sweeper: set trainer.duration")
            job_overrides = [budget.applied(each) for each in job_overrides]
        jobs = [
            compose_job(self._context, self._config, initial_job_idx + place, overrides)
            for place, overrides in enumerate(job_overrides)
        ]
        for job in jobs:
            job.own = [each for each in job.overrides if not all(each in other.overrides for other in jobs)]
            refuse_what_is_of_one_run(job.result.cfg, job.result.overrides or ())
        with alone_in_sweep(sweep):
            _refuse_another_sweep(jobs, sweep)
            if budget is not None:
                budget.record(sweep)
            work_off(_listed(jobs, sweep / "sweep.csv", budget, skip=self.skip_finished), self.slots)
            report_on(sweep)
        error = SweepError(jobs, sweep, len(jobs), budget)
        if is_basic and any(job.status != "completed" for job in jobs):
            raise error  # after all jobs; Hydra itself would first print the overrides of the first failed job
        for job in jobs:
            is_complete = job.status == "completed"
            job.result.status = JobStatus.COMPLETED if is_complete else JobStatus.FAILED
            job.result.return_value = job.value() if is_complete else error
        return [job.result for job in jobs]


def _refuse_another_sweep(jobs: Sequence[Job], folder: Path) -> None:
    known = table_of(folder / "sweep.csv")
    for job in jobs:
        before, now = known.get(str(job.number), {}).get("directory"), os.path.relpath(job.folder, folder)
        if before is not None and before != now:
            raise ConfigError(
                f"hydra.sweep.dir={folder} holds another sweep, whose job #{job.number} is {before} and not {now}: choose "
                "another hydra.sweep.dir (values can be added to the end of a sweep's only list)"
            )


def refuse_what_is_of_one_run(composed: DictConfig | None, overrides: Sequence[str]) -> None:
    """Refuse options that apply only to a single run.

    Raises:
        ConfigError: If there is such an option.
    """
    composed = composed or DictConfig({})
    if composed.get("dry_run"):
        raise ConfigError("dry_run=true checks a single run: remove it, or start the run without -m and sweep=")
    if composed.get("resume") not in (None, "auto"):
        raise ConfigError(
            f"resume={composed.get('resume')} continues a single run, but jobs of a sweep continue by themselves: remove it"
        )
    if any(override.startswith("run_dir=") for override in overrides):
        raise ConfigError("run_dir has no effect in a sweep: give hydra.sweep.dir")


def _listed(jobs: list[Job], table: Path, budget: Budget | None, *, skip: bool) -> Jobs:
    """Return the jobs as a queue, and record them. ``skip`` tells whether to skip jobs that an earlier launch completed."""
    found = Jobs(table, len(jobs), budget)
    found.by_number = {job.number: job for job in jobs}
    for job in jobs:
        if job.status == "failed":
            log.info("#%d %s: %s", job.number, job.outcome, job.words)
        elif skip and job.is_complete:
            job.status = "completed"
            log.info("#%d is complete: %s", job.number, job.words)
    write_table(jobs, table)
    return found
