"""Measured values and facts of runs as text, shared by the page, the Markdown file and the CSV file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from genimg.reporting.runs import Measured, Run, Value
from genimg.reporting.scales import number_in_words
from genimg.utils.durations import time_in_words
from genimg.utils.mappings import flatten


@dataclass(frozen=True)
class Speed:
    """The time that a run took. Unknown values are None.

    Attributes:
        images_per_second: Throughput of the training, without evaluations.
        training_seconds: Time of the training, without evaluations.
        evaluation_seconds: Time of all evaluations.
        evaluation_share: Share of the evaluations in both times together.
        data_wait_share: Share of the training time spent waiting for data.
    """

    images_per_second: float | None
    training_seconds: float | None
    evaluation_seconds: float | None
    evaluation_share: float | None
    data_wait_share: float | None


def speed(run: Run) -> Speed:
    """Return a run's speed from its summary, or else from its records so far."""
    rate, waiting = run.summary.get("training_images_per_second"), run.summary.get("data_wait_share")
    evaluating = run.summary.get("evaluation_seconds")
    if rate is None or run.status == "in progress":
        rate, waiting, evaluating = _from_records(run)
    training = run.images / rate if rate else None
    share = evaluating / (training + evaluating) if training is not None and evaluating is not None else None
    return Speed(rate, training, evaluating, share, waiting)


def _from_records(run: Run) -> tuple[float | None, float | None, float | None]:
    """Return rate, data wait share and evaluation seconds from records, each with the rate and wait share of its interval."""
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
    """Return ``28.49 [27.91, 29.14]`` with a 95 % interval, ``0.409 (sd 0.027)`` with a deviation, or a dash for None."""
    if value is None:
        return "—"
    text = number_in_words(value.number)
    if value.low is not None and value.high is not None:
        text += f" [{number_in_words(value.low)}, {number_in_words(value.high)}]"
    if value.deviation is not None:
        text += f" (sd {number_in_words(value.deviation, 2)})"
    return text


def duration_in_words(seconds: float | None) -> str:
    """Return ``1 h 05 min``, ``3 min 20 s`` or ``45 s``, or a dash for None."""
    return "—" if seconds is None else time_in_words(seconds)


def share_in_words(share: float | None, digits: int = 1) -> str:
    """Return a share in per cent, or a dash for None."""
    return "—" if share is None else f"{100 * share:.{digits}f} %"


def among_evaluations(run: Run) -> str:
    """Return `` of 5 evaluations``, the number that the best was chosen from, or an empty string if it is unknown."""
    count = run.num_evaluations
    return "" if count is None else f" of {count} evaluation{'s' * (count != 1)}"


def columns(run: Run) -> dict[str, Measured]:
    """Return the evaluations in a run's table, by title."""
    found = {"last": run.last, f"best{among_evaluations(run)}": run.best, "at the end": run.final}
    return {title: each for title, each in found.items() if each is not None}


def provenance(measured: Measured) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the titled facts that an evaluation depends on: the important ones, and all others."""
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
    titles |= {key: "additional extractor" for key in facts if re.fullmatch(r"additional\.\w+\.extractor\.name", key)}
    first = [(title, _fact(facts[key])) for key, title in titles.items() if key in facts]
    rest = [(key, _fact(value)) for key, value in facts.items() if key not in titles]
    return first, rest


def _fact(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def hardware(run: Run) -> str:
    """Return a run's hardware in one line, or a dash if it is unknown."""
    found = run.summary.get("hardware")
    if isinstance(found, dict):
        return ", ".join(f"{key}: {value}" for key, value in found.items() if value not in (None, ""))
    return str(found) if found else "—"
