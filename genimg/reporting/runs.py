"""A run directory as its report sees it, whatever state the run is in."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from genimg.reporting.directions import declared_direction
from genimg.utils.json_text import parse_json
from genimg.utils.mappings import flatten
from genimg.utils.regular_files import UnsafeFileError, open_regular, read_regular, refuse_links

log = logging.getLogger(__name__)

_MARKS = ("summary.json", "metrics.jsonl", "config.yaml", ".hydra/overrides.yaml", "console.log")
_ALIVE_SECONDS = 600  # since a run without an end wrote its last line; a slow evaluation may take minutes
_PICTURE = re.compile(r"(.+)-(\d{9,})\.png")
_MOST_BYTES = 2**29  # of a file; metrics.jsonl is the largest
_DEEPEST = 64  # mappings and lists in a config
_GREATEST = 1e300  # number that can be drawn
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
    run.config_text = _text(folder, "config.yaml")
    run.config = _mapping(_yaml(run.config_text))
    listed = _yaml(_text(folder, ".hydra/overrides.yaml"))
    run.overrides = [str(each) for each in listed if not str(each).startswith("run_dir=")] if isinstance(listed, list) else []
    run.records = list(_records(_text(folder, "metrics.jsonl")))
    run.summary = _summary(_json(_text(folder, "summary.json")))
    run.pictures = _pictures(folder)
    run.status, run.reason = _status(run)
    return run


_SUMMARY: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("status", "primary", "storage", "git_commit"), lambda value: value if isinstance(value, str) else None),
    **dict.fromkeys(("images", "steps", "best_images", "num_evaluations", "processes", "seed"), lambda value: _count(value)),
    **dict.fromkeys(("best", "last"), lambda value: _numbers(value) or None),
    **dict.fromkeys(("training_images_per_second", "data_wait_share", "evaluation_seconds"),
                    lambda value: _numbers({"": value}).get("")),
    "higher_is_better": lambda value: value if isinstance(value, bool) else None,
    "provenance": lambda value: _mapping(value),
    "versions": lambda value: {str(name): str(version) for name, version in _mapping(value).items()},
    "final": lambda value: {name: _mapping(_mapping(value).get(name)) for name in ("metrics", "provenance")},
    "hardware": lambda value: {str(name): str(each) for name, each in _mapping(value).items()} or None,
}  # fmt: skip


def _summary(found: Any) -> dict[str, Any]:
    """Return what a report reads of summary.json, each entry only where it is of its type."""
    values = {key: read(_mapping(found)[key]) for key, read in _SUMMARY.items() if key in _mapping(found)}
    return {key: value for key, value in values.items() if value is not None}


def _status(run: Run) -> tuple[str, str]:
    """What became of it, and why."""
    summary, records = run.folder / "summary.json", run.folder / "metrics.jsonl"
    written = [path.stat().st_mtime for path in (records, run.folder / "train.log") if path.is_file()]
    age = time.time() - max(written) if written else None
    status = run.summary.get("status")
    goes_on = bool(run.records) and run.records[-1]["images"] > (_count(run.summary.get("images")) or 0)
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
        text = _tail(folder, name)
        if found := _ERROR.findall(text):
            return str(found[-1]).strip()
    exceptions = _EXCEPTION.findall(_tail(folder, "train.log"))  # the last lines of tracebacks
    return str(exceptions[-1]).strip() if exceptions else ""


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _records(text: str) -> Iterator[dict[str, Any]]:
    """Whole lines of metrics.jsonl with their clocks; a killed run leaves half a line at the end."""
    for line in text.splitlines():
        record = _json(line)
        if isinstance(record, dict) and _count(record.get("images")) is not None:
            yield record


def _count(value: Any) -> int | None:
    """Return a number of images; None if it is none."""
    return value if type(value) is int and 0 <= value < 2**63 else None


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
        if type(value) in (int, float) and abs(value) < _GREATEST
    }


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    samples = folder / "samples"
    if not samples.is_dir() or _is_unsafe(samples, folder):
        return found
    for path in sorted(samples.glob("*.png")):
        if (match := _PICTURE.fullmatch(path.name)) and not _is_unsafe(path, folder) and path.is_file():
            found.setdefault(match.group(1), {})[int(match.group(2))] = path
    return found


def _is_unsafe(path: Path, folder: Path) -> bool:
    """Whether a file of a run is a link, which is said."""
    try:
        refuse_links(path, below=folder)
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
        return True
    return False


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(folder: Path, name: str) -> str:
    """Return the text of a file of a run; empty where there is none, or none that may be read, which is said."""
    try:
        return read_regular(folder / name, below=folder, most=_MOST_BYTES).decode("utf-8", errors="replace")
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
    except OSError:
        pass
    return ""


def _tail(folder: Path, name: str) -> str:
    try:
        with open_regular(folder / name, below=folder) as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_TAIL))
            return file.read(_LOG_TAIL).decode("utf-8", errors="replace")
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
    except OSError:
        pass
    return ""


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _yaml(text: str) -> Any:
    """Return what YAML says; None if it is damaged, deep, or refers to its own parts, by which a few lines grow without end."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                return None
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, TypeError):  # ValueError: a date that is none; TypeError: a key that is a list
        return None
