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
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from genimg.explain import quoted
from genimg.sweeps.display import Display
from genimg.sweeps.job import Job

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")  # of the command line, which every job needs, too


class SweepError(Exception):
    """Some jobs of a sweep failed; the others are complete."""

    is_users = True


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

    def ended(self, job: Job) -> None:
        """Note a job's end, of whatever kind."""


def work_off(jobs: Jobs, slots: Sequence[str | None]) -> None:
    """Run all jobs, one in each slot; Ctrl-C and SIGTERM stop those that run, which save, and raise KeyboardInterrupt.

    Args:
        jobs: to run.
        slots: each an index of a GPU, or None.
    """
    free, running, display = list(slots), list[Job](), Display(jobs.total)
    try:
        with _terminating_as_interrupt():
            try:
                while True:
                    while free and (job := jobs.next()) is not None:
                        running.append(job)
                        start(job, free.pop(0), at_once=len(slots))
                        display.say(f"#{job.number} starts{f' on GPU {job.slot}' if job.slot else ''}: {job.words}")
                    if not running:
                        return
                    for job in list(running):
                        if not _has_ended(job) and (reason := jobs.why_hopeless(job)):
                            stop([job])
                            if job.status != "complete":
                                job.status, job.note = "pruned", reason
                        if job.status != "running":
                            running.remove(job)
                            free.append(job.slot)
                            jobs.ended(job)
                            display.say(f"#{job.number} {job.outcome}: {job.words}")
                    display.draw(running, jobs.num_done)
                    time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                display.say("stopping the jobs; each saves a checkpoint, and the same command continues them")
                stop(running)
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
    environment = dict(os.environ)
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    command = [sys.executable, "-m", "genimg.train", *_flags(), *job.overrides, f"run_dir={quoted(str(job.folder))}"]
    job.images_before, _ = job.progress()
    with (job.folder / "console.log").open("ab") as console:
        job.said_before = console.tell()
        # In a session of its own: Ctrl-C reaches the launcher alone, which then stops each job once.
        job.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=_end_with_the_launcher if sys.platform == "linux" else None,
        )  # fmt: skip
    job.status, job.slot, job.note, job.started = "running", slot, "", time.monotonic()


def stop(jobs: Sequence[Job]) -> None:
    """Let every job save and end; a second Ctrl-C ends them at once."""
    jobs = [job for job in jobs if not _has_ended(job)]  # one may have died by itself in this very moment
    processes = [job.process for job in jobs if job.process is not None]
    patient = True
    try:
        for process in processes:
            process.terminate()  # also before it listens; a shell has background jobs ignore SIGINT
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        patient = False
        for process in processes:
            process.kill()
            process.wait()
    for job, process in zip(jobs, processes, strict=True):
        if process.returncode == -signal.SIGKILL and patient:  # by somebody else, just before
            _has_ended(job)
        else:
            job.status = "complete" if process.returncode == 0 else "stopped"


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


def _has_ended(job: Job) -> bool:
    """Whether its process has; its status then says how."""
    assert job.process is not None
    code = job.process.poll()
    if code is None:
        return False
    if code == 0:
        job.status = "complete"
        return True
    if job.summary().get("status") in ("stopped", "interrupted"):  # somebody sent it a signal of its own
        job.status, job.note = "stopped", "by a signal that it was sent"
        return True
    job.status = "failed"
    errors = re.findall(r"^genimg-train: error: (.*)$", job.console(), re.MULTILINE)
    job.note = errors[-1] if errors else f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return True


@contextmanager
def _terminating_as_interrupt() -> Iterator[None]:
    """A block in which SIGTERM does what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)  # the second, too: a shell has background jobs ignore it
    previous = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
