"""Run the trials of an Optuna study as jobs of a queue."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from genimg.errors import ConfigError
from genimg.sweeps.budget import Budget
from genimg.sweeps.job import Job, write_table
from genimg.sweeps.queue import Jobs, SweepError
from genimg.utils.regular_files import UnsafeFileError, refuse_links

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0
_MOST_JOBS = 10**6
_JOB, _FOLDER, _NOTE = "job", "directory", "note"  # attributes of a trial


class Trials(Jobs):
    """The jobs of a study, starting with unfinished ones of earlier launches.

    Args:
        compose: Function that returns the job with a given number and overrides.
        study: The study.
        space: Distribution of each searched key.
        fixed: Overrides of all jobs.
        folder: Directory of the sweep.
        n_trials: Number of jobs in the whole study.
        budget: Budget of the study; None if it has none.
    """

    def __init__(
        self,
        compose: Callable[[int, list[str]], Job],
        study: Study,
        space: dict[str, BaseDistribution],
        fixed: list[str],
        folder: Path,
        *,
        n_trials: int,
        budget: Budget | None,
    ) -> None:
        import optuna

        super().__init__(folder / "sweep.csv", n_trials, budget)
        self._compose, self._study, self._space, self._fixed, self._folder = compose, study, space, fixed, folder
        self._n_trials = n_trials
        self._trials: dict[int, Trial] = {}
        self._next_look: dict[int, float] = {}
        self._left: list[FrozenTrial] = []  # unfinished trials of earlier launches
        for trial in study.trials:  # before the study changes
            self._require_own(trial)
        for trial in study.trials:
            if trial.state == optuna.trial.TrialState.RUNNING and _JOB not in trial.user_attrs:  # killed while creating it
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        for number, trial in of_jobs(study.trials).items():
            folder_of_job = self._folder / trial.user_attrs.get(_FOLDER, f"{number:03d}")
            job = self.by_number[number] = Job(number, self._overrides(trial), folder_of_job, own=_words(trial))
            state = trial.state.name.lower()
            job.status = {"complete": "completed", "pruned": "pruned", "fail": "failed"}.get(state, "waiting")
            job.note = str(trial.user_attrs.get(_NOTE, ""))
            if job.status in ("failed", "waiting"):
                self._left.append(trial)
            else:
                log.info("#%d is %s: %s", number, state, job.words)
        self.total = max(n_trials, len(self.by_number))
        write_table(self.by_number.values(), self.table)

    def next(self) -> Job | None:
        while self._left or len(self.by_number) < self._n_trials:
            trial = self._again(self._left.pop(0)) if self._left else self._study.ask(self._space)
            self._require_own(trial)
            number = trial.user_attrs.get(_JOB, len(self.by_number))
            trial.set_user_attr(_JOB, number)
            job = self._compose(number, self._overrides(trial))
            job.own = _words(trial)
            job.folder = self._folder / trial.user_attrs.get(_FOLDER, os.path.relpath(job.folder, self._folder))
            trial.set_user_attr(_FOLDER, os.path.relpath(job.folder, self._folder))
            self._trials[number], self.by_number[number] = trial, job
            if job.status != "failed":
                return job
            log.info("#%d %s: %s", number, job.outcome, job.words)  # its overrides cannot be composed
            self.ended(job)
        return None

    def _again(self, frozen: FrozenTrial) -> Trial:
        """Return an unfinished trial of an earlier launch. A failed one is final, so a new one with its values replaces it."""
        import optuna

        if frozen.state == optuna.trial.TrialState.RUNNING:
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            for name, values in self._space.items():  # the launcher may have ended before it drew all values
                trial._suggest(name, values)
            return trial
        if frozen.state == optuna.trial.TrialState.FAIL:
            kept = {key: frozen.user_attrs[key] for key in (_JOB, _FOLDER) if key in frozen.user_attrs}
            self._study.enqueue_trial(frozen.params, user_attrs=kept)
        return self._study.ask(self._space)

    def why_hopeless(self, job: Job) -> str | None:
        if time.monotonic() < self._next_look.get(job.number, 0.0):
            return None
        self._next_look[job.number] = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        job.look()
        trial = self._trials[job.number]
        known = self._study._storage.get_trial(trial._trial_id).intermediate_values
        for images, value in sorted(job.measured.items()):
            if images not in known and math.isfinite(value):
                trial.report(value, step=images)
                if trial.should_prune():
                    return f"at {images} images no value is as good as the median trial's; the last is {value:.6g}"
        return None

    def ended(self, job: Job) -> None:
        import optuna

        trial, states = self._trials[job.number], optuna.trial.TrialState
        if job.status == "completed":
            self._next_look.pop(job.number, None)
            self.why_hopeless(job)  # reports the last measured values
            value = job.value()
            if value is None or not math.isfinite(value):
                job.status, job.note = "failed", f"its value is {'missing' if value is None else value}"
            else:
                self._study.tell(trial, value)
        super().ended(job)
        if job.status in ("pruned", "failed"):  # a stopped job's trial stays RUNNING in the study
            trial.set_user_attr(_NOTE, job.note)
            self._study.tell(trial, state=states.PRUNED if job.status == "pruned" else states.FAIL)

    def report(self) -> None:
        """Log the best trial.

        Raises:
            SweepError: If a job failed.
        """
        jobs = [self.by_number[number] for number in sorted(self.by_number)]
        complete = [job for job in jobs if job.status == "completed"]
        if complete:
            best = self._study.best_trial
            log.info("best of %d complete trials: #%d with %.6g: %s", len(complete), best.user_attrs[_JOB], best.value,
                     " ".join(f"{key}={value}" for key, value in best.params.items()))  # fmt: skip
        if any(job.status not in ("completed", "pruned") for job in jobs):
            raise SweepError(jobs, self._folder, self.total, self.budget)

    def _require_own(self, trial: Trial | FrozenTrial) -> None:
        """Refuse a stored trial that this search cannot have made, because its parameters become arguments of a command.

        Raises:
            ConfigError: If the trial has parameters, a job number or a directory that this search cannot produce.
        """
        wanted = getattr(trial, "system_attrs", {}).get("fixed_params", {})  # parameters of an enqueued trial
        for name, value in [*trial.params.items(), *(wanted.items() if isinstance(wanted, dict) else ())]:
            known = self._space.get(name)
            if known is None or trial.distributions.get(name, known) != known or not _contains(known, value):
                raise self._foreign(trial, f"has {name}={value}")
        number, directory = trial.user_attrs.get(_JOB, 0), trial.user_attrs.get(_FOLDER, "0")
        if type(number) is not int or not 0 <= number < _MOST_JOBS:
            raise self._foreign(trial, f"is job {number}")
        try:
            refuse_links(self._folder / directory, below=self._folder)
            is_inside = self._folder / directory != self._folder
        except (UnsafeFileError, TypeError, ValueError, OSError):
            is_inside = False
        if not is_inside:
            raise self._foreign(trial, f"lies in {directory}")

    def _foreign(self, trial: Trial | FrozenTrial, problem: str) -> ConfigError:
        return ConfigError(
            f"hydra.sweep.dir={self._folder} holds a study whose trial {trial.number} {problem}",
            "this search cannot have made it: choose another hydra.sweep.dir",
            key="hydra.sweep.dir",
        )

    def _overrides(self, trial: Trial | FrozenTrial) -> list[str]:
        return [*self._fixed, *(f"{name}={value}" for name, value in trial.params.items())]


def of_jobs(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the latest trial of each job, by job number."""
    return {trial.user_attrs[_JOB]: trial for trial in trials if _JOB in trial.user_attrs}


def distribution(override: Override) -> BaseDistribution:
    """Return the Optuna distribution of an override's values.

    Raises:
        ConfigError: If no values can be drawn from the override.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    is_log, line = "log" in getattr(value, "tags", ()), override.input_line
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        if not value.start < value.end or (is_log and value.start <= 0):
            raise ConfigError(
                f"{line}: an interval goes from a smaller to a larger number, and a logarithmic one begins above 0"
            )
        kind = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
        return kind(value.start, value.end, log=is_log)  # type: ignore[arg-type]
    if is_log:
        raise ConfigError(f"{line}: only an interval is drawn logarithmically, such as tag(log,int(interval(1,100)))")
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int) and value.step > 0:
        values = list(value.range())
        if values:
            return IntDistribution(int(values[0]), int(values[-1]), step=value.step)
    choices = list(map(str, override.sweep_string_iterator())) if override.is_discrete_sweep() else []
    if not choices:
        raise ConfigError(f"{line} holds no values to choose from")
    return CategoricalDistribution(choices)


def _contains(known: BaseDistribution, value: object) -> bool:
    """Return whether a distribution contains a value of exactly this type: ``True`` is not ``1``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(known, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in known.choices)
    if isinstance(known, FloatDistribution):
        return type(value) is float and known.low <= value <= known.high
    return isinstance(known, IntDistribution) and type(value) is int and known.low <= value <= known.high


def _words(trial: Trial | FrozenTrial) -> list[str]:
    return [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()]
