"""Prepare the contents of a report as plain data for its templates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

from genimg.reporting import curves
from genimg.reporting.discover import Collection
from genimg.reporting.importance import Importance
from genimg.reporting.pictures import Gallery
from genimg.reporting.ranking import Ranking
from genimg.reporting.runs import Run
from genimg.reporting.settings import Setting, dataset_of, differing_keys, is_number
from genimg.reporting.text import format_setting

_BEST = 8  # most runs whose curves a page with many runs shows at first; one per colour
_STORAGE = {"device": "on the device", "host": "in memory", "workers": "on disk, read by workers"}


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        collection: The runs.
        ranking: Order of the runs.
        swept: Settings of all runs by swept key.
        importances: Importance of each swept key that was varied enough.
        title: Title of the page.
        made: Sentence with the date and the version of genimg.
    """

    collection: Collection
    ranking: Ranking
    swept: dict[str, list[Setting]]
    importances: list[Importance]
    title: str
    made: str


def contents(subject: Subject) -> dict[str, Any]:
    """Return the variables that the templates of the page and of the Markdown file share."""
    runs, ranking = subject.collection.runs, subject.ranking
    known = [_circumstances(run) for run in runs if run.summary] or list(map(_circumstances, runs))
    return {
        "subject": subject,
        "runs": runs,
        "ranking": ranking,
        "swept": subject.swept,
        "influence": bool(subject.swept) and ranking.metric is not None,
        "differing_keys": differing_keys(runs) if len(runs) > 1 else {},
        "shared": {key: fact for key, fact in known[0].items() if all(fact == each[key] for each in known)},
    }


def page_contents(subject: Subject, gallery: Gallery) -> dict[str, Any]:
    """Return the further variables of the page."""
    runs, ranking = subject.collection.runs, subject.ranking
    labels = [run.label for run in runs]
    looks = curves.looks([each.number for each in ranking.standings])
    groups = curves.charts_of(runs, ranking.metric)
    charts, numbers = [chart for group in groups.values() for chart in group], count()
    measured = [each for each in ranking.standings if each.value is not None]
    drawn = sorted({each.run for chart in charts for each in chart.series})
    best = [each.number for each in ranking.standings if each.number in drawn][:_BEST]
    return {
        "looks": looks,
        "num_looks": curves.NUM_LOOKS,
        "groups": {title: [(next(numbers), chart) for chart in group] for title, group in groups.items()},
        "curves_data": {
            "labels": labels,
            "looks": looks,
            "charts": [{"points": chart.has_points, "series": [vars(each) for each in chart.series]} for chart in charts],
        },
        "drawn": drawn,
        "choices": {"all": drawn, "none": [], f"best {len(best)}": best} if len(drawn) > _BEST else {},
        "gallery": gallery,
        "parallel": {
            "labels": [each.run.label for each in measured],
            "settings": {
                key: [value if is_number(value := values[each.number]) else format_setting(value) for each in measured]
                for key, values in subject.swept.items()
                if key != "seed"
            },
            "metric": ranking.metric,
            "values": [each.value.number for each in measured if each.value is not None],
            "higher": bool(ranking.higher_is_better),
        },
        "circumstances": list(map(_circumstances, runs)),
    }


def _circumstances(run: Run) -> dict[str, str]:
    """Return the data, machine and software of a run as text, by title."""
    summary = run.summary
    return {
        "Data": dataset_of(run),
        "Data stored": _STORAGE.get(summary.get("storage", ""), "—"),
        "Machine": ", ".join(f"{key}: {value}" for key, value in summary.get("hardware", {}).items()) or "—",
        "Processes": str(summary.get("processes", "—")),
        "Versions": ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items()) or "—",
        "Commit": summary.get("git_commit", "—"),
    }
