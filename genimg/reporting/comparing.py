"""Sections of the page that compare several runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from genimg.reporting.charts import named
from genimg.reporting.importance import Importance, caution
from genimg.reporting.markup import Raw, escape, is_number_cell, join, number_cell, table, tag
from genimg.reporting.measures import duration_in_words, hardware, share_in_words, speed, value_in_words
from genimg.reporting.parallel import parallel_coordinates
from genimg.reporting.ranking import Ranking, Standing
from genimg.reporting.runs import FAILED, Run, Value
from genimg.reporting.scales import images_in_words, number_in_words
from genimg.reporting.settings import Setting, differing_keys, in_words, is_number

_MOST_CHARACTERS = 160  # for a setting in a table


def status(run: Run) -> Raw:
    """Return a run's status, coloured."""
    kind = "bad" if run.status in FAILED else "good" if run.status == "completed" else "neutral"
    return tag("span", run.status, class_=f"status {kind}")


def status_and_reason(run: Run) -> Raw:
    """Return a run's status with its reason, if known."""
    return join(status(run), tag("span", run.reason, class_="reason") if run.reason else None)


def link(run: Run, number: int) -> Raw:
    """Return a link to a run's own section."""
    return tag("a", named(number, run.label), href=f"#run-{number}")


def leaderboard(ranking: Ranking, swept: Mapping[str, Sequence[Setting]]) -> Raw:
    """Return a table of all runs, including failed ones, that is sorted by a click on a column title."""
    metric = ranking.metric
    titles = ["Place", "Run", *([f"best {metric}"] if metric else []), "Status", *swept]
    titles += ["at images", f"last {metric}"] if metric else []
    titles += ["images seen", "images/s", "training"]
    rows = [_row(each, swept, metric) for each in ranking.standings]
    head = [
        _sortable(title, "ascending" if title == "Place" and metric else "none", is_number_cell(cell))
        for title, cell in zip(titles, rows[0], strict=True)
    ]
    caption = f"Runs by their best {metric}" if metric else "Runs"
    if metric and ranking.higher_is_better is not None:
        caption += f"; {'higher' if ranking.higher_is_better else 'lower'} is better"
    warnings = [tag("p", warning, class_="warning") for warning in ranking.warnings]
    note = tag("p", "A value in brackets is a 95 % interval. Click a title to sort.", class_="note js-only")
    body = (tag("tr", *cells) for cells in rows)
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body), class_="sortable")
    return join(*warnings, tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption), note)


def _sortable(title: str, order: str, is_numeric: bool) -> Raw:
    return tag("th", tag("button", title, type="button"), scope="col", aria_sort=order, class_="number" if is_numeric else None)


def _row(standing: Standing, swept: Mapping[str, Sequence[Setting]], metric: str | None) -> list[Raw]:
    run, took = standing.run, speed(standing.run)
    cells = [
        number_cell(standing.place or "—", standing.place),
        tag("th", link(run, standing.number), scope="row", data_value=run.label),
    ]
    if metric is not None:
        value = standing.value
        text = value_in_words(value)
        cells.append(number_cell(tag("strong", text) if standing.place == 1 else text, _number(value)))
    cells.append(tag("td", status_and_reason(run), data_value=run.status))
    for settings in swept.values():
        setting = settings[standing.number]
        text = "—" if setting is None else in_words(setting)
        cells.append(number_cell(text, setting) if is_number(setting) else tag("td", text, data_value=text))  # type: ignore[arg-type]
    if metric is not None:
        last = run.last.values.get(metric) if run.last is not None else None
        cells += [
            number_cell(
                "—" if standing.best is None else images_in_words(standing.best.images),
                None if standing.best is None else standing.best.images,
            ),
            number_cell(value_in_words(last), _number(last)),
        ]
    rate = took.images_per_second
    return [
        *cells,
        number_cell(images_in_words(run.images), run.images),
        number_cell("—" if rate is None else number_in_words(rate), rate),
        number_cell(duration_in_words(took.training_seconds), took.training_seconds),
    ]


def _number(value: Value | None) -> float | None:
    return None if value is None else value.number


def influence(
    ranking: Ranking, swept: Mapping[str, Sequence[Setting]], found: Sequence[Importance], noise: tuple[float, int] | None
) -> Raw | None:
    """Return parallel coordinates and each swept key's share of the variance, or None if nothing was swept or measured."""
    if not swept or ranking.metric is None:
        return None
    measured = sum(each.value is not None for each in ranking.standings)
    parts: list[Raw] = []
    if (drawn := parallel_coordinates(ranking, swept)) is not None:
        missing = len(ranking.standings) - measured
        said = (
            f"{measured} jobs, from their settings to their best {ranking.metric}; better is higher up and stronger in colour."
        )
        said += f" {missing} without a value {'are' if missing > 1 else 'is'} left out." if missing else ""
        about = tag(
            "p", class_="readout js-only", aria_live="polite", data_idle="Point at a line, or reach it with Tab, to read it."
        )
        region = tag("div", drawn, class_="scroll plain", tabindex="0", role="region", aria_label="Parallel coordinates")
        parts.append(tag("figure", region, tag("figcaption", said), about, class_="wide-figure"))
    parts.append(tag("h3", f"How much each setting explains of {ranking.metric}"))
    parts.append(tag("p", caution(found, measured)))
    if found:
        head = ["Setting", "Explains alone", "By chance", "Mean for each value (jobs)"]
        parts.append(
            table(
                f"Share of the variance of {ranking.metric}",
                list(map(escape, head)),
                [_share(each) for each in found],
                class_="shares",
            )
        )
        parts.append(tag("p", _method(found), class_="note"))
    if noise is not None:
        spread, count = number_in_words(noise[0], 3), noise[1]
        text = f"Runs that differ in their seed alone spread by {spread} (standard deviation, {count} runs): differences "
        parts.append(tag("p", text + "smaller than about twice that are noise."))
    return join(*parts)


def _share(found: Importance) -> list[object]:
    bar = tag(
        "span", tag("span", class_="fill", style=f"width:{100 * found.share:.1f}%"),
        tag("span", class_="chance", style=f"left:{100 * found.chance:.1f}%"), class_="share-bar", aria_hidden="true",
    )  # fmt: skip
    groups = (
        tag("li", tag("span", name, class_="setting"), " ", number_in_words(mean), tag("span", f" ({count})", class_="count"))
        for name, count, mean in found.groups[:12]
    )
    more = [tag("li", f"and {len(found.groups) - 12} more")] if len(found.groups) > 12 else []
    return [
        found.key,
        tag("td", bar, tag("span", share_in_words(found.share, 0), class_="share-number")),
        number_cell(share_in_words(found.chance, 0)),
        tag("td", tag("ul", *groups, *more, class_="groups")),
    ]


def _method(found: Sequence[Importance]) -> str:
    parts = []
    if any(not each.by_rank for each in found):
        parts.append("The share is η²: the variance between the means of a setting's values, over the whole variance.")
    if any(each.by_rank for each in found):
        keys = ", ".join(each.key for each in found if each.by_rank)
        parts.append(f"Of {keys}, which has many values, it is the squared Spearman correlation.")
    parts.append("By chance (the mark in the bar) is what a setting without any influence would explain on average.")
    return " ".join(parts)


def metrics(runs: Sequence[Run]) -> Raw | None:
    """Return tables with a row per run and a column per metric: at the best, the last and the final evaluation."""
    names = list(dict.fromkeys(name for run in runs for each in (run.best, run.last) if each for name in each.values))
    if not names:
        return None
    parts = []
    for title, summary in (("best", "Best evaluation"), ("last", "Last evaluation")):
        rows: list[list[object]] = []
        for number, run in enumerate(runs):
            if (measured := getattr(run, title)) is not None:
                cells = (number_cell(value_in_words(measured.values.get(name))) for name in names)
                count = [number_cell("—" if run.num_evaluations is None else str(run.num_evaluations))] * (title == "best")
                rows.append([link(run, number), number_cell(images_in_words(measured.images)), *count, *cells])
        if rows:
            head = [escape("Run"), escape("images"), *[escape("best of evaluations")] * (title == "best"), *map(escape, names)]
            inner = table(f"Values of each run at its {title} evaluation", list(head), rows)
            parts.append(tag("details", tag("summary", summary), inner, open=title == "best"))
    finals = [(number, run) for number, run in enumerate(runs) if run.final is not None]
    if finals:
        names = list(dict.fromkeys(name for _, run in finals if run.final for name in run.final.values))
        rows = [
            [link(run, number), *(number_cell(value_in_words(run.final.values.get(name))) for name in names)]
            for number, run in finals
            if run.final is not None
        ]
        inner = table("Values of each run when its training had ended", [escape("Run"), *map(escape, names)], rows)
        parts.append(tag("details", tag("summary", "At the end, with more images"), inner, open=True))
    note = (
        "Brackets are 95 % intervals, sd is a metric's own standard deviation over subsets. What each value was measured with "
        "stands below its run."
    )
    return join(*parts, tag("p", note, class_="note"))


def settings(runs: Sequence[Run]) -> Raw:
    """Return a table of the config keys that differ, with a column per run."""
    found = differing_keys(runs)
    numbered = [(number, run) for number, run in enumerate(runs) if run.settings]
    if not found:
        return tag(
            "p", "The configs of these runs are the same." if len(numbered) > 1 else "There are no two configs to compare."
        )
    caption = "Keys of the configs that are not the same in all runs"
    rows: list[list[object]] = [
        [key, *(tag("td", _shortened(in_words(v)), class_="code") for v in values)] for key, values in found.items()
    ]
    missing = [run.label for run in runs if not run.settings]
    note = tag("p", f"Without a config: {', '.join(missing)}.", class_="note") if missing else None
    return join(table(caption, [escape("Key"), *(link(run, number) for number, run in numbered)], rows, class_="keys"), note)


def speeds(runs: Sequence[Run]) -> Raw:
    """Return a table of throughput, time and environment; facts that all runs share are listed once below it."""
    head = ["Run", "images seen", "images/s", "training", "evaluations", "share of evaluations", "waiting for data"]
    known = [run for run in runs if run.summary]
    shared = {title: of(known[0]) for title, of in _CIRCUMSTANCES.items() if known and len({of(run) for run in known}) == 1}
    own = {title: of for title, of in _CIRCUMSTANCES.items() if known and title not in shared}
    rows: list[list[object]] = []
    for number, run in enumerate(runs):
        took = speed(run)
        rate = took.images_per_second
        rows.append([
            link(run, number) if len(runs) > 1 else run.label,
            number_cell(images_in_words(run.images)), number_cell("—" if rate is None else number_in_words(rate)),
            number_cell(duration_in_words(took.training_seconds)), number_cell(duration_in_words(took.evaluation_seconds)),
            number_cell(share_in_words(took.evaluation_share)), number_cell(share_in_words(took.data_wait_share)),
            *(tag("td", of(run) if run.summary else "—", class_="wide-cell") for of in own.values()),
        ])  # fmt: skip
    caption = "Throughput while training, and what the time went into"
    facts = tag("dl", *(tag("div", tag("dt", title), tag("dd", fact)) for title, fact in shared.items()), class_="facts below")
    return join(table(caption, list(map(escape, [*head, *own])), rows), facts if shared else None)


_PLACES = {"device": "on the device", "host": "in memory", "workers": "on disk, read by workers"}
_CIRCUMSTANCES: dict[str, Callable[[Run], str]] = {
    "Machine": hardware,
    "Processes": lambda run: str(run.summary.get("processes", "—")),
    "Data lies": lambda run: _PLACES.get(str(run.summary.get("storage")), "—"),
    "Versions": lambda run: (
        ", ".join(f"{name} {version}" for name, version in (run.summary.get("versions") or {}).items()) or "—"
    ),
    "Commit": lambda run: str(run.summary.get("git_commit") or "—"),
}


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
