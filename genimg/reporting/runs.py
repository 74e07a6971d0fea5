"""What a report knows about a run: its settings, evaluations, speed and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from genimg.evaluation.directions import declared_direction
from genimg.utils.mappings import flatten

_GREATEST = 1e150  # largest number that is shown; its square is finite


@dataclass(frozen=True)
class Value:
    """A measured number.

    Attributes:
        number: The value.
        low, high: Bounds of its 95 % interval, if computed.
        deviation: Standard deviation over subsets or splits, if the metric has one.
    """

    number: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Attributes:
        images: Number of images that the model had seen.
        values: Values by full metric name, the primary metric first.
        provenance: Facts that the values depend on; empty if not recorded.
    """

    images: int
    values: dict[str, Value]
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The contents of a run directory.

    Attributes:
        folder: The directory, which may be missing if a sweep's table still names it.
        label: Name that is unique in the report.
        overrides: Overrides of its command line, without ``run_dir``.
        config: The composed config; empty if the run failed before writing it.
        config_text: Text of the config file.
        records: Records of metrics.jsonl, in order.
        summary: Contents of summary.json, which a run writes at its end; empty before.
        status: completed, stopped, interrupted, diverged, failed, pruned (by its search), in progress, unfinished or not
            started.
        reason: Why it did not complete, as text; empty if it did.
        pictures: Files by kind and number of images seen.
    """

    folder: Path
    label: str
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    status: str = "not started"
    reason: str = ""
    pictures: dict[str, dict[int, Path]] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as a flat mapping of dotted keys."""
        return flatten(self.config) if self.config else {}

    @cached_property
    def evaluations(self) -> list[Measured]:
        """All evaluations during the training, in order of images seen."""
        return list(_measured(self.records, "evaluation/"))

    @property
    def primary(self) -> str | None:
        """The metric that chooses the best checkpoint; None if nothing was measured."""
        named = self.summary.get("primary")
        first = self.evaluations[0].values if self.evaluations else {}
        values = self.summary.get("best") or self.summary.get("last") or first
        return str(named) if named in values else next(iter(values), None)

    @property
    def higher_is_better(self) -> bool | None:
        """Whether higher values of the primary metric are better; None if unknown."""
        recorded = self.summary.get("higher_is_better")
        return recorded if isinstance(recorded, bool) else declared_direction(self.config.get("evaluation"))

    @property
    def last(self) -> Measured | None:
        """The latest evaluation."""
        return self.evaluations[-1] if self.evaluations else self._of_summary("last", self.images)

    @property
    def best(self) -> Measured | None:
        """The evaluation recorded as the best, or else the one with the best primary value."""
        images = self.summary.get("best_images")
        if self.status != "in progress" and isinstance(images, int):
            found = next((each for each in self.evaluations if each.images == images), None)
            return found or self._of_summary("best", images)
        name, up = self.primary, self.higher_is_better
        known = [each for each in self.evaluations if name in each.values]
        if not known or name is None or up is None:
            return None
        return (max if up else min)(known, key=lambda each: each.values[name].number)  # the first of equals, as in the trainer

    @property
    def num_evaluations(self) -> int | None:
        """The number of evaluations that the best was chosen from; None if unknown."""
        if self.status != "in progress" and "best_images" in self.summary:
            recorded = self.summary.get("num_evaluations")
            return recorded if isinstance(recorded, int) else None
        return sum(self.primary in each.values for each in self.evaluations)

    @cached_property
    def final(self) -> Measured | None:
        """The evaluation with more images at the end of the training, if there was one."""
        if recorded := list(_measured(self.records, "final/")):
            return recorded[-1]
        final = self.summary.get("final") or {}
        values = _with_deviations(finite_numbers(final.get("metrics")))
        return Measured(self.images, values, final.get("provenance", {})) if values else None

    @property
    def evaluated(self) -> dict[str, Measured]:
        """The last, best and final evaluation by title, where they exist."""
        count = self.num_evaluations
        best = "best" if count is None else f"best of {count} evaluation{'s' * (count != 1)}"
        found = {"last": self.last, best: self.best, "at the end": self.final}
        return {title: each for title, each in found.items() if each is not None}

    @property
    def images(self) -> int:
        """Number of images seen so far."""
        recorded = self.records[-1]["images"] if self.records else 0
        return max(int(recorded), int(self.summary.get("images") or 0))

    @cached_property
    def speed(self) -> dict[str, float | None]:
        """Its throughput and times by name, from its summary, or else from its records so far; unknown ones are None.

        ``images_per_second`` and ``training_seconds`` are without evaluations, and ``evaluation_share`` is the share of the
        ``evaluation_seconds`` in both times together. ``data_wait_share`` is the share of the training spent waiting for data.
        """
        rate, waiting = self.summary.get("training_images_per_second"), self.summary.get("data_wait_share")
        evaluating = self.summary.get("evaluation_seconds")
        if rate is None or self.status == "in progress":
            rate, waiting, evaluating = _speed_of(self.records)
        training = self.images / rate if rate else None
        return {
            "images_per_second": rate,
            "training_seconds": training,
            "evaluation_seconds": evaluating,
            "evaluation_share": evaluating / (training + evaluating) if training and evaluating is not None else None,
            "data_wait_share": waiting,
        }

    def _of_summary(self, name: str, images: int) -> Measured | None:
        values = _with_deviations(finite_numbers(self.summary.get(name)))
        return Measured(images, values, self.summary.get("provenance") or {}) if values else None


def finite_numbers(found: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping by key; empty if ``found`` is not a mapping."""
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(key): float(value) for key, value in pairs if type(value) in (int, float) and abs(value) < _GREATEST}


def _measured(records: Iterable[Mapping[str, Any]], prefix: str) -> Iterator[Measured]:
    for record in records:
        numbers = finite_numbers({key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)})
        if values := _with_deviations(numbers):
            provenance = record.get("provenance")
            yield Measured(int(record["images"]), values, provenance if isinstance(provenance, dict) else {})


def _with_deviations(numbers: Mapping[str, float]) -> dict[str, Value]:
    """Combine metrics with their bounds and deviations, which are recorded as separate metrics."""
    belongs = {f"{name}{ending}" for name in numbers for ending in ("_std", "_low", "_high")}
    return {
        name: Value(number, *(numbers.get(f"{name}{ending}") for ending in ("_low", "_high", "_std")))
        for name, number in numbers.items()
        if name not in belongs
    }


def _speed_of(records: Iterable[Mapping[str, Any]]) -> tuple[float | None, float | None, float | None]:
    """Return rate, data wait share and evaluation seconds from records, each with the rate and wait share of its interval."""
    seconds = waited = evaluating = 0.0
    before = 0
    for record in records:
        times = finite_numbers(record)
        if rate := times.get("time/images_per_second"):
            spent = (record["images"] - before) / rate
            before = record["images"]
            seconds += spent
            waited += spent * times.get("time/data_wait_share", 0.0)
        evaluating += times.get("time/evaluation_seconds", 0.0)
    return (before / seconds, waited / seconds, evaluating) if seconds > 0 else (None, None, None)
