"""Jobs as processes, at most so many at a time, each in a slot of its own."""

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
from typing import Protocol

from genimg.errors import ConfigError, UserError
from genimg.sweeps.display import Display
from genimg.sweeps.job import Job
from genimg.utils.files import alone_in
from genimg.utils.paths import RUN_FILES, relative
from genimg.utils.regular_files import refuse_links, require_plain
from genimg.utils.terminal import stop_signals
from genimg.utils.torchrun import is_of_several
from genimg.utils.words import quoted

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_CONSOLE = "console.log"
_MOST_LOGS = 3  # that a message names
_BUG = 1  # what a run ends with that a bug has ended; a setting that cannot work ends it with 2
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
# What a run ends with that a signal has made save, 128 + its number, or that a signal ended before it listened.
_ENDED_BY_SIGNAL = (*(128 + number for number in stop_signals()), *(-number for number in stop_signals()))
_FLAGS = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
)  # of the command line, which every job needs, too


class SweepError(UserError):
    """Some jobs of a sweep failed; the others are complete.

    Args:
        jobs: Jobs of the sweep.
        folder: Directory of the sweep.

    Attributes:
        has_bug: Whether a job failed by a bug, so that the sweep ends with the exit code of one.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path) -> None:
        failed = [job for job in jobs if job.status not in ("completed", "pruned")]
        bugs = [job for job in failed if job.has_bug]
        numbers = ", ".join(f"#{job.number}{' by a bug' * job.has_bug}" for job in failed)
        logs = " and ".join(str(relative(job.folder / _CONSOLE)) for job in bugs[:_MOST_LOGS])
        more = f" and {len(bugs) - _MOST_LOGS} more" if len(bugs) > _MOST_LOGS else ""
        where = f", the bug{'s' * (len(bugs) > 1)} in {logs}{more}" if bugs else ""
        super().__init__(
            f"{len(failed)} of {len(jobs)} jobs failed, {numbers}: the reasons are above and in {_CONSOLE} of their "
            f"directories{where}; the same command with hydra.sweep.dir={folder} runs these again, from their checkpoints "
            "where they have some, and no others",
            key="",
        )
        self.has_bug = bool(bugs)


class Jobs(Protocol):
    """What a queue works off."""

    @property
    def total(self) -> int:
        """Jobs of the whole sweep, those included that were done before."""

    @property
    def num_done(self) -> int:
        """Of those."""

    def next(self) -> Job | None:
        """The next to start; None where all have been started."""

    def why_hopeless(self, job: Job) -> str | None:
        """Why a running job need not go on; None where it must."""

    def started(self, job: Job) -> None:
        """Note that a job has started."""

    def ended(self, job: Job) -> None:
        """Note a job's end, of whatever kind."""


def alone_in_sweep(folder: Path) -> AbstractContextManager[None]:
    """A block that a sweep's directory is read, worked off and written in.

    Raises:
        ConfigError: If another launch is in one of the same sweep, or in a process of torchrun.
    """
    if is_of_several():
        raise ConfigError("torchrun trains one run: start a sweep (-m) without it")
    message = f"hydra.sweep.dir={folder} is in use by another launch of a sweep: wait for its end, or choose another one"
    return alone_in(folder / ".lock", message)


def work_off(jobs: Jobs, slots: Sequence[str | None]) -> None:
    """Run all jobs, one in each slot; a signal of ``stop_signals`` stops those that run, which save; then KeyboardInterrupt.

    Args:
        jobs: to run.
        slots: each an index of a GPU, or None.
    """
    free, running, display = list(slots), list[Job](), Display(jobs.total)
    with _counting_interrupts() as interrupts:
        try:
            while not interrupts:
                while free and not interrupts and (job := jobs.next()) is not None:
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
        job: to start; its output is added to console.log in its directory.
        slot: the only GPU that it sees; None shows it all.
        at_once: jobs that share the processor's cores.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    refuse_links(job.folder, below=job.folder.parent)
    require_plain(job.folder, RUN_FILES)
    environment = dict(os.environ)
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // at_once)))
    command = [sys.executable, "-m", "genimg.train", *_flags(), *job.overrides, f"run_dir={quoted(str(job.folder))}"]
    job.look()
    job.images_before = job.images
    with (job.folder / _CONSOLE).open("ab") as console:
        job.said_before = console.tell()
        # In a session of its own: Ctrl-C reaches the launcher alone, which then stops each job once.
        job.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=_end_with_the_launcher if sys.platform == "linux" else None,
        )  # fmt: skip
    job.status, job.slot, job.note, job.has_bug, job.started_at = "running", slot, "", False, time.monotonic()


def _stop(jobs: Sequence[Job], interrupts: Sequence[int]) -> None:
    """Let every job save and end; one more interrupt ends them at once."""
    so_far = len(interrupts)
    for job in jobs:
        job.is_stopped = True
        if not has_ended(job):
            _process_of(job).terminate()  # also before it listens; a shell has background jobs ignore SIGINT
    while not all(has_ended(job) for job in jobs):
        if len(interrupts) > so_far:
            for job in jobs:
                _process_of(job).kill()
        time.sleep(_POLL_SECONDS)


def _num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_the_launcher() -> None:
    """So that a launcher that is killed leaves no jobs behind, which a second launch would start once more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _flags() -> list[str]:
    """Where the launcher was told to look for configs."""
    found: list[str] = []
    arguments = sys.argv[1:]
    for place, argument in enumerate(arguments):
        if argument in _FLAGS:
            found += arguments[place : place + 2]
        elif argument.startswith(tuple(f"{flag}=" for flag in _FLAGS)):
            found.append(argument)
    return found


def has_ended(job: Job) -> bool:
    """Whether its process has; its status then says how."""
    code = _process_of(job).poll()
    if code is None:
        return False
    if code == 0:
        job.status = "completed"
    elif code in _ENDED_BY_SIGNAL and job.hopeless:
        job.status, job.note = "pruned", job.hopeless
    elif code in _ENDED_BY_SIGNAL:
        job.status, job.note = "stopped", "" if job.is_stopped else "by a signal that it was sent"
    else:
        job.status, job.has_bug, job.note = "failed", code == _BUG, _why_it_failed(job, code)
    return True


def _why_it_failed(job: Job, code: int) -> str:
    """Return the one line of a setting that cannot work, the last one of a bug's traceback, or what ended the process."""
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
    """A block in which the signals that ask for a stop are written down, and end nothing by themselves."""
    found: list[int] = []
    numbers = stop_signals()
    previous = [signal.signal(number, lambda number, frame: found.append(number)) for number in numbers]
    try:
        yield found
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
