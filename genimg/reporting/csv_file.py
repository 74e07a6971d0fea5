"""The report as a CSV file, with a row for each run."""

from __future__ import annotations

import csv
import io
from typing import Any

from genimg.reporting.ranking import Ranking, Standing
from genimg.reporting.settings import Setting
from genimg.reporting.text import format_setting
from genimg.utils.csv_cells import neutral


def as_csv(ranking: Ranking, swept: dict[str, list[Setting]]) -> str:
    """Return a row for each run, best first; metrics are ``best.NAME``, with bounds ``best.NAME.low`` and ``.high``."""
    rows: dict[int, dict[str, Any]] = {}
    for number, group in enumerate(ranking.groups, start=1):
        shared = {
            "setting": number,
            "mean_over_seeds": group.score,
            "sd_over_seeds": group.deviation,
            "num_seeds": len(group.values),
        }
        rows |= {each.number: _row(each, swept) | shared for each in group.standings}
    target = io.StringIO()
    titles = dict.fromkeys(title for each in ranking.standings for title in rows[each.number])
    writer = csv.DictWriter(target, titles, restval="", lineterminator="\n")
    writer.writeheader()
    for each in ranking.standings:
        cells = rows[each.number].items()
        writer.writerow({title: neutral(cell) if isinstance(cell, str) else cell for title, cell in cells})
    return target.getvalue()


def _row(standing: Standing, swept: dict[str, list[Setting]]) -> dict[str, Any]:
    run, summary = standing.run, standing.run.summary
    settings = {key: values[standing.number] for key, values in swept.items()}
    row = {"place": standing.place, "run": run.label, "directory": str(run.folder), "status": run.status, "reason": run.reason}
    row |= {key: "" if value is None else format_setting(value) for key, value in settings.items()}
    row |= {"data": run.dataset, "primary_metric": run.primary, "higher_is_better": run.higher_is_better}
    for title, measured in {"best": run.best, "last": run.last, "final": run.final}.items():
        if measured is not None:
            row[f"{title}_images"] = measured.images
            for name, value in measured.values.items():
                numbers = {"": value.number, ".low": value.low, ".high": value.high, ".sd": value.deviation}
                row |= {f"{title}.{name}{ending}": repr(number) for ending, number in numbers.items() if number is not None}
    row |= {"best_of_evaluations": run.num_evaluations, "images": run.images, "steps": summary.get("steps")}
    row |= {"seed": run.settings.get("seed")}
    row |= {key: None if value is None else f"{value:.6g}" for key, value in run.speed.items()}
    row |= {"hardware": run.circumstances["Machine"], "genimg": summary.get("versions", {}).get("genimg")}
    return row | {"git_commit": summary.get("git_commit")}
