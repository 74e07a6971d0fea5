"""The result of a verification: which checkpoints follow from which, what differs, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genimg.training.state_differences import StateComparison, ValueDifference
from genimg.utils.durations import time_in_words
from genimg.utils.paths import relative

_MOST_SHOWN = 20  # parts listed in the text
_WITH = {"settings": "the settings of the later checkpoint", "threads": "the recorded number"}


def command_for(processes: int) -> str:
    """Return the command that verifies a run of this number of processes on one machine."""
    return "genimg-verify" if processes == 1 else f"torchrun --standalone --nproc-per-node={processes} -m genimg.verify"


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """One end of a replayed part of a training.

    Attributes:
        path: Path of the file; None for the start of the training, which is the initialisation.
        step: Step at which it was written.
        images: Images seen.
        sha256: SHA-256 of the file; None for the start.
        config_sha256: SHA-256 of its config, as JSON with sorted keys and without spaces.
    """

    path: Path | None
    step: int
    images: int
    sha256: str | None
    config_sha256: str

    def __str__(self) -> str:
        return "the initialisation" if self.path is None else f"step {self.step:,}"

    def record(self) -> dict[str, Any]:
        """Return it in the format of the JSON file."""
        path = None if self.path is None else str(self.path)
        return {
            "file": path, "step": self.step, "images": self.images, "sha256": self.sha256, "config_sha256": self.config_sha256
        }  # fmt: skip


@dataclass(frozen=True)
class Cause:
    """A cause of a difference.

    Attributes:
        kind: ``settings``, ``threads``, ``versions``, ``hardware``, ``precision``, ``data``, ``corruption``, ``change`` of
            the file, or ``unknown``.
        text: Description.
        is_established: Whether a second replay has shown that this is the whole cause; None if that was not tried.
    """

    kind: str
    text: str
    is_established: bool | None = None

    def __str__(self) -> str:
        if self.is_established is None:
            return self.text
        how = "leads to it, bit for bit" if self.is_established else "does not lead to it either"
        return f"{self.text} (a replay with {_WITH.get(self.kind, 'it')} {how})"


@dataclass(frozen=True)
class Interval:
    """A part of a training between two checkpoints, and how its replay ended.

    Attributes:
        first, last: The two checkpoints.
        comparison: Comparison of the replay's end with the later checkpoint; None if the replay diverged.
        causes: Causes of the differences; empty if there are none.
        notes: Facts that the certificate depends on, such as changes of the number of threads.
        threads: Numbers of CPU threads of the replayed steps.
        seconds: Seconds that the steps took.
    """

    first: VerifiedCheckpoint
    last: VerifiedCheckpoint
    comparison: StateComparison | None
    causes: tuple[Cause, ...]
    notes: tuple[str, ...]
    threads: tuple[int, ...]
    seconds: float

    @property
    def certified(self) -> bool:
        """Whether the later checkpoint is, bit for bit, what the earlier one leads to."""
        return self.comparison is not None and not self.comparison.differing and not self.causes

    @property
    def is_corrupt(self) -> bool:
        """Whether the later checkpoint was changed after it was computed."""
        return any(cause.kind in ("corruption", "change") for cause in self.causes)

    def headline(self) -> str:
        """Return whether the later checkpoint is certified, in one line."""
        if self.certified:
            return f"certified: {self.first} leads to step {self.last.step:,}, bit for bit"
        if self.comparison is not None and not self.comparison.differing:
            return f"NOT certified: {self.first} leads to step {self.last.step:,}, but not with what this checkpoint records"
        return f"NOT certified: step {self.last.step:,} is not what {self.first} leads to"

    def lines(self) -> list[str]:
        """Return a description, one item per line."""
        lines = [self.headline()]
        for name, each in (("earlier", self.first), ("later", self.last)):
            if each.path is not None:
                lines.append(f"  {f'{name} checkpoint':<20}{relative(each.path)}  sha256 {each.sha256}")
        lines.append(f"  config              sha256 {self.last.config_sha256}")
        steps, images = self.last.step - self.first.step, self.last.images - self.first.images
        lines.append(f"  replayed            {steps:,} steps, {images:,} images in {time_in_words(self.seconds)}")
        if self.threads:
            lines.append(f"  CPU threads         {', '.join(map(str, self.threads))}")
        if self.comparison is not None:
            found = self.comparison
            lines.append(
                f"  compared            {found.num_tensors:,} tensors ({found.num_bytes:,} bytes) and {found.num_values:,} "
                "other values"
            )
            shown = [f"    {part}" for part in found.differing]
            lines += ["  differences:"] * bool(shown) + shown[:_MOST_SHOWN]
        lines += [f"  cause:              {cause}" for cause in self.causes]
        return lines + [f"  note:               {note}" for note in self.notes]

    def record(self) -> dict[str, Any]:
        """Return it in the format of the JSON file."""
        found = self.comparison
        return {
            "certified": self.certified,
            "first": self.first.record(),
            "last": self.last.record(),
            "steps": self.last.step - self.first.step,
            "images": self.last.images - self.first.images,
            "threads": list(self.threads),
            "seconds": round(self.seconds, 1),
            "tensors": 0 if found is None else found.num_tensors,
            "bytes": 0 if found is None else found.num_bytes,
            "values": 0 if found is None else found.num_values,
            "differences": [] if found is None else [
                {"part": part.name, "of_tensors": part.num_tensors, **_difference(each)}
                for part in found.differing for each in part.differences
            ],
            "causes": [
                {"kind": cause.kind, "text": cause.text, "established": cause.is_established} for cause in self.causes
            ],
            "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """The result of ``genimg.verify``.

    Attributes:
        run: Directory of the run.
        intervals: The replayed parts of the training, in order.
        versions: Versions of genimg, Python and the packages that affect results.
        hardware: Device and processor of the replay.
        processes: Number of processes of the replay, which is that of the training.
        date: Date and time of the replay in UTC, in ISO 8601.
        advice: What to do next; empty if everything is certified.
    """

    run: Path
    intervals: tuple[Interval, ...]
    versions: Mapping[str, str] = field(repr=False)
    hardware: Mapping[str, Any] = field(repr=False)
    processes: int
    date: str
    advice: Sequence[str] = ()

    @property
    def certified(self) -> bool:
        """Whether every later checkpoint is, bit for bit, what the earlier one leads to."""
        return all(interval.certified for interval in self.intervals)

    @property
    def first_bad(self) -> Interval | None:
        """The first interval that is not certified; None if all are."""
        return next((interval for interval in self.intervals if not interval.certified), None)

    def lines(self) -> list[str]:
        """Return the certificate as text, one item per line."""
        lines = [line for interval in self.intervals for line in interval.lines()]
        bad = self.first_bad
        if len(self.intervals) > 1:
            count = sum(interval.certified for interval in self.intervals)
            lines.append(f"{count} of {len(self.intervals)} intervals certified")
            if bad is not None:
                lines.append(f"first interval that is not certified: {bad.first} to step {bad.last.step:,}")
        hardware = self.hardware
        lines.append(f"run                   {relative(self.run)}")
        lines.append("versions              " + ", ".join(f"{name} {self.versions[name]}" for name in _VERSIONS))
        lines.append("hardware              " + ", ".join(str(hardware[key]) for key in _HARDWARE if key in hardware))
        if self.processes > 1:
            lines.append(f"processes             {self.processes}")
        lines.append(f"date                  {self.date}")
        return [*lines, *self.advice]

    def record(self) -> dict[str, Any]:
        """Return the certificate in the format of the JSON file."""
        bad = self.first_bad
        return {
            "format": "genimg verification",
            "version": 1,
            "certified": self.certified,
            "run": str(self.run),
            "intervals": [interval.record() for interval in self.intervals],
            "first_bad_interval": None if bad is None else self.intervals.index(bad),
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
            "processes": self.processes,
            "date": self.date,
        }


_VERSIONS = ("genimg", "torch", "numpy", "python")
_HARDWARE = ("device", "name", "instructions", "system")


def _difference(found: ValueDifference) -> dict[str, Any]:
    return {
        "name": found.name,
        "expected": found.expected,
        "found": found.found,
        "elements": found.count,
        "largest": _finite(found.largest),
        "first_elements": [
            {
                "index": list(each.index), "expected": _finite(each.expected), "found": _finite(each.found),
                "bits": list(each.bits),
            }
            for each in found.elements
        ],
    }  # fmt: skip


def _finite(value: float) -> float | str:
    """Return a number for JSON, which has no infinite values and no NaN."""
    return value if math.isfinite(value) else str(value)
