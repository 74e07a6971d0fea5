"""Measured values and facts of runs in words, as the page, the Markdown and the CSV file share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genimg.reporting.runs import Measured, Run, Value
from genimg.reporting.scales import number_in_words
from genimg.utils.mappings import flatten


@dataclass(frozen=True)
class Speed:
    """What a run's time went into.

    Attributes:
        images_per_second: while training; None where it is not known.
        training_seconds: the evaluations apart.
        evaluation_seconds: of all evaluations.
        evaluation_share: of both together.
        data_wait_share: of the training, waiting for data.
    """

    images_per_second: float | None
    training_seconds: float | None
    evaluation_seconds: float | None
    evaluation_share: float | None
    data_wait_share: float | None


def speed(run: Run) -> Speed:
    """From the run's summary, else from its records so far."""
    rate, waiting = run.summary.get("training_images_per_second"), run.summary.get("data_wait_share")
    evaluating = run.summary.get("evaluation_seconds")
    if rate is None or run.status == "in progress":
        rate, waiting, evaluating = _from_records(run)
    training = run.images / rate if rate else None
    share = evaluating / (training + evaluating) if training is not None and evaluating is not None else None
    return Speed(rate, training, evaluating, share, waiting)


def _from_records(run: Run) -> tuple[float | None, float | None, float | None]:
    """Records give the rate of an interval each, and the share of it that was waited."""
    seconds = waited = evaluating = 0.0
    before = 0
    for record in run.records:
        if rate := record.get("time/images_per_second"):
            spent = (record["images"] - before) / rate
            before = record["images"]
            seconds += spent
            waited += spent * record.get("time/data_wait_share", 0.0)
        evaluating += record.get("time/evaluation_seconds", 0.0)
    return (before / seconds, waited / seconds, evaluating) if seconds > 0 else (None, None, None)


def value_in_words(value: Value | None) -> str:
    """``28.49 [27.91, 29.14]`` with a 95 % interval, ``0.409 (sd 0.027)`` with a deviation; a dash for None."""
    if value is None:
        return "—"
    text = number_in_words(value.number)
    if value.low is not None and value.high is not None:
        text += f" [{number_in_words(value.low)}, {number_in_words(value.high)}]"
    if value.deviation is not None:
        text += f" (sd {number_in_words(value.deviation, 2)})"
    return text


def duration_in_words(seconds: float | None) -> str:
    """``1 h 05 min``, ``3 min 20 s``, ``45 s``; a dash for None."""
    if seconds is None:
        return "—"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def share_in_words(share: float | None, digits: int = 1) -> str:
    """In per cent; a dash for None."""
    return "—" if share is None else f"{100 * share:.{digits}f} %"


def among_evaluations(run: Run) -> str:
    """Return `` of 5 evaluations``, over which the best one was chosen; nothing where they were not counted."""
    count = run.num_evaluations
    return "" if count is None else f" of {count} evaluation{'s' * (count != 1)}"


def columns(run: Run) -> dict[str, Measured]:
    """The evaluations that a run's table shows, by title."""
    found = {"last": run.last, f"best{among_evaluations(run)}": run.best, "at the end": run.final}
    return {title: each for title, each in found.items() if each is not None}


def provenance(measured: Measured) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What an evaluation depends on, with titles: the important things, and all others."""
    found = measured.provenance
    facts = {key: value for key, value in flatten(found).items() if value not in (None, {}, "")} if found else {}
    titles = {
        "extractor.name": "extractor",
        "extractor.weights_sha256": "extractor's weights (SHA-256)",
        "generated.num_images": "generated images",
        "generated.weights": "weights of the model",
        "generated.seed": "seed of the generated images",
        "real.source": "compared with",
        "real.num_images": "real images",
        "likelihood.source": "images of",
        "likelihood.num_images": "images",
        "likelihood.held_out": "held out",
        "likelihood.num_samples": "samples of each",
        "likelihood.weights": "weights of the model",
        "likelihood.seed": "seed",
        "translation.source": "images of",
        "translation.num_images": "images",
        "translation.held_out": "held out",
        "translation.weights": "weights of the model",
        "translation.seed": "seed",
    }
    first = [(title, _fact(facts[key])) for key, title in titles.items() if key in facts]
    rest = [(key, _fact(value)) for key, value in facts.items() if key not in titles]
    return first, rest


def _fact(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def hardware(run: Run) -> str:
    """In a line; a dash where it is not known."""
    found = run.summary.get("hardware")
    if isinstance(found, dict):
        return ", ".join(f"{key}: {value}" for key, value in found.items() if value not in (None, ""))
    return str(found) if found else "—"
