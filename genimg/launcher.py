"""hydra/launcher=gpu_queue: the jobs of a sweep as processes of their own, a few at a time, each on a GPU of its own.

Every job is an ordinary run in a directory of its own, ``genimg-train OVERRIDES run_dir=SWEEP/JOB``: whatever a run survives,
its job survives, and launching the same sweep again skips runs that are complete and continues the others.
"""

from __future__ import annotations

import csv
import ctypes
import importlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from genimg.explain import quoted
from genimg.files import atomically

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_REDRAW_SECONDS = 2.0
_TAIL = 65536  # bytes of a run's metrics that are looked at
_MOST_WORDS = 60  # characters of a job's overrides in the table
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")  # of the command line, which every job needs, too


class SweepError(Exception):
    """Some jobs of a sweep failed; the others are complete."""

    is_users = True


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        number: in the sweep, from 0.
        overrides: of its run.
        folder: its run directory.
        own: those overrides that not all jobs have.
        status: ``waiting``, ``running``, ``complete``, ``failed`` or ``stopped``.
        note: why it failed.
        slot: of the queue; an index of a GPU, where there are some.
    """

    number: int
    overrides: list[str]
    folder: Path
    own: list[str] = field(default_factory=list)
    status: str = "waiting"
    note: str = ""
    slot: str | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    images_before: int = 0
    result: JobReturn = field(default_factory=JobReturn)

    @property
    def words(self) -> str:
        """What makes it another job than the others, shortened."""
        text = " ".join(self.own)
        return text if len(text) <= _MOST_WORDS else text[: _MOST_WORDS - 1] + "…"

    def summary(self) -> dict[str, Any]:
        """What its run wrote at its end; empty where it has not ended, or was of other overrides."""
        try:
            known: Any = OmegaConf.to_container(OmegaConf.load(self.folder / ".hydra" / "overrides.yaml"))
            found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if [each for each in known if not each.startswith("run_dir=")] == self.overrides else {}

    def value(self) -> float | None:
        """The best value of the evaluator's first metric; None without evaluation."""
        best = self.summary().get("best") or {}
        return next(iter(best.values()), None)

    def progress(self) -> tuple[int, str]:
        """Images that its run has logged so far, and the first metric of its latest evaluation."""
        images, metric = 0, ""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().splitlines()
        except OSError:
            return 0, ""
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # the first and the last may be cut
                continue
            images = record.get("images", images)
            first = next((key for key in record if key.startswith("evaluation/")), None)
            metric = metric if first is None else f"{first.removeprefix('evaluation/')} {record[first]:.5g}"
        return images, metric

    def console(self) -> str:
        """What its run has printed."""
        try:
            return (self.folder / "console.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def duration(self) -> int | None:
        """Images of its whole training, as it said when it started."""
        found = re.findall(r"^training for .*: (\d+) images in ", self.console(), re.MULTILINE)
        return int(found[-1]) if found else None


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
        self._slots: list[str | None] = [str(gpu) for gpu in gpus] if gpus else [None] * n_jobs
        self._skip = skip_finished

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        jobs = [self._job(initial_job_idx + place, list(overrides)) for place, overrides in enumerate(job_overrides)]
        for job in jobs:
            job.own = [each for each in job.overrides if not all(each in other.overrides for other in jobs)]
        sweep = Path(str(self._config.hydra.sweep.dir)).resolve()
        try:
            with _terminating_as_interrupt():
                self._run(jobs)
        finally:
            _write_table(jobs, sweep / "sweep.csv", first=initial_job_idx == 0)
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

    def _job(self, number: int, overrides: list[str]) -> Job:
        composed = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)  # which the name of the directory refers to
        folder = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir)).resolve()
        HydraConfig.instance().cfg = before
        own = [each for each in filter_overrides(overrides) if not each.startswith(("hydra/", "run_dir="))]
        job = Job(number, own, folder)
        job.result = JobReturn(
            overrides=overrides, hydra_cfg=composed, cfg=composed, working_dir=str(folder), task_name=composed.hydra.job.name
        )
        return job

    def _run(self, jobs: list[Job]) -> None:
        free, display = list(self._slots), _Display(jobs)
        for job in jobs:
            if self._skip and job.summary().get("status") == "completed":
                job.status = "complete"
                log.info("#%d is complete: %s", job.number, job.words)
        try:
            while any(job.status in ("waiting", "running") for job in jobs):
                for job in (each for each in jobs if each.status == "waiting"):
                    if not free:
                        break
                    _start(job, free.pop(0), len(self._slots))
                for job in (each for each in jobs if each.status == "running"):
                    assert job.process is not None
                    if job.process.poll() is not None:
                        _end(job)
                        free.append(job.slot)
                        display.say(f"#{job.number} {_outcome(job)}: {job.words}")
                display.draw()
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            display.say("stopping the jobs; each saves a checkpoint, and the same command continues them")
            _stop([job for job in jobs if job.status == "running"])
            raise
        finally:
            display.close()


def _start(job: Job, slot: str | None, at_once: int) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    command = [sys.executable, "-m", "genimg.train", *_flags(), *job.overrides, f"run_dir={quoted(str(job.folder))}"]
    job.images_before, _ = job.progress()
    with (job.folder / "console.log").open("ab") as console:
        # In a session of its own: Ctrl-C reaches the launcher alone, which then stops each job once.
        job.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=_end_with_the_launcher if sys.platform == "linux" else None,
        )  # fmt: skip
    job.status, job.slot, job.started = "running", slot, time.monotonic()
    log.info("#%d starts%s: %s", job.number, "" if slot is None else f" on GPU {slot}", job.words)


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


def _end(job: Job) -> None:
    assert job.process is not None
    code = job.process.returncode
    if code == 0:
        job.status = "complete"
        return
    stopped = job.summary().get("status") in ("stopped", "interrupted")
    job.status = "stopped" if stopped else "failed"
    errors = re.findall(r"^genimg-train: error: (.*)$", job.console(), re.MULTILINE)
    by_signal = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    job.note = errors[-1] if errors and not stopped and code > 0 else by_signal


def _stop(jobs: list[Job]) -> None:
    """Let every job save and end; a second Ctrl-C ends them at once."""
    try:
        for job in jobs:
            assert job.process is not None
            job.process.terminate()  # also before it listens; a shell has background jobs ignore SIGINT
        for job in jobs:
            assert job.process is not None
            job.process.wait()
    except KeyboardInterrupt:
        for job in jobs:
            assert job.process is not None
            job.process.kill()
            job.process.wait()
    for job in jobs:
        _end(job)


def _outcome(job: Job) -> str:
    value = job.value()
    result = "" if value is None else f", best {value:.6g}"
    return job.status + result + (f" ({job.note})" if job.note else "")


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


class _Display:
    """A table of the running jobs that is drawn anew every few seconds, on a terminal; elsewhere nothing but lines."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = jobs
        self._live = sys.stderr.isatty()
        self._drawn = 0
        self._next = 0.0

    def say(self, line: str) -> None:
        """A line that stays."""
        self._clear()
        log.info("%s", line)

    def draw(self) -> None:
        if not self._live or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REDRAW_SECONDS
        self._clear()
        done = sum(job.status not in ("waiting", "running") for job in self._jobs)
        rows = [f"{done} of {len(self._jobs)} jobs done", *(_row(job) for job in self._jobs if job.status == "running")]
        sys.stderr.write("\n".join(rows) + "\n")
        sys.stderr.flush()
        self._drawn = len(rows)

    def close(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            sys.stderr.flush()
        self._drawn = 0


def _row(job: Job) -> str:
    (images, metric), total = job.progress(), job.duration()
    if not images or not total:
        return f"  #{job.number:<4} starting  {job.words}"
    rate = (images - job.images_before) / (time.monotonic() - job.started)
    left = "" if rate <= 0 else time.strftime("%H:%M:%S left", time.gmtime((total - images) / rate))
    return f"  #{job.number:<4} {images / total:4.0%}  {left:13}  {metric:24}  {job.words}"


def _write_table(jobs: list[Job], path: Path, *, first: bool) -> None:
    """A line for each job: number, status, best value, directory, reason of a failure, overrides."""
    titles = ["job", "status", "best", "directory", "note", "overrides"]
    rows: list[list[str]] = []
    if not first and path.is_file():  # of the sweeper's earlier batches
        with path.open(encoding="utf-8", newline="") as file:
            numbers = {str(job.number) for job in jobs}
            rows = [row for row in list(csv.reader(file))[1:] if row and row[0] not in numbers]
    for job in jobs:
        value = job.value()
        rows.append([str(job.number), job.status, "" if value is None else f"{value:.8g}", job.folder.name, job.note,
                     " ".join(job.overrides)])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([titles, *rows])


_PLUGIN = "hydra_plugins.genimg"  # Hydra takes plugins of that package only
GpuQueueLauncher.__module__ = _PLUGIN


def register() -> None:
    """Let Hydra know of ``hydra/launcher=gpu_queue``."""
    package = sys.modules.get("hydra_plugins")
    if package is None:
        try:
            package = importlib.import_module("hydra_plugins")
        except ImportError:  # no plugin is installed
            package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
            package.__path__ = []
    sys.modules[_PLUGIN] = sys.modules[__name__]
    package.genimg = sys.modules[__name__]  # type: ignore[attr-defined]
    Plugins.instance().register(GpuQueueLauncher)
    node = {"_target_": f"{_PLUGIN}.GpuQueueLauncher", "n_jobs": 1, "gpus": None, "skip_finished": True}
    ConfigStore.instance().store(group="hydra/launcher", name="gpu_queue", node=node, provider="genimg")
