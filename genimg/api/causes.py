"""Find out why a replayed training differs from the recorded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from genimg.api.verification import Cause
from genimg.config import resume
from genimg.config.compose import thaw
from genimg.data.identity import refused_differences, warned_differences
from genimg.training.state_differences import StateComparison
from genimg.utils.mappings import flatten

Facts = Mapping[str, Any]

_UNKNOWN = "not recorded"
_DECIDED = ("precision", "accumulation", "compile", "graph")
_OF_DATA = {
    "num_images": "number of training images", "class_names": "list of classes", "facts": "description of the images"
}  # fmt: skip
_OF_HARDWARE = {"name": "the processor", "instructions": "the CPU's instruction set"}


def settings_changed(first: Facts, last: Facts) -> list[str]:
    """Return the settings that affect the result and differ between the configs of two checkpoints, one line each.

    Args:
        first, last: Contents of the checkpoints.
    """
    changes = resume.differences(first["config"], last["config"])
    lines = resume.in_short(changes, first["raw_config"], last["raw_config"]).splitlines()
    before, now = (flatten(thaw(state["config"].get("performance") or {}), "performance.") for state in (first, last))
    keys = sorted((before | now).keys() - {"performance.threads"})
    lines += [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    return [line.strip() for line in lines if line.strip()]


def facts_changed(first: Facts, last: Facts, now: Facts) -> Iterator[Cause]:
    """Yield the facts that affect rounding or the images and differ between two checkpoints and a replay.

    Args:
        first, last: Contents of the checkpoints.
        now: Facts of the replay.
    """
    for name in ("genimg", "torch", "numpy"):
        key = f"{name}_version"
        yield from _differing("versions", f"the version of {name}", first.get(key), last.get(key), now[key])
    for key, title in _OF_HARDWARE.items():
        values = (facts["hardware"].get(key) for facts in (first, last, now))
        yield from _differing("hardware", title, *values)
    for key in _DECIDED:
        before, after = (state["decisions"].get(key) for state in (first, last))
        yield from _differing("precision", key, before, after, now["precision"] if key == "precision" else after)
    performance = (facts.get("performance") for facts in (first, last, now))
    yield from _differing("precision", "the performance settings", *performance)
    yield from _differing(
        "hardware", "the number of processes", first.get("processes"), last.get("processes"), now["processes"]
    )
    for title, state in (("earlier", first), ("later", last)):
        before = state.get("data") or {}
        found = [*refused_differences(before, now["data"]), *warned_differences(before, now["data"])] if before else []
        if found:
            yield Cause("data", f"the data is not that of the {title} checkpoint: {'; '.join(found)}")
            return


def _differing(kind: str, title: str, first: Any, last: Any, now: Any) -> Iterator[Cause]:
    known = [value for value in (first, last, now) if value is not None]
    if any(value != known[0] for value in known):
        before, after = (_UNKNOWN if value is None else value for value in (first, last))
        yield Cause(kind, f"{title}: {before} (earlier checkpoint), {after} (later checkpoint), {now} (replay)")


def find_causes(
    comparison: StateComparison,
    first: Facts,
    last: Facts,
    now: Facts,
    *,
    name: str,
    of_threads: Callable[[], Cause | None],
    is_explained: Callable[[], bool | None],
) -> tuple[Cause, ...]:
    """Return the causes of differences that can be found, the most likely first.

    Args:
        comparison: Comparison of the replay's end with the later checkpoint.
        first, last: Contents of the checkpoints.
        now: Facts of the replay.
        name: Name of the later checkpoint, for messages.
        of_threads: Function that returns the cause if it is the number of threads, else None.
        is_explained: Function that returns whether a replay with the settings of the later checkpoint leads to it; None if such
            a replay is impossible.
    """
    causes: list[Cause] = []
    if lines := settings_changed(first, last):
        explained = is_explained()
        causes += [Cause("settings", f"a setting changed: {line}", explained) for line in lines]
        if explained:
            return tuple(causes)
    if (found := of_threads()) is not None:
        causes.append(found)
        if found.is_established:
            return tuple(causes)
    causes += facts_changed(first, last, now)
    if flipped := comparison.flipped:
        for part, difference in flipped:
            for element in difference.elements:
                index = ", ".join(map(str, element.index))
                causes.append(
                    Cause(
                        "corruption",
                        f"{name} is corrupt: bit {element.bits[0]} of {difference.name}[{index}] ({part.name}) is flipped, so "
                        f"the value is {element.found:.9g} instead of {element.expected:.9g}",
                    )
                )
    return tuple(causes) or (_unknown(comparison, now, name),)


def contradictions(first: Facts, last: Facts, name: str, *, is_explained: Callable[[], bool | None]) -> tuple[Cause, ...]:
    """Return what the later of two checkpoints records although a replay without it leads to the same bits.

    Args:
        first, last: Contents of the checkpoints.
        name: Name of the later checkpoint, for messages.
        is_explained: As in ``find_causes``.
    """
    causes = [
        Cause("data", f"{name} records another {title}: {last[key]}, not {first[key]}")
        for key, title in _OF_DATA.items()
        if None not in (first.get(key), last.get(key)) and first[key] != last[key]
    ]
    if (lines := settings_changed(first, last)) and not is_explained():
        what = f"{name} records a setting with which a replay does not lead to it"
        causes += [Cause("settings", f"{what}: {line}") for line in lines]
    return tuple(causes)


def _unknown(comparison: StateComparison, now: Facts, name: str) -> Cause:
    if comparison.arose_after_training:
        differ = {part.name.partition(" ")[0] for part in comparison.differing}
        equal = "weights" if "optimizer" in differ else "states of the optimizers"
        return Cause(
            "change",
            f"{name} was probably changed after it was written: the {equal} are equal bit for bit, and a step computed in "
            "another way would have changed them, too",
        )
    count = sum(len(part.differences) for part in comparison.differing)
    total = comparison.num_tensors + comparison.num_values
    text = (
        f"nothing that the checkpoints record explains the difference; {count:,} of {total:,} tensors and values differ, so "
        "something before the later checkpoint differed: the earlier checkpoint was changed after it was written, or a step "
        "was computed in another way"
    )
    if now["hardware"]["device"] != "cpu":
        text += "; on a GPU, operations without a fixed order of additions also differ from run to run"
    return Cause("unknown", text)
