"""Write the report of run directories: a self-contained page that makes no requests, a CSV file and a Markdown file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import genimg
from genimg.errors import ConfigError
from genimg.reporting import curves, surface_chart, text
from genimg.reporting.csv_file import as_csv
from genimg.reporting.discover import find_runs, folder_name, is_sweep
from genimg.reporting.importance import RULE, Importance, importances
from genimg.reporting.pictures import gallery
from genimg.reporting.ranking import Ranking, format_mean, rank, setting_label
from genimg.reporting.runs import Run
from genimg.reporting.settings import Setting, differing_keys, is_number, swept_settings
from genimg.reporting.trends import Trend, advice, trends
from genimg.utils.durations import time_in_words
from genimg.utils.environment import git_commit
from genimg.utils.files import atomically, check_writable
from genimg.utils.mappings import flatten
from genimg.utils.terminal import visible

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_MADE = "Written by genimg-report"
_OF_MARKDOWN = re.compile(r"([\\`*\[\]<>|#~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


@dataclass(frozen=True)
class Report:
    """A written report. The templates use the attributes by name.

    Attributes:
        html, csv, markdown: Paths of the files.
        directories: Directories of runs and sweeps, as given by the user.
        runs: Runs in the order of the directories.
        is_sweep: Whether the report is about a single sweep.
        ranking: Order of the runs.
        swept: Settings of all runs by swept key.
        differing: Config keys that differ between runs, with the value of each run that has a config.
        trends: Trends of the runs that were evaluated more than once.
        advice: Sentences on which runs to train longer.
        importances: Importance of each swept key that has enough different values.
        shared: Data, machine and software that all runs share, by title; a run records its own at its end.
        made: Sentence with the date and the version of genimg.
    """

    html: Path
    csv: Path
    markdown: Path
    directories: Sequence[Path]
    runs: list[Run]
    is_sweep: bool
    ranking: Ranking
    swept: dict[str, list[Setting]]
    differing: dict[str, list[Any]]
    trends: list[Trend]
    advice: list[str]
    importances: list[Importance]
    shared: dict[str, str]
    made: str


def write_report(directories: Sequence[Path], output: Path) -> Report:
    """Write the report of runs, sweeps or folders of either. Each of its three files is written atomically.

    Args:
        directories: Directories of runs or sweeps.
        output: Path of the page, which ends in ``.html``; the CSV and Markdown files beside it have the same name.

    Raises:
        DataError: If a directory does not exist, or holds neither a run nor a sweep.
        ConfigError: If ``output`` is not the name of a page or cannot be written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output={output} must name a file that ends in .html")
    check_writable("output", output)
    report = _report(directories, output)
    is_report = output.is_file() and _MADE in output.read_text(encoding="utf-8", errors="replace")
    for path in (report.html, report.csv, report.markdown):
        if path.exists() and not is_report:
            raise ConfigError(f"output={output}: {path} exists and is not a genimg report: choose another output")
    page, markdown = (_environment(is_markdown=choice) for choice in (False, True))
    content = {
        report.html: page.get_template("report.html").render(vars(report), gallery=gallery(report.runs)),
        report.csv: as_csv(report.ranking, report.swept),
        report.markdown: markdown.get_template("report.md").render(vars(report)),
    }
    for path, written in content.items():
        with atomically(path) as temporary:
            # Text from JSON can contain lone surrogates.
            temporary.write_text(visible(written), encoding="utf-8", errors="replace", newline="")
    return report


def _report(directories: Sequence[Path], output: Path) -> Report:
    runs = find_runs(directories)
    ranking = rank(runs)
    swept, differing = (swept_settings(runs), differing_keys(runs)) if len(runs) > 1 else ({}, {})
    found = importances(swept, [each.score for each in sorted(ranking.standings, key=lambda each: each.number)])
    found_trends = trends(ranking) if len(runs) > 1 else []
    known = [run.circumstances for run in runs if run.summary] or [run.circumstances for run in runs]
    shared = {key: fact for key, fact in known[0].items() if all(fact == each[key] for each in known)}
    made = f"{_MADE} on {time.strftime('%Y-%m-%d at %H:%M:%S %Z')} (genimg {genimg.__version__}"
    if commit := git_commit():
        made += f", commit {commit[:12]}{'-dirty' * commit.endswith('-dirty')}"
    return Report(
        html=output, csv=output.with_suffix(".csv"), markdown=output.with_suffix(".md"), directories=directories, runs=runs,
        is_sweep=len(directories) == 1 and is_sweep(directories[0]), ranking=ranking, swept=swept, differing=differing,
        trends=found_trends, advice=advice(ranking, found_trends), importances=found, shared=shared, made=f"{made}).",
    )  # fmt: skip


@cache  # compiling the templates takes half a second
def _environment(*, is_markdown: bool) -> Environment:
    """Return the environment of the templates, which escapes everything that it inserts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # imported here, because --help does not need it

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_escaped_for_markdown if is_markdown else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "default": vars}
    environment.globals |= {"RULE": RULE, "curves": curves, "surface_chart": surface_chart}
    environment.tests["finite"] = is_number
    environment.filters |= {
        "images": text.format_images, "number": text.format_number, "value": text.format_value,
        "setting": text.format_setting, "count": "{:,}".format, "mean": format_mean, "setting_label": setting_label,
        "flatten": flatten, "folder_name": folder_name,
        "duration": lambda seconds: "—" if seconds is None else time_in_words(seconds),
        "share": lambda share, digits=1: "—" if share is None else f"{100 * share:.{digits}f} %",
        "relative_url": lambda path, folder: quote(os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")),
        "unescaped": lambda override: re.sub(r"\\(.)", r"\1", override),
    }  # fmt: skip
    return environment


def _escaped_for_markdown(content: Any) -> Any:
    """Return text on one line, escaped for Markdown and HTML; markup is returned as it is."""
    from markupsafe import Markup

    if isinstance(content, Markup):
        return content
    return Markup(_OF_MARKDOWN.sub(r"\\\1", " ".join(str(content).split())).replace("&", "&amp;"))
