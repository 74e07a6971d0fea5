"""One job of a sweep: an ordinary run in a directory of its own, and what that directory tells of it."""

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
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from genimg.config.messages import explain
from genimg.utils.csv_cells import neutral
from genimg.utils.files import atomically
from genimg.utils.json_text import parse_json
from genimg.utils.regular_files import UnsafeFileError, open_regular, read_regular
from genimg.utils.sweep_table import TITLES, rows_of

log = logging.getLogger(__name__)

_MOST_WORDS = 60  # characters of a job's overrides in the table
_METRIC = "evaluation/"
_MOST_SUMMARY = 2**24  # bytes


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        number: in the sweep, from 0.
        overrides: of its run.
        folder: its run directory.
        own: those overrides that not all jobs have.
        status: ``waiting``, ``running``, ``completed``, ``failed``, ``stopped`` or ``pruned``.
        note: why it failed or was pruned.
        has_bug: Whether it failed by a bug, not by a setting that cannot work.
        slot: of the queue; an index of a GPU, where there are some.
        is_stopped: together with the sweep.
        hopeless: why it is being stopped before its end.
        said_before: bytes in its console.log of earlier launches.
        images: trained so far, as far as its run has recorded.
        images_before: of those, in earlier launches.
        metric: the name of its evaluator's first metric.
        measured: images -> that metric.
    """

    number: int
    overrides: list[str]
    folder: Path
    own: list[str] = field(default_factory=list)
    status: str = "waiting"
    note: str = ""
    has_bug: bool = False
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
        """What makes it another job than the others, shortened."""
        text = " ".join(self.own)
        return text if len(text) <= _MOST_WORDS else text[: _MOST_WORDS - 1] + "…"

    @property
    def outcome(self) -> str:
        """How it ended, for a line about it."""
        value = self.value()
        result = "" if value is None else f", best {value:.6g}"
        return self.status + result + (f" ({self.note})" if self.note else "")

    def summary(self) -> dict[str, Any]:
        """What its run wrote at its end; empty where it has not ended, or was of other overrides."""
        try:
            found = parse_json(read_regular(self.folder / "summary.json", below=self.folder, most=_MOST_SUMMARY))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("overrides") == self.overrides else {}

    def value(self) -> float | None:
        """The best value of the evaluator's first metric; None without evaluation."""
        best = self.summary().get("best")
        value = next(iter(best.values()), None) if isinstance(best, dict) else None
        return value if isinstance(value, int | float) else None

    def look(self) -> None:
        """Read what its run has recorded since the last look: ``images``, ``metric`` and ``measured``."""
        try:
            with open_regular(self.folder / "metrics.jsonl", below=self.folder) as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._read:  # a continued run has dropped what it is about to repeat
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
        """What its run has printed since this launch."""
        try:
            with open_regular(self.folder / "console.log", below=self.folder) as file:
                file.seek(self.said_before)
                return file.read().decode("utf-8", errors="replace")
        except (OSError, UnsafeFileError):
            return ""

    def duration(self) -> int | None:
        """Images of its whole training, as it said when it started."""
        found = re.findall(r"^training for .*: (\d+) images in ", self.console(), re.MULTILINE)
        return int(found[-1]) if found else None


def compose_job(context: HydraContext, config: DictConfig, number: int, overrides: Sequence[str]) -> Job:
    """A job with the directory that Hydra's config gives it; one that has failed if its overrides do not compose.

    Args:
        context, config: of the sweep.
        number: of the job.
        overrides: of the job, those of all jobs included.
    """
    # Without the sweep, which would make a sweep of every job.
    own = [each for each in filter_overrides(list(overrides)) if not each.startswith(("hydra/", "run_dir=", "sweep="))]
    try:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)  # which the name of the directory refers to
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
    """Write the sweep's report.html, and say where; best effort."""
    from genimg.reporting import write_report  # numpy and pillow, which no other command needs for this

    try:
        log.info("report: %s", write_report([sweep], sweep / "report.html").html)
    except Exception as error:  # whatever it is, the jobs have done their work
        log.warning("report.html cannot be written (%s)", error)


def table_of(path: Path) -> dict[str, dict[str, str]]:
    """Number of the job -> its line in a sweep's table; empty where there is none."""
    return {row["job"]: row for row in rows_of(path) if re.fullmatch(r"\d{1,9}", row["job"])}


def write_table(jobs: Iterable[Job], path: Path) -> None:
    """A line for each job: number, status, best value, directory, reason of a failure, overrides.

    Args:
        jobs: of which lines are written; those of other jobs that stand there are kept.
        path: of the CSV file.
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
