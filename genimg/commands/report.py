"""genimg-report: write a page about a run, several runs or a sweep."""

from __future__ import annotations

import logging

from omegaconf import DictConfig, OmegaConf

from genimg.config.options import read_options
from genimg.config.schema import commands as schema
from genimg.errors import ConfigError
from genimg.reporting import Report, write_report
from genimg.reporting.ranking import format_mean, setting_label
from genimg.reporting.text import format_value, shortened
from genimg.utils.paths import expanded

log = logging.getLogger(__name__)

_SHOWN = 10  # maximum number of printed rows of the leaderboard
_WIDTH = 60  # maximum number of characters of a run's name and of its status


def report(composed: DictConfig) -> None:
    """Write the report, and log its path and the leaderboard.

    Raises:
        DataError: If a directory does not exist or holds no runs.
        ConfigError: If ``output`` is not a valid file name for the page.
    """
    if OmegaConf.is_missing(composed, "runs"):
        raise ConfigError("runs is required: genimg-report RUN_OR_SWEEP_DIR ...", key="runs")
    options, _ = read_options(composed, schema.Report)
    runs, output = options.runs, options.output
    if isinstance(runs, str):
        runs = [runs]
    if not isinstance(runs, list) or not all(isinstance(each, str | int | float) for each in runs):
        raise ConfigError(f"runs={runs} must be directories: genimg-report RUN_OR_SWEEP_DIR ...")
    directories = [expanded("runs", each) for each in runs]
    if output is None:
        output = str(directories[0] / "report.html") if len(directories) == 1 else "report.html"
    written = write_report(directories, expanded("output", output))
    if len(written.runs) > 1:
        log.info("%s", "\n".join([leaderboard(written), *written.ranking.warnings, *written.advice]))
    log.info("report:   %s", written.html)
    log.info("tables:   %s, %s", written.csv, written.markdown)


def leaderboard(written: Report) -> str:
    """Return the first lines of the leaderboard as plain text: runs, or settings with the means over their seeds."""
    ranking, swept = written.ranking, written.swept
    if ranking.has_seeds and ranking.metric:
        rows = [("", "", f"mean of best {ranking.metric} ± sd", "")]
        for group in ranking.groups:
            seeds = f"{len(group.values)} of {len(group.standings)} seeds measured"
            ended = [f"; {each.run.status}: {each.run.reason}" for each in group.standings if each.value is None]
            mean = format_mean(group).replace("—", "-")
            rows.append((str(group.place or "-"), _cut(setting_label(group, swept)), mean, _cut(seeds + "".join(ended[:1]))))
    else:
        rows = [("", "", f"best {ranking.metric}" if ranking.metric else "", "")]
        for each in ranking.standings:
            became = each.run.status + (f": {each.run.reason}" if each.run.reason and each.place is None else "")
            rows.append(
                (str(each.place or "-"), _cut(each.run.label), format_value(each.value).replace("—", "-"), _cut(became))
            )
    rows, left = rows[: _SHOWN + 1], len(rows) - _SHOWN - 1
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *([f"and {left} more"] if left > 0 else [])])


def _cut(text: str) -> str:
    return shortened(text, _WIDTH)
