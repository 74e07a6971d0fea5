"""Read a run directory for a report, whatever state the run is in."""

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
_ALIVE_SECONDS = 600  # since its last write, a run without a summary counts as in progress; a slow evaluation takes minutes
_PICTURE = re.compile(r"(.+)-(\d{9,})\.png")
_MOST_BYTES = 2**29  # for a file; metrics.jsonl is the largest
_DEEPEST = 64  # nested mappings and lists in a config
_GREATEST = 1e300  # largest number that can be drawn
_LOG_TAIL = 65536  # bytes at the end of a log that are searched for an error
_ERROR = re.compile(r"^(?:[\d\- :,]+ERROR )?(?:genimg-train: error|this job failed(?: by a bug, \w+)?): (.*)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception): (.*)$", re.MULTILINE)
FAILED = ("failed", "diverged", "unfinished")
"""Statuses of runs that ended before their training was complete."""


@dataclass(frozen=True)
class Value:
    """A measured number.

    Attributes:
        number: The value.
        low, high: Bounds of its 95 % interval, if computed.
        deviation: Standard deviation over subsets or splits, if the metric has one.
    """

    number: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Attributes:
        images: Number of images that the model had seen.
        values: Values by full metric name, the primary metric first.
        provenance: Facts that the values depend on; empty if not recorded.
    """

    images: int
    values: dict[str, Value]
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The contents of a run directory.

    Attributes:
        folder: The directory, which may be missing if a sweep's table still names it.
        label: Name that is unique in the report.
        overrides: Overrides of its command line, without ``run_dir``.
        config: The composed config; empty if the run failed before writing it.
        config_text: Text of the config file.
        records: Records of metrics.jsonl, in order.
        summary: Contents of summary.json, which a run writes at its end; empty before.
        status: completed, stopped, interrupted, diverged, failed, pruned (by its search), in progress, unfinished or not
            started.
        reason: Why it did not complete, in words; empty if it did.
        pictures: Files by kind and number of images seen.
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
        """The config as a flat mapping of dotted keys."""
        return flatten(self.config) if self.config else {}

    @cached_property
    def evaluations(self) -> list[Measured]:
        """All evaluations during the training, in order of images seen."""
        return list(_measured(self.records, "evaluation/"))

    @property
    def primary(self) -> str | None:
        """The metric that chooses the best checkpoint; None if nothing was measured."""
        named = self.summary.get("primary")
        values = (
            self.summary.get("best") or self.summary.get("last") or (self.evaluations[0].values if self.evaluations else {})
        )
        return str(named) if named in values else next(iter(values), None)

    @property
    def higher_is_better(self) -> bool | None:
        """Whether higher values of the primary metric are better; None if unknown."""
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
        """The evaluation recorded as the best, or else the one with the best primary value."""
        images = self.summary.get("best_images")
        if self.status != "in progress" and isinstance(images, int):
            found = next((each for each in self.evaluations if each.images == images), None)
            return found or self._of_summary("best", images)
        name, up = self.primary, self.higher_is_better
        known = [each for each in self.evaluations if name in each.values]
        if not known or name is None or up is None:
            return None
        return (max if up else min)(known, key=lambda each: each.values[name].number)  # the first of equals, as in the trainer

    @property
    def num_evaluations(self) -> int | None:
        """The number of evaluations that the best was chosen from; None if unknown."""
        if self.status != "in progress" and "best_images" in self.summary:
            told = self.summary.get("num_evaluations")
            return told if isinstance(told, int) else None
        return sum(self.primary in each.values for each in self.evaluations)

    @cached_property
    def final(self) -> Measured | None:
        """The evaluation with more images at the end of the training, if there was one."""
        recorded = list(_measured(self.records, "final/"))
        if recorded:
            return recorded[-1]
        final = self.summary.get("final") or {}
        values = _with_deviations(_numbers(final.get("metrics", {})))
        return Measured(self.images, values, final.get("provenance", {})) if values else None

    @property
    def images(self) -> int:
        """Number of images seen so far."""
        recorded = self.records[-1]["images"] if self.records else 0
        return max(int(recorded), int(self.summary.get("images") or 0))

    def _of_summary(self, name: str, images: int) -> Measured | None:
        values = _with_deviations(_numbers(self.summary.get(name) or {}))
        return Measured(images, values, self.summary.get("provenance") or {}) if values else None


def is_run(folder: Path) -> bool:
    """Return whether a directory holds files of a run."""
    return any((folder / mark).is_file() for mark in _MARKS)


def read_run(folder: Path, label: str) -> Run:
    """Read a run directory; missing or damaged files leave their fields empty.

    Args:
        folder: The run directory.
        label: Name of the run in the report.
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
    """Return the entries of summary.json that a report reads, without those of a wrong type."""
    values = {key: read(_mapping(found)[key]) for key, read in _SUMMARY.items() if key in _mapping(found)}
    return {key: value for key, value in values.items() if value is not None}


def _status(run: Run) -> tuple[str, str]:
    """Return the status of a run, and the reason."""
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
    """Return the last error in a run's logs, or an empty string without one."""
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
    """Yield the records of metrics.jsonl that count images; a killed run can leave an incomplete last line."""
    for line in text.splitlines():
        record = _json(line)
        if isinstance(record, dict) and _count(record.get("images")) is not None:
            yield record


def _count(value: Any) -> int | None:
    """Return a value if it is a valid count, else None."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def _measured(records: Iterable[Mapping[str, Any]], prefix: str) -> Iterator[Measured]:
    for record in records:
        numbers = _numbers({key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)})
        if values := _with_deviations(numbers):
            yield Measured(int(record["images"]), values, _mapping(record.get("provenance")))


def _with_deviations(numbers: Mapping[str, float]) -> dict[str, Value]:
    """Combine metrics with their bounds and deviations, which are recorded as separate metrics."""
    belongs = {f"{name}{ending}" for name in numbers for ending in ("_std", "_low", "_high") if f"{name}{ending}" in numbers}
    return {
        name: Value(number, *(numbers.get(f"{name}{ending}") for ending in ("_low", "_high", "_std")))
        for name, number in numbers.items()
        if name not in belongs
    }


def _numbers(found: Any) -> dict[str, float]:
    """Return the finite numbers in a mapping."""
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
    """Return whether a file of a run is a link, with a warning if so."""
    try:
        refuse_links(path, below=folder)
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
        return True
    return False


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(folder: Path, name: str) -> str:
    """Return the text of a run's file, or an empty string if it is missing or, with a warning, unsafe to read."""
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
    """Parse YAML; return None if it is invalid, too deep, or has aliases, with which a few lines can grow exponentially."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                return None
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, TypeError):  # ValueError: an invalid date; TypeError: a key that is a list
        return None
