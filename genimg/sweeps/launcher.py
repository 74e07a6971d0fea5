"""hydra/launcher=gpu_queue: the jobs of a sweep as processes of their own, a few at a time, each on a GPU of its own.

Every job is an ordinary run in a directory of its own, ``genimg-train OVERRIDES run_dir=SWEEP/JOB``: whatever a run survives,
its job survives, and launching the same sweep again skips runs that are complete and continues the others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from genimg.sweeps.job import Job, compose_job, report_on, write_table
from genimg.sweeps.queue import SweepError, work_off

log = logging.getLogger(__name__)


class GpuQueueLauncher(Launcher):
    """Runs at most ``n_jobs`` jobs at a time, or one for each of ``gpus``.

    Args:
        n_jobs: at a time, where no GPUs are given.
        gpus: indices for CUDA_VISIBLE_DEVICES; a GPU may stand there twice to hold two jobs.
        skip_finished: whether complete runs of an earlier launch are left as they are.

    Raises:
        ValueError: for fewer than one job at a time.
    """

    def __init__(self, n_jobs: int = 1, gpus: Sequence[int | str] | None = None, skip_finished: bool = True) -> None:
        if type(n_jobs) is not int or n_jobs < 1:
            raise ValueError(f"hydra.launcher.n_jobs={n_jobs} must be 1 or more jobs at a time")
        if gpus and n_jobs != 1:
            raise ValueError(f"hydra.launcher.n_jobs={n_jobs} has no effect with hydra.launcher.gpus: one job for each of them")
        self.slots: list[str | None] = [str(gpu) for gpu in gpus] if gpus else [None] * n_jobs
        self.skip_finished = skip_finished

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        jobs = [
            compose_job(self._context, self._config, initial_job_idx + place, overrides)
            for place, overrides in enumerate(job_overrides)
        ]
        for job in jobs:
            job.own = [each for each in job.overrides if not all(each in other.overrides for other in jobs)]
        sweep = Path(str(self._config.hydra.sweep.dir)).resolve()
        work_off(_Listed(jobs, sweep / "sweep.csv", skip=self.skip_finished, is_first=initial_job_idx == 0), self.slots)
        report_on(sweep)
        failed = [job for job in jobs if job.status != "complete"]
        numbers = ", ".join(f"#{each.number}" for each in failed)
        error = SweepError(
            f"{len(failed)} of {len(jobs)} jobs failed, {numbers}: the reasons are above and in console.log of their "
            f"directories in {sweep}; the same command runs these again, and no others"
        )
        sweeper = self._config.hydra.sweeper
        if failed and str(sweeper._target_).endswith(".BasicSweeper") and sweeper.max_batch_size is None:
            raise error  # all jobs have had their turn; Hydra would print the overrides of the first that failed before it
        for job in jobs:
            is_complete = job.status == "complete"
            job.result.status = JobStatus.COMPLETED if is_complete else JobStatus.FAILED
            job.result.return_value = job.value() if is_complete else error
        return [job.result for job in jobs]


class _Listed:
    """Jobs that are known beforehand."""

    def __init__(self, jobs: list[Job], table: Path, *, skip: bool, is_first: bool) -> None:
        self._jobs, self._table, self._is_first = jobs, table, is_first
        self.total = len(jobs)
        for job in jobs:
            if skip and job.summary().get("status") == "completed":
                job.status = "complete"
                log.info("#%d is complete: %s", job.number, job.words)
        self._write()

    @property
    def num_done(self) -> int:
        return sum(job.status not in ("waiting", "running") for job in self._jobs)

    def next(self) -> Job | None:
        return next((job for job in self._jobs if job.status == "waiting"), None)

    def why_hopeless(self, job: Job) -> str | None:
        return None

    def ended(self, job: Job) -> None:
        self._write()

    def _write(self) -> None:
        write_table(self._jobs, self._table, keep=not self._is_first)
