"""Find the runs of a report in directories: runs themselves, sweeps, and folders of either."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genimg.errors import ConfigError, DataError
from genimg.reporting.run_files import is_run, read_run
from genimg.reporting.runs import Run
from genimg.utils.sweep_table import rows_of

_DEPTH = 3  # levels below a directory that are searched for runs: outputs/multirun/DATE/TIME/JOB
_INSIDE_A_RUN = {"checkpoints", "tensorboard", "samples", ".hydra"}
_OVERRIDE = re.compile(r"\s+(?=[+~]{0,2}[A-Za-z_][\w./@-]*=)")


@dataclass(frozen=True)
class Collection:
    """The runs of a report.

    Attributes:
        directories: Directories as given.
        runs: Runs in the order of the directories.
        is_sweep: Whether the only directory is that of a sweep.
    """

    directories: list[Path]
    runs: list[Run]
    is_sweep: bool


def find_runs(directories: Sequence[Path]) -> Collection:
    """Read all runs of the directories, each run once.

    Raises:
        ConfigError: If no directory is given.
        DataError: If a directory does not exist, or holds neither a run nor a sweep.
    """
    if not directories:
        raise ConfigError("no run is given: genimg-report RUN_OR_SWEEP_DIR ...", key="runs")
    found: list[tuple[Path, Path, dict[str, str]]] = []  # given directory, run's folder, row of the sweep's table
    for directory in directories:
        if not directory.exists():
            raise DataError(f"{directory} does not exist: give the directory of a run or of a sweep", key="runs")
        if not directory.is_dir():
            raise DataError(f"{directory} is a file: give the directory of a run or of a sweep", key="runs")
        members = [(directory, {})] if is_run(directory) else list(_members(directory))
        if not members:
            raise DataError(
                f"{directory} holds neither a run nor a sweep: a run's directory has a config.yaml and a metrics.jsonl, a "
                "sweep's has a directory for each job",
                key="runs",
            )
        found += [(directory, folder, row) for folder, row in members]
    unique: dict[Path, tuple[Path, Path, dict[str, str]]] = {}
    for each in found:
        unique.setdefault(each[1].resolve(), each)
    chosen = list(unique.values())
    labels = _labels([(directory, folder) for directory, folder, _ in chosen], several=len(directories) > 1)
    runs = [_read(folder, label, row) for (_, folder, row), label in zip(chosen, labels, strict=True)]
    return Collection(list(directories), runs, is_sweep=len(directories) == 1 and _is_sweep(directories[0]))


def _is_sweep(directory: Path) -> bool:
    """Return whether Hydra or its launcher marked a directory as a sweep; runs elsewhere may be unrelated."""
    return any((directory / name).is_file() for name in ("multirun.yaml", "sweep.csv"))


def _members(directory: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield runs below a directory in natural order, each with its row in the table of its sweep."""
    rows = {directory / row["directory"]: row for row in rows_of(directory / "sweep.csv")}
    folders = list(_runs_below(directory, _DEPTH))
    for folder in sorted({*folders, *rows}, key=lambda each: _natural(each.relative_to(directory))):
        table = rows or {folder.parent / row["directory"]: row for row in rows_of(folder.parent / "sweep.csv")}
        yield folder, table.get(folder, {})


def _runs_below(directory: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False) or entry.name in _INSIDE_A_RUN:
            continue
        path = directory / entry.name
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _runs_below(path, depth - 1)


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


def _labels(pairs: Sequence[tuple[Path, Path]], *, several: bool) -> list[str]:
    """Return the shortest unique names of the runs."""
    labels = [folder.name if folder.name not in ("", "..") else folder.resolve().name for _, folder in pairs]
    if len(set(labels)) == len(labels):
        return labels
    if not several:
        return [str(folder.relative_to(directory)) for directory, folder in pairs]
    common = os.path.commonpath([folder.resolve() for _, folder in pairs])
    return [os.path.relpath(folder.resolve(), common) for _, folder in pairs]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that puts job 10 after job 9."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
