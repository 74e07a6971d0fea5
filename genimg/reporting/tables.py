"""The report as a CSV file, with a row per run, and as Markdown."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from genimg.reporting.importance import caution
from genimg.reporting.measures import columns, duration_in_words, hardware, share_in_words, speed, value_in_words
from genimg.reporting.page import Subject
from genimg.reporting.ranking import Ranking, Standing
from genimg.reporting.runs import Measured, Run
from genimg.reporting.scales import images_in_words, number_in_words
from genimg.reporting.settings import Setting, differing_keys, in_words
from genimg.reporting.telling import sentences
from genimg.utils.csv_cells import neutral

_MOST_CHARACTERS = 120  # for a cell in Markdown
_SPECIAL = re.compile(r"([\\`*\[\]<>|#~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def as_csv(subject: Subject) -> str:
    """Return a row for each run, best first; metrics are ``best.NAME``, with bounds ``best.NAME.low`` and ``.high``."""
    rows = [_record(each, subject.swept) for each in subject.ranking.standings]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    order = ["place", "run", "directory", "status", "reason", *subject.swept]
    titles = [*order, *(title for title in titles if title not in order)]
    target = io.StringIO()
    writer = csv.DictWriter(target, titles, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{title: neutral(cell) if isinstance(cell, str) else cell for title, cell in row.items()} for row in rows])
    return target.getvalue()


def _record(standing: Standing, swept: dict[str, list[Setting]]) -> dict[str, Any]:
    run, took = standing.run, speed(standing.run)
    row: dict[str, Any] = {"place": standing.place, "run": run.label, "directory": str(run.folder), "status": run.status}
    row["reason"] = run.reason
    row |= {key: "" if values[standing.number] is None else in_words(values[standing.number]) for key, values in swept.items()}
    row["primary_metric"] = run.primary
    row["higher_is_better"] = run.higher_is_better
    for title, measured in (("best", run.best), ("last", run.last), ("final", run.final)):
        row |= _flat(title, measured)
    row["best_of_evaluations"] = run.num_evaluations
    row |= {"images": run.images, "steps": run.summary.get("steps"), "seed": run.settings.get("seed")}
    row |= {key: None if value is None else f"{value:.6g}" for key, value in vars(took).items()}
    row |= {"hardware": hardware(run), "genimg": (run.summary.get("versions") or {}).get("genimg")}
    return row | {"git_commit": run.summary.get("git_commit")}


def _flat(title: str, measured: Measured | None) -> dict[str, Any]:
    if measured is None:
        return {}
    row: dict[str, Any] = {f"{title}_images": measured.images}
    for name, value in measured.values.items():
        row[f"{title}.{name}"] = repr(value.number)
        more = {"low": value.low, "high": value.high, "sd": value.deviation}
        row |= {f"{title}.{name}.{ending}": repr(number) for ending, number in more.items() if number is not None}
    return row


def as_markdown(subject: Subject, folder: Path) -> str:
    """Return the page's tables as Markdown, with links to the runs' last pictures relative to ``folder``."""
    runs = subject.collection.runs
    parts = [f"# {_text(subject.title)}", _text(" ".join(sentences(subject.collection, subject.ranking, subject.importances)))]
    if len(runs) > 1:
        parts += ["## Leaderboard", *map(_text, subject.ranking.warnings), leaderboard(subject.ranking, subject.swept)]
        parts += _influence(subject)
        found = differing_keys(runs)
        if found:
            titles = ["Key", *(run.label for run in runs if run.settings)]
            rows = [[key, *map(in_words, values)] for key, values in found.items()]
            parts += ["## Settings that differ", _table(titles, rows)]
    parts += ["## Metrics"]
    for run in runs:
        parts += ([f"### {_text(run.label)}"] if len(runs) > 1 else []) + [_metrics(run)]
    parts += ["## Time and machine", _speeds(runs)]
    pictures = [line for run in runs for line in _pictures(run, folder)]
    parts += ["## Samples", *pictures] if pictures else []
    return "\n\n".join([*parts, _text(subject.made)]) + "\n"


def leaderboard(ranking: Ranking, swept: dict[str, list[Setting]]) -> str:
    """Return a Markdown table of all runs, best first."""
    metric = ranking.metric
    titles = ["Place", "Run", "Status", *swept, *([f"best {metric}", "at images"] if metric else []), "images seen", "images/s"]
    rows = []
    for each in ranking.standings:
        rate = speed(each.run).images_per_second
        settings = ("—" if values[each.number] is None else in_words(values[each.number]) for values in swept.values())
        value = [value_in_words(each.value), "—" if each.best is None else images_in_words(each.best.images)]
        told = each.run.status + (f": {each.run.reason}" if each.run.reason else "")
        rows.append([str(each.place or "—"), each.run.label, told, *settings, *(value if metric else []),
                     images_in_words(each.run.images), "—" if rate is None else number_in_words(rate)])  # fmt: skip
    return _table(titles, rows)


def _influence(subject: Subject) -> list[str]:
    if not subject.swept or subject.ranking.metric is None:
        return []
    measured = sum(each.value is not None for each in subject.ranking.standings)
    parts = ["## What mattered", _text(caution(subject.importances, measured))]
    rows = [
        [each.key, share_in_words(each.share, 0), share_in_words(each.chance, 0),
         ", ".join(f"{name}: {number_in_words(mean)} ({count})" for name, count, mean in each.groups)]
        for each in subject.importances
    ]  # fmt: skip
    if rows:
        parts.append(_table(["Setting", "Explains alone", "By chance", "Mean for each value (jobs)"], rows))
    if subject.noise is not None:
        spread, count = subject.noise
        parts.append(
            f"Runs that differ in their seed alone spread by {number_in_words(spread, 3)} (standard deviation, {count} runs)."
        )
    return parts


def _metrics(run: Run) -> str:
    shown = columns(run)
    if not shown:
        return "Nothing was measured."
    names = list(dict.fromkeys(name for each in shown.values() for name in each.values))
    titles = ["Metric", *(f"{title}, at {images_in_words(each.images)} images" for title, each in shown.items())]
    return _table(titles, [[name, *(value_in_words(each.values.get(name)) for each in shown.values())] for name in names])


def _speeds(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        took = speed(run)
        rate = "—" if took.images_per_second is None else number_in_words(took.images_per_second)
        rows.append([run.label, images_in_words(run.images), rate, duration_in_words(took.training_seconds),
                     share_in_words(took.evaluation_share), share_in_words(took.data_wait_share), hardware(run)])  # fmt: skip
    return _table(["Run", "images seen", "images/s", "training", "share of evaluations", "waiting for data", "hardware"], rows)


def _pictures(run: Run, folder: Path) -> list[str]:
    found = []
    for kind, files in run.pictures.items():
        images = max(files)
        target = quote(os.path.relpath(files[images].resolve(), folder.resolve()).replace(os.sep, "/"))
        found.append(f"![{_text(f'{kind} of {run.label} after {images:,} images')}]({target})")
    return found


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(map(_cell, titles)), ["---"] * len(titles), *(list(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return _text(text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…")


def _text(text: str) -> str:
    """Return text on one line, escaped for Markdown and HTML."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")
