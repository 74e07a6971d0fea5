"""One job of a sweep: an ordinary run in its own directory, which records the job's progress."""

from __future__ import annotations

import csv
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, filter_overrides
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genimg.config.messages import explain
from genimg.errors import subject_of
from genimg.utils.csv_cells import neutral
from genimg.utils.files import atomically
from genimg.utils.json_text import parse_json
from genimg.utils.regular_files import UnsafeFileError, open_regular, read_regular
from genimg.utils.sweep_table import TITLES, rows_of

log = logging.getLogger(__name__)

_MOST_WORDS = 60  # maximum number of characters of a job's overrides in the table
_METRIC = "evaluation/"
_PLACES_OF_IMAGES = ("data.root", "data.path", "data.hub", "data.split")
_MOST_SUMMARY = 2**24  # maximum size of summary.json in bytes


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        number: Number of the job in the sweep, from 0.
        overrides: Overrides of the job's run.
        folder: The job's run directory.
        own: Overrides that not all jobs share.
        status: ``waiting``, ``running``, ``completed``, ``failed``, ``stopped`` or ``pruned``.
        note: Reason why the job failed or was pruned.
        has_bug: Whether the job failed because of a bug, not because of a user's mistake.
        needed_seconds: Training time that the job needs, if it failed because its share of a budget is too short; else 0.
        slot: Slot of the queue: the index of a GPU, or None without GPUs.
        is_stopped: Whether the job is stopped together with the sweep.
        hopeless: Reason why the job is stopped early; empty if it is not.
        said_before: Size of the job's console.log before this launch, in bytes.
        images: Number of images trained so far, according to the run's records.
        images_before: Number of those images trained in earlier launches.
        metric: Name of the evaluator's first metric.
        measured: Values of that metric by number of images.
    """

    number: int
    overrides: list[str]
    folder: Path
    own: list[str] = field(default_factory=list)
    status: str = "waiting"
    note: str = ""
    has_bug: bool = False
    needed_seconds: int = 0
    slot: str | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    is_stopped: bool = False
    hopeless: str = ""
    said_before: int = 0
    images: int = 0
    images_before: int = 0
    metric: str = ""
    measured: dict[int, float] = field(default_factory=dict)
    _read: int = 0
    result: JobReturn = field(default_factory=JobReturn)

    @property
    def words(self) -> str:
        """The overrides that distinguish it from other jobs, shortened."""
        text = " ".join(self.own)
        return text if len(text) <= _MOST_WORDS else text[: _MOST_WORDS - 1] + "…"

    @property
    def outcome(self) -> str:
        """Its status with its best value and note, for a log line."""
        value = self.value()
        result = "" if value is None else f", best {value:.6g}"
        return self.status + result + (f" ({self.note})" if self.note else "")

    def summary(self) -> dict[str, Any]:
        """Return the summary of its run; empty if the run has not ended or had other overrides."""
        try:
            found = parse_json(read_regular(self.folder / "summary.json", below=self.folder, most=_MOST_SUMMARY))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("overrides") == self.overrides else {}

    @property
    def is_complete(self) -> bool:
        """Whether its run has trained for its duration, or until the time of ``trainer.duration`` was over."""
        return self.summary().get("status") == "completed"

    def value(self) -> float | None:
        """Return the best value of the evaluator's first metric, or None without evaluation."""
        best = self.summary().get("best")
        value = next(iter(best.values()), None) if isinstance(best, dict) else None
        return value if isinstance(value, int | float) else None

    def look(self) -> None:
        """Update ``images``, ``metric`` and ``measured`` from new records of its run."""
        try:
            with open_regular(self.folder / "metrics.jsonl", below=self.folder) as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._read:  # a continued run drops the records of steps that it repeats
                    self._read = 0
                file.seek(self._read)
                lines = file.read()
        except (OSError, UnsafeFileError):
            return
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if not isinstance(record, dict) or type(record.get("images")) is not int:
                continue
            self.images = record["images"]
            first = next((key for key in record if key.startswith(_METRIC)), None)
            if first is not None and type(record[first]) in (int, float):
                self.metric = first.removeprefix(_METRIC)
                self.measured[self.images] = float(record[first])

    def console(self) -> str:
        """Return the run's output since this launch."""
        try:
            with open_regular(self.folder / "console.log", below=self.folder) as file:
                file.seek(self.said_before)
                return file.read().decode("utf-8", errors="replace")
        except (OSError, UnsafeFileError):
            return ""

    def duration(self) -> int | None:
        """Return the number of images in the whole training, which the run printed at its start."""
        found = re.findall(r"^training for .*: (\d+) images in ", self.console(), re.MULTILINE)
        return int(found[-1]) if found else None


def fails_for_all(job: Job, jobs: Iterable[Job]) -> bool:
    """Return whether a failed job found no usable images, so that jobs that have not started would fail for the same reason.

    Only errors about the place of the images count. They depend on the group ``data`` alone, which must be the same.

    Args:
        job: The failed job.
        jobs: Known jobs of the sweep.
    """
    if job.has_bug or subject_of(job.note) not in _PLACES_OF_IMAGES or job.duration() is not None:
        return False
    if any(re.match(r"[+~]*(data|experiment)\b", override) for override in job.own):
        return False
    try:
        own = _data_of(job)
        return own is not None and all(_data_of(other) == own for other in jobs if other.status == "waiting")
    except OmegaConfBaseException:  # an interpolation that cannot be resolved
        return False


def _data_of(job: Job) -> Any:
    data = None if job.result.cfg is None else job.result.cfg.get("data")
    return OmegaConf.to_container(data, resolve=True) if isinstance(data, DictConfig) else None


def compose_job(context: HydraContext, config: DictConfig, number: int, overrides: Sequence[str]) -> Job:
    """Return a job with the directory from Hydra's config; its status is ``failed`` if its overrides cannot be composed.

    Args:
        context, config: Hydra's context and config of the sweep.
        number: Number of the job.
        overrides: Overrides of the job, including those that all jobs share.
    """
    # Drop sweep=, because it would turn every job into a sweep.
    own = [each for each in filter_overrides(list(overrides)) if not each.startswith(("hydra/", "run_dir=", "sweep="))]
    try:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)  # the name of the directory refers to it
        try:
            folder = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir)).resolve()
        finally:
            HydraConfig.instance().cfg = before
    except (HydraException, OmegaConfBaseException) as error:
        folder = Path(str(config.hydra.sweep.dir), f"{number:03d}").resolve()
        result = JobReturn(overrides=overrides, hydra_cfg=config, cfg=config, working_dir=str(folder), task_name="train")
        note = explain(error, "train", own) or str(error)
        return Job(number, own, folder, status="failed", note=note, result=result)
    result = JobReturn(
        overrides=overrides, hydra_cfg=composed, cfg=composed, working_dir=str(folder), task_name=composed.hydra.job.name
    )
    return Job(number, own, folder, result=result)


def report_on(sweep: Path) -> None:
    """Write the sweep's report.html and log its path; best effort."""
    from genimg.reporting import write_report  # imported here, because it needs numpy and pillow

    try:
        log.info("report: %s", write_report([sweep], sweep / "report.html").html)
    except Exception as error:  # the jobs are complete even if the report fails
        log.warning("report.html cannot be written (%s)", error)


def table_of(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a sweep's table by job number; empty if there is no table."""
    return {row["job"]: row for row in rows_of(path) if re.fullmatch(r"\d{1,9}", row["job"])}


def write_table(jobs: Iterable[Job], path: Path) -> None:
    """Write a row for each job: number, status, best value, directory, reason of a failure, overrides.

    Args:
        jobs: Jobs whose rows are written; existing rows of other jobs are kept.
        path: Path of the CSV file.
    """
    rows = table_of(path)
    for job in jobs:
        value, directory = job.value(), os.path.relpath(job.folder, path.parent)
        best = "" if value is None else f"{value:.8g}"
        row = [str(job.number), job.status, best, directory, job.note, " ".join(job.overrides)]
        rows[str(job.number)] = dict(zip(TITLES, row, strict=True))
    cells = [{title: neutral(cell) for title, cell in row.items()} for row in rows.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, TITLES, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(sorted(cells, key=lambda row: int(row["job"])))
