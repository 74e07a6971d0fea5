"""Prepare the contents of a report as plain data for its templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from genimg.reporting import curves
from genimg.reporting.discover import Collection
from genimg.reporting.importance import Importance
from genimg.reporting.pictures import Gallery, Picture
from genimg.reporting.ranking import Ranking
from genimg.reporting.runs import Run
from genimg.reporting.settings import Setting, dataset_of, differing_keys, is_number
from genimg.reporting.text import setting_in_words
from genimg.utils.mappings import flatten

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
    groups = curves.charts_of(runs, ranking.metric, ranking.higher_is_better)
    charts, numbers = [chart for group in groups.values() for chart in group], count()
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
        "kinds": [_pictures(runs, kind, pictures) for kind, pictures in gallery.kinds.items()],
        "picture_notes": gallery.notes,
        "parallel": _parallel(ranking, subject.swept),
        "provenances": [_provenances(run) for run in runs],
        "circumstances": list(map(_circumstances, runs)),
    }


def _circumstances(run: Run) -> dict[str, str]:
    """Return the data, machine and software of a run in words, by title."""
    summary = run.summary
    return {
        "Data": dataset_of(run),
        "Data stored": _STORAGE.get(summary.get("storage", ""), "—"),
        "Machine": ", ".join(f"{key}: {value}" for key, value in summary.get("hardware", {}).items()) or "—",
        "Processes": str(summary.get("processes", "—")),
        "Versions": ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items()) or "—",
        "Commit": summary.get("git_commit", "—"),
    }


def _provenances(run: Run) -> list[tuple[list[str], dict[str, Any]]]:
    """Return the facts that a run's evaluations depend on, with the titles of the evaluations that share them."""
    found: list[tuple[list[str], dict[str, Any]]] = []
    for title, measured in run.evaluated.items():
        facts = {key: fact for key, fact in flatten(measured.provenance).items() if key and fact not in (None, {}, "")}
        same = next((titles for titles, others in found if others == facts), None)
        if same is None:
            found.append(([title], facts))
        else:
            same.append(title)
    return found


def _pictures(runs: Sequence[Run], kind: str, made: dict[int, list[Picture]]) -> dict[str, Any]:
    """Return the pictures of one kind: the first and last of each run, and the others as data for the script."""
    is_shared = len(made) > 1 and len({tuple(picture.uri for picture in pictures) for pictures in made.values()}) == 1
    figures = []
    for number, pictures in list(made.items())[: 1 if is_shared else None]:
        ends = pictures if len(pictures) < 3 else [pictures[0], pictures[-1]]
        between = [[picture.images, picture.uri] for picture in pictures if picture not in ends]
        label = "all runs" if is_shared else runs[number].label
        figures.append({"run": number, "label": label, "ends": ends, "between": between})
    everything = [picture for pictures in made.values() for picture in pictures]
    side = max(picture.width for picture in everything)
    width = min(max(side * (1 if side > 200 else 2), 220), 560)
    times = sorted({picture.images for picture in everything})
    return {"kind": kind, "is_shared": is_shared, "times": times, "figures": figures, "width": width}


def _parallel(ranking: Ranking, swept: Mapping[str, Sequence[Setting]]) -> dict[str, Any] | None:
    """Return the axes and lines of the parallel coordinates, which the script draws; None if they would show nothing.

    Each axis has a number or else a text for each measured run, best first; the last axis is the metric.
    """
    measured = [(each, each.value.number) for each in ranking.standings if each.value is not None]
    columns = {key: [settings[each.number] for each, _ in measured] for key, settings in swept.items() if key != "seed"}
    columns = {key: found for key, found in columns.items() if len(set(map(repr, found))) > 1}
    if len(measured) < 2 or not columns or ranking.metric is None:
        return None
    axes: dict[str, list[Any]] = {
        key: list(found) if all(map(is_number, found)) else list(map(setting_in_words, found)) for key, found in columns.items()
    }
    axes[ranking.metric] = [number for _, number in measured]
    labels = [each.run.label for each, _ in measured]
    return {"titles": list(axes), "axes": list(axes.values()), "labels": labels, "higher": bool(ranking.higher_is_better)}
