"""Read a run directory in any state, without trusting its files."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from genimg.reporting.runs import Run, finite_numbers
from genimg.reporting.surface import FILE, Surface, read_surface
from genimg.utils.durations import time_in_words
from genimg.utils.json_text import parse_json
from genimg.utils.regular_files import UnsafeFileError, open_regular, refuse_links, require_at_most

log = logging.getLogger(__name__)

_MARKS = ("summary.json", "metrics.jsonl", "config.yaml", ".hydra/overrides.yaml", "console.log")
_ALIVE_SECONDS = 600  # a run without summary counts as in progress this long after its last write; evaluations take minutes
_PICTURE = re.compile(r"(.+)-(\d{9,})\.png")
_MAX_BYTES = 2**29  # maximum size of a file; metrics.jsonl is the largest
_DEEPEST = 64  # maximum depth of mappings and lists in a config
_LOG_TAIL = 65536  # bytes at the end of a log that are searched for an error
_ERROR = re.compile(
    r"^(?:[\d\- :,]+ERROR )?(?:genimg-train: error|this job failed(?: (?:because of|by) a bug, \w+)?): (.*)$", re.MULTILINE
)
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception): (.*)$", re.MULTILINE)


def is_run(folder: Path) -> bool:
    """Return whether a directory holds files of a run."""
    return any((folder / mark).is_file() for mark in _MARKS)


def read_run(folder: Path, label: str) -> Run:
    """Read a run directory. The report shows it as ``label``; fields of missing or damaged files are empty."""
    run = Run(folder, label)
    run.config_text = _text(folder, "config.yaml")
    run.config = _mapping(_yaml(run.config_text))
    listed = _yaml(_text(folder, ".hydra/overrides.yaml"))
    run.overrides = [str(each) for each in listed if not str(each).startswith("run_dir=")] if isinstance(listed, list) else []
    run.records = list(_records(_text(folder, "metrics.jsonl")))
    run.summary = _summary(_json(_text(folder, "summary.json")))
    run.pictures = _pictures(folder)
    run.surface = _surface(folder)
    run.status, run.reason = _status(run)
    return run


_SUMMARY: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("status", "primary", "storage", "git_commit"), lambda value: value if isinstance(value, str) else None),
    **dict.fromkeys(("images", "steps", "best_images", "num_evaluations", "processes", "seed"), lambda value: _count(value)),
    **dict.fromkeys(("best", "last"), lambda value: finite_numbers(value) or None),
    **dict.fromkeys(("training_images_per_second", "data_wait_share", "evaluation_seconds"),
                    lambda value: finite_numbers({"": value}).get("")),
    "higher_is_better": lambda value: value if isinstance(value, bool) else None,
    "provenance": lambda value: _mapping(value),
    "data": lambda value: {"name": str(_mapping(value).get("name") or ""),
                           **{key: _count(_mapping(value).get(key)) for key in ("num_images", "part_of")}},
    "final": lambda value: {name: _mapping(_mapping(value).get(name)) for name in ("metrics", "provenance")},
    **dict.fromkeys(("versions", "hardware"),
                    lambda value: {str(k): str(v) for k, v in _mapping(value).items() if v not in (None, "")} or None),
}  # fmt: skip


def _summary(found: Any) -> dict[str, Any]:
    """Return the entries of summary.json that a report reads, except those with a wrong type."""
    values = {key: read(_mapping(found)[key]) for key, read in _SUMMARY.items() if key in _mapping(found)}
    return {key: value for key, value in values.items() if value is not None}


def _status(run: Run) -> tuple[str, str]:
    """Return the status of a run, and the reason for it."""
    summary, records = run.folder / "summary.json", run.folder / "metrics.jsonl"
    written = [path.stat().st_mtime for path in (records, run.folder / "train.log") if path.is_file()]
    age = time.time() - max(written) if written else None
    status = run.summary.get("status")
    goes_on = bool(run.records) and run.records[-1]["images"] > (run.summary.get("images") or 0)
    if status is not None and not (goes_on and records.stat().st_mtime > summary.stat().st_mtime):
        if status in ("stopped", "interrupted"):
            return status, f"at {run.images:,} images; its checkpoint can be resumed"
        return status, "" if status == "completed" else _error(run.folder)
    error = _error(run.folder)
    if error and not run.records:
        return "failed", error
    if age is None:
        return "not started", error
    if age < _ALIVE_SECONDS:
        return "in progress", f"last written {time_in_words(age)} ago"
    return "unfinished", error or f"ended without a summary; last written {time_in_words(age)} ago"


def _error(folder: Path) -> str:
    """Return the last error in a run's logs, or an empty string if there is none."""
    texts = [_text(folder, name, tail=True) for name in ("console.log", "train.log")]
    found = [_ERROR.findall(text) for text in texts] + [_EXCEPTION.findall(texts[1])]  # the last lines of tracebacks
    return next((str(each[-1]).strip() for each in found if each), "")


def _records(text: str) -> Iterator[dict[str, Any]]:
    """Yield the records of metrics.jsonl that count images; a killed run can leave an incomplete last line."""
    for line in text.splitlines():
        record = _json(line)
        if isinstance(record, dict) and _count(record.get("images")) is not None:
            yield record


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    samples = folder / "samples"
    for path in [] if _is_unsafe(samples, folder) else sorted(samples.glob("*.png")):
        if (match := _PICTURE.fullmatch(path.name)) and not _is_unsafe(path, folder) and path.is_file():
            found.setdefault(match.group(1), {})[int(match.group(2))] = path
    return found


def _surface(folder: Path) -> Surface | None:
    """Return the run's operating surface; None if there is none, or if its file is damaged or unsafe to read."""
    try:
        found = read_surface(folder / FILE, below=folder)
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
        return None
    except OSError:
        return None
    return found if found is not None and found.points else None


def _is_unsafe(path: Path, folder: Path) -> bool:
    """Return whether a file of a run is a link, and log a warning if it is."""
    try:
        refuse_links(path, below=folder)
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
        return True
    return False


def _text(folder: Path, name: str, *, tail: bool = False) -> str:
    """Return the text of a run's file, or of its end; empty if it is missing or unsafe to read (which logs a warning)."""
    try:
        with open_regular(folder / name, below=folder) as file:
            if tail:
                file.seek(max(0, file.seek(0, 2) - _LOG_TAIL))
            else:
                require_at_most(folder / name, file, _MAX_BYTES)
            return file.read(_LOG_TAIL if tail else _MAX_BYTES).decode("utf-8", errors="replace")
    except UnsafeFileError as error:
        log.warning("skipped: %s", error)
    except OSError:
        pass
    return ""


def _count(value: Any) -> int | None:
    """Return a value if it is a valid count, else None."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _yaml(text: str) -> Any:
    """Parse YAML; return None if it is invalid, too deep, or has aliases, which can make a few lines grow exponentially."""
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
