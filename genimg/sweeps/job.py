"""One job of a sweep: an ordinary run in a directory of its own, and what that directory tells of it."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from genimg.files import atomically

log = logging.getLogger(__name__)

_TAIL = 65536  # bytes of a run's metrics that are looked at
_MOST_WORDS = 60  # characters of a job's overrides in the table
_METRIC = "evaluation/"
_TITLES = ["job", "status", "best", "directory", "note", "overrides"]


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        number: in the sweep, from 0.
        overrides: of its run.
        folder: its run directory.
        own: those overrides that not all jobs have.
        status: ``waiting``, ``running``, ``complete``, ``failed``, ``stopped`` or ``pruned``.
        note: why it failed or was pruned.
        slot: of the queue; an index of a GPU, where there are some.
        said_before: bytes in its console.log of earlier launches.
        images_before: that earlier launches had trained.
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
    said_before: int = 0
    images_before: int = 0
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
        for record in self._records():
            images = record.get("images", images)
            first = next((key for key in record if key.startswith(_METRIC)), None)
            metric = metric if first is None else f"{first.removeprefix(_METRIC)} {record[first]:.5g}"
        return images, metric

    def measured(self) -> dict[int, float]:
        """Images -> the evaluator's first metric, of its latest evaluations."""
        found = {}
        for record in self._records():
            first = next((key for key in record if key.startswith(_METRIC)), None)
            if first is not None:
                found[int(record["images"])] = float(record[first])
        return found

    def _records(self) -> Iterator[dict[str, Any]]:
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:  # the first and the last may be cut
                continue

    def console(self) -> str:
        """What its run has printed since this launch."""
        try:
            with (self.folder / "console.log").open("rb") as file:
                file.seek(self.said_before)
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def duration(self) -> int | None:
        """Images of its whole training, as it said when it started."""
        found = re.findall(r"^training for .*: (\d+) images in ", self.console(), re.MULTILINE)
        return int(found[-1]) if found else None


def compose_job(context: HydraContext, config: DictConfig, number: int, overrides: Sequence[str]) -> Job:
    """A job with the directory that Hydra's config gives it.

    Args:
        context, config: of the sweep.
        number: of the job.
        overrides: of the job, those of all jobs included.
    """
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id, composed.hydra.job.num = str(number), number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # which the name of the directory refers to
    folder = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir)).resolve()
    HydraConfig.instance().cfg = before
    # Without the sweep, which would make a sweep of every job.
    own = [each for each in filter_overrides(list(overrides)) if not each.startswith(("hydra/", "run_dir=", "sweep="))]
    result = JobReturn(
        overrides=overrides, hydra_cfg=composed, cfg=composed, working_dir=str(folder), task_name=composed.hydra.job.name
    )
    return Job(number, own, folder, result=result)


def report_on(sweep: Path) -> None:
    """Write the sweep's report.html, and say where; a sweep is no worse for the lack of it."""
    from genimg.reporting import write_report  # numpy and pillow, which no other command needs for this

    try:
        log.info("report: %s", write_report([sweep], sweep / "report.html").html)
    except (OSError, ValueError) as error:
        log.warning("report.html cannot be written (%s)", error)


def write_table(jobs: Iterable[Job], path: Path, *, keep: bool = False) -> None:
    """A line for each job: number, status, best value, directory, reason of a failure, overrides.

    Args:
        jobs: of which lines are written.
        path: of the CSV file.
        keep: lines of other jobs that stand there, which were a sweeper's earlier batches.
    """
    rows: list[list[str]] = []
    for job in jobs:
        value = job.value()
        rows.append([str(job.number), job.status, "" if value is None else f"{value:.8g}", job.folder.name, job.note,
                     " ".join(job.overrides)])  # fmt: skip
    if keep and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            numbers = {row[0] for row in rows}
            rows = [row for row in list(csv.reader(file))[1:] if row and row[0] not in numbers] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([_TITLES, *rows])
