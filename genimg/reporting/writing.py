"""Write the report of run directories to files."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import genimg
from genimg.errors import ConfigError
from genimg.reporting.collecting import collect
from genimg.reporting.importance import importances, noise_floor
from genimg.reporting.page import Subject, page
from genimg.reporting.pictures import gallery
from genimg.reporting.ranking import rank
from genimg.reporting.settings import swept_settings
from genimg.reporting.tables import as_csv, as_markdown
from genimg.utils.environment import git_commit
from genimg.utils.files import atomically
from genimg.utils.terminal import visible


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        html, csv, markdown: Paths of the files.
        subject: Contents of the files.
    """

    html: Path
    csv: Path
    markdown: Path
    subject: Subject


_MADE = "Written by genimg-report"


def write_report(directories: Sequence[Path], output: Path) -> Report:
    """Write the report of runs, sweeps or folders of either. Each of its three files is written atomically.

    Args:
        directories: Directories of runs or sweeps.
        output: Path of the page, ``.html``; the CSV and Markdown files get the same name beside it.

    Raises:
        DataError: If a directory does not exist, or holds neither a run nor a sweep.
        ConfigError: If ``output`` is not the name of a page or cannot be written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output={output} must name a file that ends in .html")
    if output.is_dir():
        raise ConfigError(f"output={output} is a directory: name a file in it, such as {output / 'report.html'}")
    subject = _subject(directories)
    _check_writable(output)
    report = Report(output, output.with_suffix(".csv"), output.with_suffix(".md"), subject)
    _refuse_to_overwrite(report)
    content = {
        report.html: page(subject, gallery(subject.collection.runs)),
        report.csv: as_csv(subject),
        report.markdown: as_markdown(subject, output.parent),
    }
    for path, text in content.items():
        with atomically(path) as temporary:
            temporary.write_text(visible(text), encoding="utf-8", errors="replace", newline="")  # JSON can hold lone surrogates
    return report


def _refuse_to_overwrite(report: Report) -> None:
    """Refuse to replace files that are not an earlier report."""
    is_report = report.html.is_file() and _MADE in report.html.read_text(encoding="utf-8", errors="replace")
    for path in (report.html, report.csv, report.markdown):
        if path.exists() and not is_report:
            raise ConfigError(f"output={report.html}: {path} exists and is no report of genimg's: choose another output")


def _check_writable(output: Path) -> None:
    """Check, before the work, that the nearest existing parent is a writable directory."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "may not be written to" if folder.is_dir() else "is a file"
        raise ConfigError(f"output={output} cannot be written, because {folder} {reason}: choose another output")


def _subject(directories: Sequence[Path]) -> Subject:
    collection = collect(directories)
    ranking = rank(collection.runs)
    swept = swept_settings(collection.runs) if len(collection.runs) > 1 else {}
    values = [None if each.value is None else each.value.number for each in ranking.in_given_order]
    commit = git_commit()
    version = f"genimg {genimg.__version__}" + (
        f", commit {commit[:12]}{'-dirty' * commit.endswith('-dirty')}" if commit else ""
    )
    made = f"{_MADE} on {time.strftime('%Y-%m-%d at %H:%M:%S %Z')} ({version})."
    return Subject(
        collection,
        ranking,
        swept,
        importances(swept, values),
        noise_floor(swept, values),
        _title(collection.directories, len(collection.runs)),
        made,
    )


def _title(directories: Sequence[Path], num_runs: int) -> str:
    names = [each.name if each.name not in ("", "..") else each.resolve().name for each in directories]
    if len(names) == 1:
        return names[0] if num_runs == 1 else f"{names[0]}: {num_runs} runs"
    return " and ".join(names) if len(names) == 2 else f"{num_runs} runs: {names[0]}, {names[1]} and {len(names) - 2} more"
