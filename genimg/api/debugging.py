"""The group ``debug``: settings that shorten any training run, to check quickly that it works."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from genimg.config.compose import Composition
from genimg.config.resume import names_a_checkpoint
from genimg.errors import ConfigError

log = logging.getLogger(__name__)

_ITS_OWN = ("one_batch",)  # applied when the data is built


def shortened(composition: Composition) -> Composition:
    """Apply the chosen ``debug`` option to those keys of the config that no override sets.

    Raises:
        ConfigError: If ``debug`` is not a mapping, or is combined with ``resume=PATH``, which uses the checkpoint's settings.
    """
    composed = composition.config
    options = composed.debug
    if not isinstance(options, DictConfig):
        raise ConfigError(f"debug={options} is not a mapping: choose debug=two_steps, overfit_one_batch or none")
    if not options:
        return composition
    choice = composition.choices.get("debug", "debug")
    if names_a_checkpoint(composed):
        raise ConfigError(f"debug={choice} has no effect with resume={composed.resume}: use a separate run_dir")
    typed = composition.typed_keys()
    changes = []
    shorter = copy.deepcopy(composed)
    OmegaConf.set_readonly(shorter, False)
    for group, values in ((str(group), values) for group, values in options.items()):
        if group in _ITS_OWN:
            changes.append(f"{group}={str(values).lower()}")
        elif not values:
            if not any(f"{key}.".startswith(f"{group}.") for key in typed):
                shorter[group] = {}
                changes.append(f"{group}=none")
        else:
            changes += [_set(shorter, f"{group}.{key}", value) for key, value in values.items()
                        if f"{group}.{key}" not in typed and key in composed[group]]  # fmt: skip
    log.info("debug=%s sets %s", choice, ", ".join(changes))
    return replace(composition, config=shorter)


def say_what_was_learnt(run_dir: Path) -> None:
    """Log how far each loss of a run on one batch has fallen."""
    values: dict[str, list[float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        for name, value in json.loads(line).items():
            if name.startswith("loss/"):
                values.setdefault(name, []).append(value)
    log.info("losses on one batch, first and last recorded value:")
    for name, found in values.items():
        log.info("  %-32s %10.4g %10.4g", name, found[0], found[-1])


def _set(composed: DictConfig, key: str, value: Any) -> str:
    with open_dict(composed):
        OmegaConf.update(composed, key, value, merge=False)
    return f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
