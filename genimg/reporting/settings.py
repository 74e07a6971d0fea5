"""Find the keys that a sweep varied, the keys in which configs differ, and the runs that differ only in their seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard

from genimg.reporting.runs import GREATEST, Run

_NOT_OF_THE_TRAINING = ("run_dir", "resume", "resume_force", "traceback", "print_config", "dry_run")
_CONSTANTS = {"true": True, "false": False, "null": None}
Setting = str | float | int | bool | None


def swept_settings(runs: Sequence[Run]) -> dict[str, list[Setting]]:
    """Return the overridden keys whose values differ between runs, with the value of each run.

    A run that does not override a key has the value in its config. For a group, it has None, because a config does not record
    the chosen option. A run that failed before it had a config has the value that others with the same override have in theirs,
    which may be different text: configs hold absolute paths.
    """
    keys = dict.fromkeys(key for run in runs for key in run.overridden)
    return _different({key: _values(runs, key) for key in keys})


def _values(runs: Sequence[Run], key: str) -> list[Setting]:
    composed: dict[str, set[Setting]] = defaultdict(set)  # values in configs by the text of the override
    for run in runs:
        if key in run.overridden and _is_in_config(run, key):
            composed[run.overridden[key]].add(run.settings[key])
    values: list[Setting] = []
    for run in runs:
        typed = run.overridden.get(key)
        if _is_in_config(run, key):
            values.append(run.settings[key])  # parsed by Hydra
        elif typed is not None and not run.settings and len(composed[typed]) == 1:
            values += composed[typed]
        else:
            values.append(None if typed is None else number_or_text(typed))
    return values


def _is_in_config(run: Run, key: str) -> bool:
    return key in run.settings and not isinstance(run.settings[key], dict | list)


def number_or_text(text: str) -> Setting:
    """Parse a value of a command line as Hydra would."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a number that can be shown; Booleans, NaN and infinite values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < GREATEST


def differing_keys(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the config keys that differ, with the value of each run that has a config.

    A key that the config repeats elsewhere is listed once; for example, the model repeats the loss.
    """
    settings = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for each in settings for key in each)
    found = _different({key: [each.get(key, "—") for each in settings] for key in keys})
    repeated = {key for key in found for other in found if key.endswith(f".{other}") and found[key] == found[other]}
    return {key: values for key, values in found.items() if key not in repeated}


def _different(found: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the keys that affect training and whose values are not all the same."""
    return {key: own for key, own in found.items() if key not in _NOT_OF_THE_TRAINING and len(set(map(repr, own))) > 1}


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Return groups of the indices of runs that differ only in their seed; every run is in one group.

    Runs are compared by their configs or, if they failed before they had one, by their overrides. Runs of equal settings are
    not grouped if two of them have the same seed, because those differ in something else, such as the version of genimg.
    """
    alike: dict[object, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        kept = {key: repr(value) for key, value in run.known_settings.items() if key not in (*_NOT_OF_THE_TRAINING, "seed")}
        alike[(bool(run.settings), *sorted(kept.items())) if kept else number].append(number)
    groups: list[list[int]] = []
    for numbers in alike.values():
        seeds = {runs[number].seed for number in numbers}
        groups += [numbers] if len(seeds) == len(numbers) else [[number] for number in numbers]
    return groups
