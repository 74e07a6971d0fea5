"""A run directory as its report sees it, whatever state the run is in."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from genimg.reporting.directions import declared_direction
from genimg.utils.mappings import flatten

_MARKS = ("summary.json", "metrics.jsonl", "config.yaml", ".hydra/overrides.yaml", "console.log")
_ALIVE_SECONDS = 600  # since a run without an end wrote its last line; a slow evaluation may take minutes
_PICTURE = re.compile(r"(.+)-(\d{9,})\.png")
_LOG_TAIL = 65536  # bytes of a log that are searched for an error
_ERROR = re.compile(r"^(?:[\d\- :,]+ERROR )?(?:genimg-train: error|this job failed(?: by a bug, \w+)?): (.*)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception): (.*)$", re.MULTILINE)
FAILED = ("failed", "diverged", "unfinished")
"""Statuses of runs that ended without reaching what they were for."""


@dataclass(frozen=True)
class Value:
    """A measured number.

    Attributes:
        number: as it was measured.
        low, high: bounds of its 95 % interval, where one was computed.
        deviation: its standard deviation over subsets or splits, where the metric has one.
    """

    number: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Attributes:
        images: seen by the model until then.
        values: by the metric's full name, the primary one first.
        provenance: what they depend on; empty where it is not recorded.
    """

    images: int
    values: dict[str, Value]
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """What a run directory tells.

    Attributes:
        folder: the directory; may be gone, where a sweep's table still names it.
        label: that tells it from the others.
        overrides: of its command line, without ``run_dir``.
        config: the composed config; empty where the run failed before it.
        config_text: the same, as it was written.
        records: of metrics.jsonl, in order.
        summary: what the run wrote at its end; empty before.
        status: completed, stopped, interrupted, diverged, failed, pruned (by the search that it belongs to), in progress,
            unfinished or not started.
        reason: in words, why it did not complete; empty if it did.
        pictures: kind -> images seen -> file.
    """

    folder: Path
    label: str
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    status: str = "not started"
    reason: str = ""
    pictures: dict[str, dict[int, Path]] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config, flat."""
        return flatten(self.config) if self.config else {}

    @cached_property
    def evaluations(self) -> list[Measured]:
        """In order of images seen."""
        return list(_measured(self.records, "evaluation/"))

    @property
    def primary(self) -> str | None:
        """The metric that chooses the best checkpoint; None where nothing was measured."""
        named = self.summary.get("primary")
        values = (
            self.summary.get("best") or self.summary.get("last") or (self.evaluations[0].values if self.evaluations else {})
        )
        return str(named) if named in values else next(iter(values), None)

    @property
    def higher_is_better(self) -> bool | None:
        """Of the primary metric; None where nobody knows."""
        told = self.summary.get("higher_is_better")
        return told if isinstance(told, bool) else declared_direction(self.config.get("evaluation"))

    @property
    def last(self) -> Measured | None:
        """The latest evaluation."""
        if self.evaluations:
            return self.evaluations[-1]
        return self._of_summary("last", self.images)

    @property
    def best(self) -> Measured | None:
        """The evaluation that the run itself calls its best, else the one with the best primary value."""
        images = self.summary.get("best_images")
        if self.status != "in progress" and isinstance(images, int):
            found = next((each for each in self.evaluations if each.images == images), None)
            return found or self._of_summary("best", images)
        name, up = self.primary, self.higher_is_better
        known = [each for each in self.evaluations if name in each.values]
        if not known or name is None or up is None:
            return None
        return (max if up else min)(known, key=lambda each: each.values[name].number)  # the first of equals, as the trainer

    @property
    def num_evaluations(self) -> int | None:
        """Return over how many evaluations the best one was chosen; None where nobody counted them."""
        if self.status != "in progress" and "best_images" in self.summary:
            told = self.summary.get("num_evaluations")
            return told if isinstance(told, int) else None
        return sum(self.primary in each.values for each in self.evaluations)

    @cached_property
    def final(self) -> Measured | None:
        """The evaluation with more images when all was trained, where there was one."""
        recorded = list(_measured(self.records, "final/"))
        if recorded:
            return recorded[-1]
        final = self.summary.get("final") or {}
        values = _with_deviations(_numbers(final.get("metrics", {})))
        return Measured(self.images, values, final.get("provenance", {})) if values else None

    @property
    def images(self) -> int:
        """Seen so far."""
        recorded = self.records[-1]["images"] if self.records else 0
        return max(int(recorded), int(self.summary.get("images") or 0))

    def _of_summary(self, name: str, images: int) -> Measured | None:
        values = _with_deviations(_numbers(self.summary.get(name) or {}))
        return Measured(images, values, self.summary.get("provenance") or {}) if values else None


def is_run(folder: Path) -> bool:
    """Whether a directory holds what a run writes."""
    return any((folder / mark).is_file() for mark in _MARKS)


def read_run(folder: Path, label: str) -> Run:
    """A run directory; what is missing or cut off in it is left empty.

    Args:
        folder: of the run.
        label: to show.
    """
    run = Run(folder, label)
    run.config_text = _text(folder / "config.yaml")
    run.config = _mapping(_yaml(run.config_text))
    listed = _yaml(_text(folder / ".hydra" / "overrides.yaml"))
    run.overrides = [str(each) for each in listed if not str(each).startswith("run_dir=")] if isinstance(listed, list) else []
    run.records = list(_records(folder / "metrics.jsonl"))
    run.summary = _mapping(_json(_text(folder / "summary.json")))
    run.pictures = _pictures(folder / "samples")
    run.status, run.reason = _status(run)
    return run


def _status(run: Run) -> tuple[str, str]:
    """What became of it, and why."""
    summary, records = run.folder / "summary.json", run.folder / "metrics.jsonl"
    written = [path.stat().st_mtime for path in (records, run.folder / "train.log") if path.is_file()]
    age = time.time() - max(written) if written else None
    status = run.summary.get("status")
    goes_on = bool(run.records) and run.records[-1]["images"] > int(run.summary.get("images") or 0)
    if isinstance(status, str) and not (goes_on and records.stat().st_mtime > summary.stat().st_mtime):
        reason = "" if status == "completed" else _reason(run.folder)
        if status in ("stopped", "interrupted"):
            reason = f"at {run.images:,} images; its checkpoint can be resumed"
        return status, reason
    error = _reason(run.folder)
    if error and not run.records:
        return "failed", error
    if age is None:
        return "not started", error
    if age < _ALIVE_SECONDS:
        return "in progress", f"last written {_ago(age)} ago"
    return "unfinished", error or f"ended without a summary; last written {_ago(age)} ago"


def _reason(folder: Path) -> str:
    """The error that a run's logs end with; empty without one."""
    for name in ("console.log", "train.log"):
        text = _tail(folder / name)
        if found := _ERROR.findall(text):
            return str(found[-1]).strip()
    exceptions = _EXCEPTION.findall(_tail(folder / "train.log"))  # the last lines of tracebacks
    return str(exceptions[-1]).strip() if exceptions else ""


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of metrics.jsonl with their clocks; a killed run leaves half a line at the end."""
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("images"), int):
            yield record


def _measured(records: Iterable[Mapping[str, Any]], prefix: str) -> Iterator[Measured]:
    for record in records:
        numbers = _numbers({key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)})
        if values := _with_deviations(numbers):
            yield Measured(int(record["images"]), values, _mapping(record.get("provenance")))


def _with_deviations(numbers: Mapping[str, float]) -> dict[str, Value]:
    """Bounds and deviations stand as metrics of their own beside those that they belong to."""
    belongs = {f"{name}{ending}" for name in numbers for ending in ("_std", "_low", "_high") if f"{name}{ending}" in numbers}
    return {
        name: Value(number, *(numbers.get(f"{name}{ending}") for ending in ("_low", "_high", "_std")))
        for name, number in numbers.items()
        if name not in belongs
    }


def _numbers(found: Any) -> dict[str, float]:
    """The finite numbers of a mapping."""
    return {
        str(key): float(value)
        for key, value in _mapping(found).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else []:
        if match := _PICTURE.fullmatch(path.name):
            found.setdefault(match.group(1), {})[int(match.group(2))] = path
    return found


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return None
