"""The summary in sentences, and the section of each run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from genimg.reporting.charts import named
from genimg.reporting.collecting import Collection
from genimg.reporting.comparing import status, status_and_reason
from genimg.reporting.importance import Importance
from genimg.reporting.markup import Raw, escape, join, number_cell, table, tag
from genimg.reporting.measures import (
    among_evaluations,
    columns,
    duration_in_words,
    provenance,
    share_in_words,
    speed,
    value_in_words,
)
from genimg.reporting.ranking import Ranking
from genimg.reporting.runs import Run, Value
from genimg.reporting.scales import images_in_words

_MOST_STATES = 5  # statuses visible without a click; the leaderboard has them, too
_ENOUGH_JOBS = 6  # least number of measured jobs for naming the most important setting


def sentences(collection: Collection, ranking: Ranking, found: Sequence[Importance]) -> list[str]:
    """Return a summary of the report in a few sentences, without markup."""
    runs = collection.runs
    return _of_one(runs[0]) if len(runs) == 1 else _of_several(collection, ranking, found)


def _of_one(run: Run) -> list[str]:
    said = [f"This run {_became(run)}."]
    took = speed(run)
    if took.training_seconds is not None and took.images_per_second is not None:
        said.append(f"It trained for {duration_in_words(took.training_seconds)} at {took.images_per_second:,.0f} images/s.")
    name, best, last = run.primary, run.best, run.last
    if name is not None and best is not None and name in best.values:
        direction = {True: " (higher is better)", False: " (lower is better)", None: ""}[run.higher_is_better]
        among = f",{text}" if (text := among_evaluations(run)) else ""
        said.append(f"Its best {name}{direction} is {value_in_words(best.values[name])}{among}, after {best.images:,} images.")
        if last is not None and last.images != best.images and name in last.values:
            said.append(f"The last is {value_in_words(last.values[name])}.")
    elif name is not None and last is not None:
        said.append(f"Its last {name} is {value_in_words(last.values[name])}.")
    else:
        said.append("It was not evaluated.")
    return said


def _became(run: Run) -> str:
    images = f"{run.images:,} images"
    if run.status == "completed":
        return f"completed {images}"
    if run.status == "in progress":
        return f"is in progress, at {images} ({run.reason})"
    if run.status == "not started":
        return "has not started"
    ended = {"failed": "failed", "diverged": "diverged", "unfinished": "did not finish"}.get(run.status, f"was {run.status}")
    where = f" after {images}" if run.images and run.status not in ("stopped", "interrupted") else ""
    return ended + where + (f": {run.reason.rstrip('.')}" if run.reason else "")


def _of_several(collection: Collection, ranking: Ranking, found: Sequence[Importance]) -> list[str]:
    runs = collection.runs
    counts = Counter(run.status for run in runs)
    what = f"{len(runs)} jobs of a sweep" if collection.is_sweep else f"{len(runs)} runs"
    said = [f"{what}: {', '.join(f'{count} {name}' for name, count in counts.most_common())}."]
    winner, metric = ranking.winner, ranking.metric
    if winner is not None and winner.value is not None and winner.best is not None and ranking.higher_is_better is not None:
        placed = [each for each in ranking.standings if each.value is not None]
        ties = [each.run.label for each in placed if each.place == 1]
        direction = "highest" if ranking.higher_is_better else "lowest"
        who = winner.run.label if len(ties) == 1 else f"{', '.join(ties[:-1])} and {ties[-1]} alike"
        said.append(
            f"The {direction} {metric} is {value_in_words(winner.value)}, of {who}, after {winner.best.images:,} images; the "
            f"worst of {len(placed)} is {value_in_words(placed[-1].value)}."
        )
        if len(ties) == 1 and _overlap(winner.value, placed[1].value):
            said.append(f"Its 95 % interval overlaps that of the second, {placed[1].run.label}.")
    if (
        found
        and sum(each.value is not None for each in ranking.standings) >= _ENOUGH_JOBS
        and found[0].share > 2 * found[0].chance
    ):
        said.append(
            f"Of what was swept, {found[0].key} alone explains most: {share_in_words(found[0].share, 0)} of the variance."
        )
    return said


def _overlap(first: Value, second: Value | None) -> bool:
    """Return whether both values have intervals, and these overlap."""
    if second is None or first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.low <= second.high and second.low <= first.high


def summary(collection: Collection, ranking: Ranking, found: Sequence[Importance]) -> Raw:
    """Return the summary sentences, facts about the runs, and the status of each run."""
    runs = collection.runs
    text = tag("p", " ".join(sentences(collection, ranking, found)), class_="lead")
    where = ", ".join(str(each) for each in collection.directories[:6]) + (
        " and more" if len(collection.directories) > 6 else ""
    )
    commits = sorted({str(run.summary["git_commit"])[:12] for run in runs if run.summary.get("git_commit")})
    versions = sorted({str(run.summary.get("versions", {}).get("genimg", "")) for run in runs} - {""})
    facts = [("Directory" if len(collection.directories) == 1 else "Directories", where)]
    facts += [("Trained by", f"genimg {', '.join(versions)}")] if versions else []
    facts += [("Commit", ", ".join(commits[:3]) + (" and others" if len(commits) > 3 else ""))] if commits else []
    described = tag("dl", *(tag("div", tag("dt", title), tag("dd", value)) for title, value in facts), class_="facts")
    if len(runs) == 1:
        return join(text, tag("p", status_and_reason(runs[0]), class_="states"), described)
    states = (
        tag("li", tag("a", named(number, run.label), href=f"#run-{number}"), " ", status(run))
        for number, run in enumerate(runs)
    )
    listed = tag("ul", *states, class_="states")
    if len(runs) > _MOST_STATES:
        listed = tag("details", tag("summary", f"State of all {len(runs)} runs"), listed)
    return join(text, listed, described)


def metrics(run: Run, heading: str) -> Raw | None:
    """Return the last, best and final values with their provenance, or None without an evaluation."""
    shown = columns(run)
    if not shown:
        return None
    names = list(dict.fromkeys(name for each in shown.values() for name in each.values))
    head = [escape("Metric"), *(escape(f"{title}, at {images_in_words(each.images)} images") for title, each in shown.items())]
    rows: list[list[object]] = [
        [name, *(number_cell(value_in_words(each.values.get(name))) for each in shown.values())] for name in names
    ]
    note = "Brackets are 95 % intervals, sd is a metric's own standard deviation over subsets."
    parts = [table("Measured values", list(head), rows), tag("p", note, class_="note"), tag(heading, "Measured with")]
    told: list[str] = []
    for title, each in shown.items():
        main, rest = provenance(each)
        if not main:
            parts.append(tag("p", f"Of the {title} values this is not recorded."))
            continue
        if (key := repr((main, rest))) in told:
            continue
        told.append(key)
        same = [other for other, measured in shown.items() if repr(provenance(measured)) == key]
        parts += [tag("p", f"Values: {', '.join(same)}", class_="of"), _facts(main)]
        parts += [tag("details", tag("summary", "Everything else that they depend on"), _facts(rest))] if rest else []
    return join(*parts)


def _facts(facts: Sequence[tuple[str, str]]) -> Raw:
    return tag("dl", *(tag("div", tag("dt", title), tag("dd", value)) for title, value in facts), class_="facts")


def run(each: Run, number: int, *, alone: bool) -> Raw:
    """Return a run's overrides and config and, unless it is alone, its values."""
    overrides = (tag("li", tag("code", re.sub(r"\\(.)", r"\1", override))) for override in each.overrides)
    given = (
        tag("ul", *overrides, class_="overrides")
        if each.overrides
        else tag("p", "None: everything is as configured by default.")
    )
    heading = "h3" if alone else "h4"
    config = (
        tag(
            "details",
            tag("summary", "The whole config, as YAML"),
            tag("pre", tag("code", each.config_text), tabindex="0", role="region", aria_label=f"Config of {each.label}"),
        )
        if each.config_text
        else tag("p", "It has no config.yaml.")
    )
    settings = join(tag(heading, "Overrides"), given, tag(heading, "Config"), config)
    if alone:
        return settings
    measured = metrics(each, heading="h5")
    parts = [tag("p", each.reason)] if each.reason else []
    parts.append(tag("p", tag("code", str(each.folder)), class_="note"))
    parts += [tag(heading, "Metrics"), measured] if measured is not None else []
    title = tag("h3", named(number, each.label))
    return tag(
        "details",
        tag("summary", title, status(each)),
        join(*parts, settings),
        id=f"run-{number}",
        class_="run-details",
    )
