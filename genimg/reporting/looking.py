"""Sections with samples over time and curves."""

from __future__ import annotations

from collections.abc import Sequence

from genimg.reporting import charts
from genimg.reporting.curves import Chart
from genimg.reporting.curves import charts as charts_of
from genimg.reporting.markup import Raw, escape, join, json_in_script, tag
from genimg.reporting.pictures import Gallery, Picture
from genimg.reporting.ranking import Ranking
from genimg.reporting.runs import Run

_OPEN = ("Evaluation", "Losses")
_BEST = 8  # most runs whose curves a page with many runs shows at first; one per colour
_TINY = 150  # width in pixels below which a picture is enlarged with sharp pixels
_TITLES = {"real": "Real images"}


def samples(runs: Sequence[Run], gallery: Gallery) -> Raw | None:
    """Return a slider over images seen for each kind of picture, all runs side by side; without a script, first and last."""
    if not gallery.kinds:
        return None
    order = list(gallery.kinds)
    parts = [_kind(runs, kind, gallery.kinds[kind], number) for number, kind in enumerate(order)]
    kinds = tag("div", *parts, class_="kinds alone" if len(runs) == 1 else "kinds")
    return join(kinds, *(tag("p", note, class_="note") for note in gallery.notes))


def _kind(runs: Sequence[Run], kind: str, made: dict[int, list[Picture]], number: int) -> Raw:
    """Return the pictures of one kind: the first and last as elements, the others as data for the script."""
    times = sorted({picture.images for pictures in made.values() for picture in pictures})
    figures = []
    is_shared = len(made) > 1 and len({tuple(picture.uri for picture in pictures) for pictures in made.values()}) == 1
    for place, pictures in list(made.items())[: 1 if is_shared else None]:
        ends = pictures if len(pictures) < 3 else [pictures[0], pictures[-1]]
        name = "all runs" if is_shared else runs[place].label
        images = (_image(kind, name, picture) for picture in ends)
        label = tag("span", "the same in all runs") if is_shared else charts.named(place, name) if len(runs) > 1 else ""
        caption = tag("figcaption", label, tag("span", _seen(ends), class_="seen") if times != [0] else None)
        between = [[picture.images, picture.uri] for picture in pictures if picture not in ends]
        data = json_in_script(between, class_="between") if between else None
        figures.append(
            tag(
                "figure",
                caption,
                tag("div", *images, class_="ends"),
                data,
                class_="grid-of-samples",
                data_label=name,
                data_kind=kind,
            )
        )
    controls = None
    if len(times) > 1:
        identity = f"slider-{number}"
        slider = tag(
            "input", type="range", id=identity, min="0", max=len(times) - 1, step="1", value=len(times) - 1,
            aria_valuetext=f"{times[-1]:,} images seen", data_times=" ".join(map(str, times)),
        )  # fmt: skip
        output = tag("output", f"{times[-1]:,} images", for_=identity)
        controls = tag("div", tag("label", "Images seen", for_=identity), slider, output, class_="controls js-only")
    heading = tag("h3", escape(_TITLES.get(kind, kind.replace("_", " ").capitalize())))
    side = max(picture.width for pictures in made.values() for picture in pictures)
    wide = min(max(side * (1 if side > 200 else 2), 220), 560)
    row = tag("div", *figures, class_="side-by-side", style=f"--wide:{wide}px")
    return tag("div", heading, controls, row, class_="kind", data_kind=kind)


def _image(kind: str, label: str, picture: Picture) -> Raw:
    return tag(
        "img", src=picture.uri, alt=f"{kind} of {label} after {picture.images:,} images", width=picture.width,
        height=picture.height, data_images=picture.images, decoding="async", class_="tiny" if picture.width < _TINY else None,
    )  # fmt: skip


def _seen(pictures: Sequence[Picture]) -> str:
    return " and ".join(f"{picture.images:,}" for picture in pictures) + " images"


def curves(runs: Sequence[Run], ranking: Ranking) -> Raw | None:
    """Return all charts over images seen, or None if there are none."""
    groups = charts_of(runs, ranking.metric, ranking.higher_is_better)
    if not groups:
        return None
    labels = [run.label for run in runs]
    parts = []
    everything: list[Chart] = []
    for title, group in groups.items():
        figures = []
        for chart in group:
            figures.append(_figure(chart, labels, len(everything)))
            everything.append(chart)
        many = f"{len(group)} chart{'s' * (len(group) != 1)}"
        summary = tag("summary", title, tag("span", f" {many}", class_="count"))
        parts.append(tag("details", summary, tag("div", *figures, class_="plots"), open=title in _OPEN))
    data = {
        "labels": labels,
        "looks": [charts.look(number) for number in range(len(runs))],
        "charts": [c.as_data() for c in everything],
    }
    drawn = sorted({each.run for chart in everything for each in chart.series})
    best = [each.number for each in ranking.standings if each.number in drawn][:_BEST]
    return join(
        _controls(labels, drawn, best),
        *parts,
        tag("p", _note(everything), class_="note"),
        json_in_script(data, id="curves-data"),
    )


def _controls(labels: Sequence[str], drawn: Sequence[int], best: Sequence[int]) -> Raw:
    """Return a button for each run and, if there are many, buttons for all, none and the best ones."""
    buttons = (
        tag(
            "button",
            charts.swatch(number),
            " ",
            tag("span", labels[number]),
            type="button",
            aria_pressed="true",
            data_run=number,
        )
        for number in drawn
    )
    choices = {"all": drawn, "none": [], f"best {len(best)}": best} if len(drawn) > _BEST else {}
    quick = (
        tag("button", name, type="button", class_="choice js-only", data_runs=" ".join(map(str, numbers)))
        for name, numbers in choices.items()
    )
    legend = tag("div", *quick, *buttons, class_="legend", role="group", aria_label="Runs that are shown")
    logarithmic = tag("label", tag("input", type="checkbox", id="logarithmic"), " logarithmic")
    smoothing = tag(
        "label", "smoothing ", tag("input", type="range", id="smoothing", min="0", max="0.98", step="0.02", value="0"),
        tag("span", "off", id="smoothing-value"),
    )  # fmt: skip
    options = tag("div", logarithmic, smoothing, class_="options js-only")
    return tag("div", legend, options, class_="toolbar")


def _figure(chart: Chart, labels: list[str], number: int) -> Raw:
    better = tag("span", f" {chart.better}", class_="count") if chart.better else None
    caption = tag("figcaption", chart.name, better)
    drawing = tag("div", charts.chart_svg(chart, labels), class_="drawing", data_chart=number)
    return tag("figure", caption, drawing, class_="chart")


def _note(everything: Sequence[Chart]) -> str:
    parts = []
    if any(each.best is not None for chart in everything for each in chart.series):
        parts.append("A ring marks the evaluation with the best primary metric.")
    if any(each.low for chart in everything for each in chart.series):
        parts.append("Shaded bands are 95 % intervals.")
    if any(chart.thinned for chart in everything):
        parts.append("Long curves are drawn by the lowest and highest points of each stretch.")
    parts.append("Smoothing is an exponential mean of training curves; evaluations are never smoothed.")
    return " ".join(parts)
