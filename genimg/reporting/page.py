"""Assemble the page: a self-contained HTML file that makes no requests."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from genimg.reporting import comparing, looking, telling
from genimg.reporting.collecting import Collection
from genimg.reporting.importance import Importance
from genimg.reporting.markup import Raw, escape, join, tag
from genimg.reporting.pictures import Gallery
from genimg.reporting.ranking import Ranking
from genimg.reporting.settings import Setting

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Subject:
    """The contents of a report.

    Attributes:
        collection: The runs.
        ranking: Order of the runs.
        swept: Settings of all runs by swept key.
        importances: Importance of each swept key, if there are several runs.
        noise: Standard deviation between seeds and the number of runs it is computed from; None if no seed was swept.
        title: Title of the page.
        made: Sentence with the date and the version of genimg.
    """

    collection: Collection
    ranking: Ranking
    swept: dict[str, list[Setting]]
    importances: list[Importance]
    noise: tuple[float, int] | None
    title: str
    made: str


def page(subject: Subject, gallery: Gallery) -> str:
    """Return the HTML of the page."""
    runs = subject.collection.runs
    several = len(runs) > 1
    sections: list[tuple[str, str, Raw | None]] = [
        ("leaderboard", "Leaderboard", comparing.leaderboard(subject.ranking, subject.swept) if several else None),
        ("influence", "What mattered", _influence(subject) if several else None),
        ("pictures", "Pictures", looking.samples(runs, gallery)),
        ("curves", "Curves", looking.curves(runs, subject.ranking)),
        ("metrics", "Metrics", comparing.metrics(runs) if several else telling.metrics(runs[0], heading="h3")),
        ("settings", "Settings that differ", comparing.settings(runs) if several else None),
        ("speed", "Time and machine", comparing.speeds(runs)),
        (
            "runs",
            "Each run" if several else "Settings",
            join(*(telling.run(each, n, alone=not several) for n, each in enumerate(runs))),
        ),
    ]
    shown = [(anchor, title, content) for anchor, title, content in sections if content is not None]
    links = (tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in shown)
    body = join(
        tag("a", "Skip to the report", href="#main", class_="skip"),
        tag(
            "header",
            tag("p", "genimg report", class_="kicker"),
            tag("h1", subject.title),
            telling.summary(subject.collection, subject.ranking, subject.importances),
        ),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(_section(*each) for each in shown), id="main"),
        tag("footer", tag("p", subject.made)),
    )
    assets = files("genimg.reporting") / "assets"
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="genimg-report"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{subject.title} · genimg report"),
        tag("style", Raw((assets / "style.css").read_text(encoding="utf-8"))),
        tag("script", Raw("document.documentElement.classList.add('js')")),
    )
    script = tag("script", Raw((assets / "script.js").read_text(encoding="utf-8")))
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body, script), lang='en')}\n"


def _section(anchor: str, title: str, content: Raw) -> Raw:
    return tag("section", tag("h2", escape(title), id=f"{anchor}-title"), content, id=anchor, aria_labelledby=f"{anchor}-title")


def _influence(subject: Subject) -> Raw | None:
    return comparing.influence(subject.ranking, subject.swept, subject.importances, subject.noise)
