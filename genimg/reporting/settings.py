"""Find the keys that a sweep varied, and the keys in which configs differ."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from genimg.reporting.runs import Run

_OF_THE_PLACE = ("run_dir", "resume", "resume_force", "traceback", "print_config", "dry_run")
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
    told = [dict(map(parsed, run.overrides)) for run in runs]
    keys = list(dict.fromkeys(key for each in told for key in each))
    found = {}
    for key in keys:
        values = [_setting(run, own, key) for run, own in zip(runs, told, strict=True)]
        if len({repr(value) for value in values}) > 1 and key not in _OF_THE_PLACE:
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
    keys = dict.fromkeys(key for each in settings for key in each)
    found: dict[str, list[Any]] = {}
    for key in keys:
        values = [each.get(key, "—") for each in settings]
        if key not in _OF_THE_PLACE and len(set(map(repr, values))) > 1:
            found[key] = values
    return {
        key: values
        for key, values in found.items()
        if not any(key.endswith(f".{other}") and values == found[other] for other in found if other != key)
    }


def in_words(value: Any) -> str:
    """Return a setting as it is written in a config file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_words, value))}]"
    return str(value)
