"""``budget``: a time that the runs of a sweep may train together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from genimg.errors import ConfigError
from genimg.utils.durations import to_seconds
from genimg.utils.files import atomically
from genimg.utils.json_text import parse_json
from genimg.utils.regular_files import read_regular

_FILE = "budget.json"  # in the sweep's directory
_MOST_BYTES = 1000  # of that file
_DURATION = "trainer.duration"


@dataclass(frozen=True)
class Budget:
    """The time for all runs of a sweep, and the share of each run.

    The share is recorded, because a later launch may have more jobs or slots, and the complete runs have had this time.

    Attributes:
        text: The time, as written.
        seconds: Time of each run.
    """

    text: str
    seconds: int

    @classmethod
    def of_sweep(cls, config: DictConfig, num_jobs: int, num_slots: int, folder: Path) -> Budget | None:
        """Return the budget of a sweep; None if it has none.

        Args:
            config: Hydra's config of the sweep.
            num_jobs: Number of jobs of the sweep.
            num_slots: Number of jobs that run at the same time.
            folder: Directory of the sweep.

        Raises:
            ConfigError: If ``budget`` is not a time, is too short, or contradicts a duration on the command line.
        """
        text = config.get("budget")
        if text is None:
            return None
        total = to_seconds(text)
        if not total:
            raise ConfigError(f"budget={text} is not a time: write for example '30 minutes' or '2 hours'")
        if given := next((each for each in config.hydra.overrides.task if _key(each) == _DURATION), None):
            raise ConfigError(f"budget={text} sets the duration of every run: remove {given}, or set budget=null")
        seconds = _recorded(folder, text) or total // math.ceil(num_jobs / num_slots)
        if not seconds:
            raise ConfigError(f"budget={text} is less than a second for each of {num_jobs} runs: give a longer time")
        return cls(text, int(seconds))

    def applied(self, overrides: Sequence[str]) -> list[str]:
        """Return a job's overrides with its duration, instead of the one that a predefined search sets."""
        kept = [each for each in overrides if _key(each) not in ("budget", _DURATION)]
        return [*kept, "budget=null", f"{_DURATION}='{self.seconds} seconds'"]

    def record(self, folder: Path) -> None:
        """Write the share of each run into the sweep's directory."""
        with atomically(folder / _FILE) as temporary:
            temporary.write_text(json.dumps({"budget": self.text, "seconds": self.seconds}) + "\n", encoding="utf-8")


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _recorded(folder: Path, text: str) -> int | None:
    """Return the seconds of each run that an earlier launch recorded for the same budget, if there are any."""
    try:
        found: Any = parse_json(read_regular(folder / _FILE, below=folder, most=_MOST_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("budget") != text or type(found.get("seconds")) is not int:
        return None
    return found["seconds"] if found["seconds"] > 0 else None
