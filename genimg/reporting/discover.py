"""Find the runs of a report in directories: runs themselves, sweeps, and folders of either."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from genimg.errors import ConfigError, DataError
from genimg.reporting.run_files import is_run, read_run
from genimg.reporting.runs import Run
from genimg.utils.sweep_table import rows_of

_DEPTH = 3  # levels below a directory that are searched for runs, as in outputs/multirun/DATE/TIME/JOB
_INSIDE_A_RUN = {"checkpoints", "tensorboard", "samples", ".hydra"}
_OVERRIDE = re.compile(r"\s+(?=[+~]{0,2}[A-Za-z_][\w./@-]*=)")


def find_runs(directories: Sequence[Path]) -> list[Run]:
    """Read all runs of the directories, in the order of the directories, and each run once.

    Raises:
        ConfigError: If no directory is given.
        DataError: If a directory does not exist, or holds neither a run nor a sweep.
    """
    if not directories:
        raise ConfigError("no run is given: genimg-report RUN_OR_SWEEP_DIR ...", key="runs")
    found: dict[Path, tuple[Path, dict[str, str]]] = {}  # run's folder, row of the sweep's table
    for directory in directories:
        if not directory.is_dir():
            problem = "is a file" if directory.exists() else "does not exist"
            raise DataError(f"{directory} {problem}: give the directory of a run or of a sweep", key="runs")
        members = [(directory, {})] if is_run(directory) else list(_members(directory))
        if not members:
            raise DataError(
                f"{directory} holds neither a run nor a sweep: a run's directory has a config.yaml and a metrics.jsonl, a "
                "sweep's has a directory for each job",
                key="runs",
            )
        for folder, row in members:
            found.setdefault(folder.resolve(), (folder, row))
    labels = [folder_name(folder) for folder, _ in found.values()]
    if len(set(labels)) < len(labels):
        common = os.path.commonpath(found)
        labels = [os.path.relpath(folder, common) for folder in found]
    return [_read(folder, label, row) for (folder, row), label in zip(found.values(), labels, strict=True)]


def is_sweep(directory: Path) -> bool:
    """Return whether Hydra or its launcher marked a directory as a sweep; runs elsewhere may be unrelated."""
    return any((directory / name).is_file() for name in ("multirun.yaml", "sweep.csv"))


def _members(directory: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield runs below a directory in natural order, each with its row in the table of its sweep."""
    rows = {directory / row["directory"]: row for row in rows_of(directory / "sweep.csv")}
    folders = list(_runs_below(directory))
    for folder in sorted({*folders, *rows}, key=lambda each: _natural(each.relative_to(directory))):
        table = rows or {folder.parent / row["directory"]: row for row in rows_of(folder.parent / "sweep.csv")}
        yield folder, table.get(folder, {})


def _runs_below(directory: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(directory):
        folder = Path(parent)
        if folder != directory and is_run(folder):
            yield folder
            names.clear()
        elif len(folder.relative_to(directory).parts) == _DEPTH:
            names.clear()
        names[:] = [name for name in names if name not in _INSIDE_A_RUN]


def _read(folder: Path, label: str, row: dict[str, str]) -> Run:
    run = read_run(folder, label)
    if not row:
        return run
    if not run.overrides and row.get("overrides"):
        run.overrides = [each for each in _OVERRIDE.split(row["overrides"].strip()) if each]
    recorded = row.get("status") or ""
    # The launcher recorded how the process ended, but the run may have been resumed since.
    if recorded == "failed" and run.status in ("unfinished", "not started", "failed", "in progress"):
        run.status = "failed"
    if recorded == "pruned" and run.status != "completed":
        run.status, run.reason = "pruned", row.get("note") or ""
    if recorded in ("failed", "stopped") and run.status in ("failed", "unfinished") and row.get("note"):
        run.reason = row["note"]
    return run


def folder_name(folder: Path) -> str:
    """Return the last part of a path, even of a relative path such as ``..``."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _natural(path: Path) -> list[int | str]:
    """Return a sort key that puts job 10 after job 9."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", str(path)))]
