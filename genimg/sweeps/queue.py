"""Run jobs as processes, at most one in each slot."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from genimg.errors import ConfigError, UserError
from genimg.sweeps.budget import Budget
from genimg.sweeps.display import Display
from genimg.sweeps.job import Job, fails_for_all, write_table
from genimg.utils.environment import num_cores
from genimg.utils.files import alone_in
from genimg.utils.paths import RUN_FILES, relative
from genimg.utils.regular_files import refuse_links, require_plain
from genimg.utils.terminal import stop_signals
from genimg.utils.torchrun import is_of_several
from genimg.utils.words import quoted

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_CONSOLE = "console.log"
_MOST_LOGS = 3  # maximum number of logs named in a message
_BUG = 1  # exit code of a run that ended with a bug; a mistake of the user gives 2
_PR_SET_PDEATHSIG = 1  # option of prctl on Linux
# Exit codes of runs that saved after a signal, 128 + its number, and of runs that a signal ended before handlers were set.
_ENDED_BY_SIGNAL = (*(128 + number for number in stop_signals()), *(-number for number in stop_signals()))
# Flags of the launcher's command line that every job also needs.
_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")


class SweepError(UserError):
    """Some jobs of a sweep failed; the others are complete or were not started.

    Args:
        jobs: Jobs of the sweep that are known.
        folder: Directory of the sweep.
        total: Number of jobs of the whole sweep.
        budget: Budget of the sweep; None if it has none.

    Attributes:
        has_bug: Whether a job failed with a bug; the sweep then ends with a bug's exit code.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, total: int, budget: Budget | None) -> None:
        failed = [job for job in jobs if job.status not in ("completed", "pruned", "waiting")]
        num_left = total - sum(job.status != "waiting" for job in jobs)
        bugs = [job for job in failed if job.has_bug]
        numbers = ", ".join(f"#{job.number}{' because of a bug' * job.has_bug}" for job in failed)
        left = f", and {num_left} were not started, because they have the same data" if num_left else ""
        logs = " and ".join(str(relative(job.folder / _CONSOLE)) for job in bugs[:_MOST_LOGS])
        more = f" and {len(bugs) - _MOST_LOGS} more" if len(bugs) > _MOST_LOGS else ""
        where = f", the bug{'s' * (len(bugs) > 1)} in {logs}{more}" if bugs else ""
        again = "with this corrected, " if num_left else ""
        again += (
            f"the same command with hydra.sweep.dir={folder} runs only these again, from their checkpoints if they have any"
        )
        super().__init__(
            f"{len(failed)} of {total} jobs failed, {numbers}{left}: the reasons are above and in {_CONSOLE} of their "
            f"directories{where}; {(budget and budget.advice(failed)) or again}",
            key="",
        )
        self.has_bug = bool(bugs)


class Jobs:
    """The jobs of a queue, which are recorded in the sweep's table.

    Args:
        table: Path of the table.
        total: Number of jobs in the whole sweep, including those done by earlier launches.
        budget: Budget of the sweep; None if it has none.

    Attributes:
        is_pointless: Whether jobs that have not started would fail like one that has failed, so none is started.
    """

    def __init__(self, table: Path, total: int, budget: Budget | None) -> None:
        self.table, self.total, self.budget = table, total, budget
        self.by_number: dict[int, Job] = {}
        self.is_pointless = False

    @property
    def num_done(self) -> int:
        """Number of jobs done so far."""
        return sum(job.status not in ("waiting", "running") for job in self.by_number.values())

    def next(self) -> Job | None:
        """Return the next job to start, or None if all have been started."""
        return next((job for job in self.by_number.values() if job.status == "waiting"), None)

    def why_hopeless(self, job: Job) -> str | None:
        """Return why a running job should be stopped early, or None if it should continue."""
        return None

    def started(self, job: Job) -> None:
        """Record that a job has started."""
        write_table([job], self.table)

    def ended(self, job: Job) -> None:
        """Record that a job has ended, with any status."""
        if job.status == "failed" and self.budget is not None:
            self.budget.explain(job)
        if job.status == "failed" and fails_for_all(job, self.by_number.values()):
            self.is_pointless = True
        write_table([job], self.table)


def alone_in_sweep(folder: Path) -> AbstractContextManager[None]:
    """Lock a sweep's directory while the block reads, runs and writes its jobs.

    Raises:
        ConfigError: If another launch holds the lock, or torchrun started this process.
    """
    if is_of_several():
        raise ConfigError("torchrun trains one run: start a sweep (-m) without it")
    message = f"hydra.sweep.dir={folder} is in use by another sweep: wait until it ends, or choose another directory"
    return alone_in(folder / ".lock", message)


def work_off(jobs: Jobs, slots: Sequence[str | None]) -> None:
    """Run all jobs, at most one in each slot. On a stop signal, the running jobs save and stop.

    Args:
        jobs: Jobs to run.
        slots: Slots, each the index of a GPU or None.

    Raises:
        KeyboardInterrupt: After a signal, when the jobs have stopped.
    """
    free, running, display = list(slots), list[Job](), Display(jobs.total)
    with _counting_interrupts() as interrupts:
        try:
            while not interrupts:
                while free and not interrupts and not jobs.is_pointless and (job := jobs.next()) is not None:
                    start(job, free.pop(0), at_once=len(slots))
                    running.append(job)
                    jobs.started(job)
                    display.say(f"#{job.number} starts{f' on GPU {job.slot}' if job.slot else ''}: {job.words}")
                if not running:
                    return
                for job in list(running):
                    if not has_ended(job):
                        if not job.hopeless and (reason := jobs.why_hopeless(job)):
                            job.hopeless = reason
                            _process_of(job).terminate()
                        continue
                    running.remove(job)
                    free.append(job.slot)
                    jobs.ended(job)
                    display.say(f"#{job.number} {job.outcome}: {job.words}")
                display.draw(running, jobs.num_done)
                time.sleep(_POLL_SECONDS)
            display.say("stopping the jobs; each saves a checkpoint, and the same command continues them")
            raise KeyboardInterrupt
        except BaseException:
            _stop(running, interrupts)
            for job in running:
                jobs.ended(job)
            raise
        finally:
            display.close()


def start(job: Job, slot: str | None, *, at_once: int) -> None:
    """Start a job's process.

    Args:
        job: Job to start; its output is appended to console.log in its directory.
        slot: Index of the only GPU visible to the job; None for all GPUs.
        at_once: Number of jobs that share the processor's cores.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    refuse_links(job.folder, below=job.folder.parent)
    require_plain(job.folder, RUN_FILES)
    environment = dict(os.environ)
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    if at_once > 1:  # a job that has all cores chooses its own number of threads
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // at_once)))
    command = [sys.executable, "-m", "genimg.train", *_flags(), *job.overrides, f"run_dir={quoted(str(job.folder))}"]
    job.look()
    job.images_before = job.images
    with (job.folder / _CONSOLE).open("ab") as console:
        job.said_before = console.tell()
        # In its own session, so Ctrl-C reaches only the launcher, which then stops each job once.
        job.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=_end_with_the_launcher if sys.platform == "linux" else None,
        )  # fmt: skip
    job.status, job.slot, job.note, job.has_bug, job.started_at = "running", slot, "", False, time.monotonic()


def _stop(jobs: Sequence[Job], interrupts: Sequence[int]) -> None:
    """Make every job save and end; another interrupt kills them."""
    so_far = len(interrupts)
    for job in jobs:
        job.is_stopped = True
        if not has_ended(job):
            _process_of(job).terminate()  # works even before the job sets its handlers; background jobs ignore SIGINT
    while not all(has_ended(job) for job in jobs):
        if len(interrupts) > so_far:
            for job in jobs:
                _process_of(job).kill()
        time.sleep(_POLL_SECONDS)


def _end_with_the_launcher() -> None:
    """End this job when its launcher is killed; otherwise the next launch would start the job a second time."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _flags() -> list[str]:
    """Return the launcher's flags that name config directories and files."""
    found: list[str] = []
    arguments = sys.argv[1:]
    for place, argument in enumerate(arguments):
        if argument in _FLAGS:
            found += arguments[place : place + 2]
        elif argument.startswith(tuple(f"{flag}=" for flag in _FLAGS)):
            found.append(argument)
    return found


def has_ended(job: Job) -> bool:
    """Return whether a job's process has ended, and set the job's status if so."""
    code = _process_of(job).poll()
    if code is None:
        return False
    if code == 0:
        job.status = "completed"
    elif code in _ENDED_BY_SIGNAL and job.hopeless:
        job.status, job.note = "pruned", job.hopeless
    elif code in _ENDED_BY_SIGNAL:
        job.status, job.note = "stopped", "" if job.is_stopped else "by a signal"
    else:
        job.status, job.has_bug, job.note = "failed", code == _BUG, _why_it_failed(job, code)
    return True


def _why_it_failed(job: Job, code: int) -> str:
    """Return the error message of a user's mistake, the last line of a bug's traceback, or the signal or exit code."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    said = job.console()
    if code == _BUG:
        raised = re.search(r"^\S.*", said.rpartition("Traceback (most recent call last):\n")[2], re.MULTILINE)
        return f"a bug, see {_CONSOLE}" + (f": {raised[0]}" if raised else "")
    errors = re.findall(r"^genimg-train: error: (.*)$", said, re.MULTILINE)
    return errors[-1] if errors else f"ended with {code}"


def _process_of(job: Job) -> subprocess.Popen[bytes]:
    assert job.process is not None
    return job.process


@contextmanager
def _counting_interrupts() -> Iterator[list[int]]:
    """Record the numbers of stop signals within the block instead of letting them end the process."""
    found: list[int] = []
    numbers = stop_signals()
    previous = [signal.signal(number, lambda number, frame: found.append(number)) for number in numbers]
    try:
        yield found
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
