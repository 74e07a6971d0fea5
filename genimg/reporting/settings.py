"""Find the keys that a sweep varied, the keys in which configs differ, and the runs that differ only in their seed."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genimg.reporting.runs import Run

_NOT_OF_THE_TRAINING = ("run_dir", "resume", "resume_force", "traceback", "print_config", "dry_run")
Setting = str | float | int | bool | None


def parsed(override: str) -> tuple[str, str]:
    """Split ``key=value`` and remove Hydra's quotes and prefixes; ``~key`` has the value ``(removed)``."""
    if override.startswith("~"):
        return override[1:].partition("=")[0], "(removed)"
    key, _, value = override.lstrip("+").partition("=")
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return key, re.sub(r"\\(['\"\\])", r"\1", value[1:-1])
    return key, re.sub(r"\\(.)", r"\1", value)


def swept_settings(runs: Sequence[Run]) -> dict[str, list[Setting]]:
    """Return the overridden keys whose values differ between runs, with the value of each run.

    A run that does not override a key has the value in its config. For groups, which a config does not name, it has None.
    """
    overridden = [dict(map(parsed, run.overrides)) for run in runs]
    found = {}
    for key in dict.fromkeys(key for each in overridden for key in each):
        values = [_setting(run, own, key) for run, own in zip(runs, overridden, strict=True)]
        if len(set(map(repr, values))) > 1 and key not in _NOT_OF_THE_TRAINING:
            found[key] = values
    return found


def _setting(run: Run, own: dict[str, str], key: str) -> Setting:
    value = run.settings.get(key)
    if key in run.settings and not isinstance(value, dict | list):
        return value  # parsed by Hydra
    return number_or_text(own[key]) if key in own else None


def number_or_text(text: str) -> Setting:
    """Parse a value of a command line as Hydra would."""
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def differing_keys(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the config keys that differ, with the value of each run that has a config.

    Keys that the config repeats elsewhere, as the model repeats the loss, are listed once.
    """
    settings = [run.settings for run in runs if run.settings]
    found: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for each in settings for key in each):
        values = [each.get(key, "—") for each in settings]
        if key not in _NOT_OF_THE_TRAINING and len(set(map(repr, values))) > 1:
            found[key] = values
    return {
        key: values
        for key, values in found.items()
        if not any(key.endswith(f".{other}") and values == found[other] for other in found if other != key)
    }


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Return groups of the indices of runs that differ only in their seed; every run is in one group.

    Runs are compared by their configs or, if they failed before they had one, by their overrides. Runs of equal settings are
    not grouped if two of them have the same seed, because these differ in something else, such as the version of genimg.
    """
    alike: dict[object, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        kept = {key: repr(value) for key, value in _all_settings(run).items() if key not in (*_NOT_OF_THE_TRAINING, "seed")}
        alike[(bool(run.settings), *sorted(kept.items())) if kept else number].append(number)
    groups: list[list[int]] = []
    for numbers in alike.values():
        seeds = {format_seed(runs[number]) for number in numbers}
        groups += [numbers] if len(seeds) == len(numbers) else [[number] for number in numbers]
    return groups


def format_seed(run: Run) -> str:
    """Return the seed of a run's config or overrides as text; empty if it is unknown."""
    return str(_all_settings(run).get("seed", ""))


def _all_settings(run: Run) -> dict[str, Any]:
    return run.settings or dict(map(parsed, run.overrides))


def dataset_of(run: Run) -> str:
    """Return the name, split and number of the training images, such as ``mnist, split train, 60,000 images``.

    A run that failed before it wrote a config has the dataset of its overrides; a dash stands for an unknown one.
    """
    own, recorded = _all_settings(run), run.summary.get("data") or {}
    kind = str(own.get("data._target_", own.get("data", ""))).rpartition(".")[2]
    split, root = own.get("data.split"), own.get("data.root") or own.get("data.path")
    name = recorded.get("name") or (f"{kind} {Path(str(root)).name}" if root and split is None else kind)
    if not name or not run.settings:
        return name or "—"
    parts = [name.removesuffix(f"/{split}")] if split is not None else [name]
    parts.append("not split" if split is None else f"split {split}")
    if own.get("data.validation") not in (None, 0):
        parts.append(f"without validation={own['data.validation']}")
    if recorded.get("num_images") is not None:
        parts.append(f"{recorded['num_images']:,} images")
    return ", ".join(parts)
