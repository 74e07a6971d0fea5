"""What checkpoints record about the number of CPU threads of the steps between them."""

from __future__ import annotations

from genimg.api.opened_checkpoints import OpenedCheckpoint
from genimg.training.recorded_threads import RecordedThreads

INCOMPLETE = "the checkpoint is of an older version, which did not record steps that compared numbers of CPU threads"


def recorded_threads(last: OpenedCheckpoint) -> RecordedThreads:
    """Return the numbers of threads that a checkpoint records; without a record of steps, that of its launch."""
    otherwise = last.state["hardware"].get("threads")
    return RecordedThreads(
        last.training.threads,
        last.training.compared_threads or [],
        otherwise if type(otherwise) is int and not last.training.threads else None,
    )


def is_incomplete(first: OpenedCheckpoint, last: OpenedCheckpoint) -> bool:
    """Return whether steps between two checkpoints may have run with numbers of threads that the later one does not record."""
    is_auto = first.state["config"].get("performance", {}).get("threads", "auto") == "auto"
    return last.training.compared_threads is None and is_auto and last.state["hardware"].get("device") == "cpu"


def changes(first: OpenedCheckpoint, last: OpenedCheckpoint) -> list[str]:
    """Return where the number of threads changed between two checkpoints, one phrase each."""
    pairs = zip(last.training.threads, last.training.threads[1:], strict=False)
    return [
        f"the number of CPU threads changed from {before} to {now} at step {step:,}"
        for (_, before), (step, now) in pairs
        if first.step <= step < last.step and before != now
    ]


def notes(first: OpenedCheckpoint, last: OpenedCheckpoint) -> list[str]:
    """Return everything that a replay with the recorded numbers depends on, one phrase each."""
    found = changes(first, last)
    if is_incomplete(first, last):
        return [*found, INCOMPLETE]
    compared = last.training.compared_threads or []
    count = sum(max(0, min(begin + number, last.step) - max(begin, first.step)) for begin, number, _ in compared)
    return [*found, f"{count:,} steps compared other numbers of CPU threads, as recorded"] if count else found
