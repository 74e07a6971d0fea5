"""The data of a run that a report shows: its settings, evaluations, speed and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genimg.evaluation.directions import declared_direction
from genimg.utils.mappings import flatten

if TYPE_CHECKING:
    from genimg.reporting.surface import Surface

GREATEST = 1e150  # largest number that is shown, because its square is still finite
_STORAGE = {"device": "on the device", "host": "in memory", "workers": "on disk, read by workers"}


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

    @classmethod
    def from_numbers(cls, images: int, found: Any, provenance: Any) -> Measured | None:
        """Combine metrics with their bounds and deviations, which are recorded as separate metrics; None without metrics."""
        numbers = finite_numbers(found)
        parts = {f"{name}{ending}" for name in numbers for ending in ("_std", "_low", "_high")}
        values = {
            name: Value(number, *(numbers.get(f"{name}{ending}") for ending in ("_low", "_high", "_std")))
            for name, number in numbers.items()
            if name not in parts
        }
        return cls(images, values, provenance if isinstance(provenance, dict) else {}) if values else None

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], prefix: str) -> list[Measured]:
        """Return the evaluations in the records of a run, whose metrics have names that start with ``prefix``."""
        found = []
        for record in records:
            numbers = {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
            found.append(cls.from_numbers(record["images"], numbers, record.get("provenance")))
        return [each for each in found if each is not None]


@dataclass(frozen=True)
class Published:
    """A published value at one point of training.

    Attributes:
        images: Images seen.
        metric: Full name of the metric.
        value: The value.
        tolerance: Largest difference at which a run is on the curve.
        source: Source of the value.
    """

    images: int
    metric: str
    value: float
    tolerance: float
    source: str


@dataclass
class Run:
    """The contents of a run directory.

    Attributes:
        folder: The directory; it may be missing if only a sweep's table still lists the run.
        label: Name that is unique in the report.
        overrides: Overrides of its command line, without ``run_dir``.
        config: The composed config; empty if the run failed before writing it.
        config_text: Text of the config file.
        records: Records of metrics.jsonl, in order.
        summary: Contents of summary.json, which a run writes at its end; empty until then.
        status: completed, stopped, interrupted, diverged, failed, pruned (by its search), in progress, unfinished or not
            started.
        reason: Reason why it did not complete; empty if it did.
        pictures: Files by kind and number of images seen.
        surface: Operating surface that genimg-eval measured; None if there is none.
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
    surface: Surface | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as a flat mapping of dotted keys."""
        return flatten(self.config) if self.config else {}

    @cached_property
    def overridden(self) -> dict[str, str]:
        """The overrides as a mapping of keys."""
        return dict(map(parsed, self.overrides))

    @property
    def known_settings(self) -> dict[str, Any]:
        """The config or, if the run failed before it had one, the overrides."""
        return self.settings or self.overridden

    @cached_property
    def expected(self) -> list[Published]:
        """Published points in the config; invalid ones are omitted."""
        found = self.config.get("expected")
        points = []
        for each in found if isinstance(found, list) else ():
            numbers = finite_numbers(each)
            if type(each) is dict and numbers.keys() >= {"images", "value", "tolerance"} and numbers["images"] >= 1:
                texts = str(each.get("metric", "")), str(each.get("source", ""))
                points.append(Published(int(numbers["images"]), texts[0], numbers["value"], numbers["tolerance"], texts[1]))
        return points

    @property
    def seed(self) -> str:
        """The seed as text; empty if it is unknown."""
        return str(self.known_settings.get("seed", ""))

    @property
    def dataset(self) -> str:
        """The name, split and number of the training images, such as ``mnist, split train, 10 % held out, 54,000 images``.

        If a run failed before it wrote a config, the overrides name the dataset. A dash stands for an unknown dataset.
        """
        own, recorded = self.known_settings, self.summary.get("data") or {}
        kind = str(own.get("data._target_", own.get("data", ""))).rpartition(".")[2]
        split, root = own.get("data.split"), own.get("data.root") or own.get("data.path")
        name = recorded.get("name") or (f"{kind} {Path(str(root)).name}" if root and split is None else kind)
        if not name or not self.settings:
            return name or "—"
        parts = [name.removesuffix(f"/{split}")] if split is not None else [name]
        if split is not None:
            parts.append(f"split {split}")
        held_out = own.get("data.validation")
        if isinstance(held_out, str):
            parts.append(f"validation split {held_out}")
        elif type(held_out) is float and 0 < held_out < 1:
            parts.append(f"{100 * held_out:.3g} % held out")
        if recorded.get("num_images") is not None:
            of = f" of {recorded['part_of']:,}" if recorded.get("part_of") is not None else ""
            parts.append(f"{recorded['num_images']:,}{of} images")
        return ", ".join(parts)

    @property
    def circumstances(self) -> dict[str, str]:
        """Data, machine and software as text, by title."""
        summary = self.summary
        return {
            "Data": self.dataset,
            "Data stored": _STORAGE.get(summary.get("storage", ""), "—"),
            "Machine": ", ".join(f"{key}: {value}" for key, value in summary.get("hardware", {}).items()) or "—",
            "Processes": str(summary.get("processes", "—")),
            "Versions": ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items()) or "—",
            "Commit": summary.get("git_commit", "—"),
        }

    @cached_property
    def evaluations(self) -> list[Measured]:
        """All evaluations during training, in order of images seen."""
        return Measured.from_records(self.records, "evaluation/")

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
        return declared_direction(self.config.get("evaluation")) if recorded is None else recorded

    @property
    def last(self) -> Measured | None:
        """The latest evaluation."""
        return self.evaluations[-1] if self.evaluations else self._from_summary("last", self.images)

    @property
    def best(self) -> Measured | None:
        """The evaluation that is recorded as the best, or else the one with the best primary value."""
        images = self.summary.get("best_images")
        if self.status != "in progress" and images is not None:
            found = next((each for each in self.evaluations if each.images == images), None)
            return found or self._from_summary("best", images)
        name, up = self.primary, self.higher_is_better
        known = [each for each in self.evaluations if name in each.values]
        if not known or name is None or up is None:
            return None
        # The first if several are equal, as in the trainer.
        return (max if up else min)(known, key=lambda each: each.values[name].number)

    @property
    def num_evaluations(self) -> int | None:
        """The number of evaluations that the best was chosen from; None if unknown."""
        if self.status != "in progress" and "best_images" in self.summary:
            return self.summary.get("num_evaluations")
        return sum(self.primary in each.values for each in self.evaluations)

    @cached_property
    def final(self) -> Measured | None:
        """The final evaluation, with more images, if there was one."""
        if recorded := Measured.from_records(self.records, "final/"):
            return recorded[-1]
        final = self.summary.get("final") or {}
        return Measured.from_numbers(self.images, final.get("metrics"), final.get("provenance"))

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
        """The run's throughput and times by name, from its summary or else from its records so far; unknown ones are None.

        ``images_per_second`` and ``training_seconds`` exclude evaluations. ``evaluation_share`` is the share of
        ``evaluation_seconds`` in the sum of both times. ``data_wait_share`` is the share of training spent waiting for data.
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

    @property
    def seconds_per_generated_image(self) -> float | None:
        """Time to generate an image in the last evaluation; None if unknown."""
        found = [record.get("time/seconds_per_generated_image") for record in self.records]
        return next((float(each) for each in reversed(found) if type(each) in (int, float)), None)

    def _from_summary(self, name: str, images: int) -> Measured | None:
        return Measured.from_numbers(images, self.summary.get(name), self.summary.get("provenance"))


def parsed(override: str) -> tuple[str, str]:
    """Split ``key=value`` and remove Hydra's quotes and prefixes; ``~key`` has the value ``(removed)``."""
    if override.startswith("~"):
        return override[1:].partition("=")[0], "(removed)"
    key, _, value = override.lstrip("+").partition("=")
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return key, re.sub(r"\\(['\"\\])", r"\1", value[1:-1])
    return key, re.sub(r"\\(.)", r"\1", value)


def finite_numbers(found: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping by key; empty if ``found`` is not a mapping."""
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(key): float(value) for key, value in pairs if type(value) in (int, float) and abs(value) < GREATEST}


def _speed_of(records: Iterable[Mapping[str, Any]]) -> tuple[float | None, float | None, float | None]:
    """Return the rate, data wait share and evaluation seconds, from records that hold rate and wait share of an interval."""
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
