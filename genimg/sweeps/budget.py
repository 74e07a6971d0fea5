"""``budget``: a time that the runs of a sweep may train together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from genimg.errors import ConfigError
from genimg.utils.durations import to_seconds
from genimg.utils.files import atomically
from genimg.utils.json_text import parse_json
from genimg.utils.regular_files import read_regular

if TYPE_CHECKING:
    from genimg.sweeps.job import Job

_FILE = "budget.json"  # in the sweep's directory
_MOST_BYTES = 1000  # of that file
_DURATION = "trainer.duration"
_TOO_SHORT = re.compile(r"trainer\.duration=.* is too short: (.*): give at least (\d+) seconds")  # the message of such a run


@dataclass(frozen=True)
class Budget:
    """The time for all runs of a sweep, and the share of each run.

    The share is recorded, because a later launch may have more jobs or slots, and the complete runs have had this time.

    Attributes:
        text: The time, as written.
        seconds: Time of each run.
        rounds: Number of runs that one slot of the queue trains, one after the other.
    """

    text: str
    seconds: int
    rounds: int

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
        rounds = math.ceil(num_jobs / num_slots)
        seconds = _recorded(folder, text) or total // rounds
        if not seconds:
            raise ConfigError(f"budget={text} is less than a second for each of {num_jobs} runs: give a longer time")
        return cls(text, int(seconds), rounds)

    def applied(self, overrides: Sequence[str]) -> list[str]:
        """Return a job's overrides with its duration, instead of the one that a predefined search sets."""
        kept = [each for each in overrides if _key(each) not in ("budget", _DURATION)]
        return [*kept, "budget=null", f"{_DURATION}='{self.seconds} seconds'"]

    def explain(self, job: Job) -> None:
        """If a job failed because its time is too short, name the budget in its note and record the time that it needs."""
        found = _TOO_SHORT.match(job.note)
        if found is None:
            return
        job.needed_seconds = int(found[2])
        job.note = (
            f"budget={self.text} leaves {self.seconds} seconds for each run, which is too short for this one: {found[1]}; it "
            f"needs at least {found[2]} seconds, and so budget={self._enough(job.needed_seconds)} or more"
        )

    def advice(self, jobs: Sequence[Job]) -> str:
        """Return which budget is long enough for all jobs; empty if none has failed because its time is too short."""
        longest = max((job.needed_seconds for job in jobs), default=0)
        if not longest:
            return ""
        return (
            f"budget={self.text} is too short: give budget={self._enough(longest)} or more, or shorten the evaluations with a "
            "smaller evaluation.num_images"
        )

    def _enough(self, seconds: int) -> str:
        return f"'{math.ceil(self.rounds * seconds / 60)} minutes'"

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
