"""hydra/sweeper=optuna_study: a search whose study outlives every launch of it.

A trial is a job of hydra/launcher=gpu_queue. Launching the same command again continues trials that were under way, runs those
again that failed, in their own directories, and asks for new ones until there are as many as wanted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, setup_globals
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from genimg.sweeps.job import Job, compose_job, report_on, write_table
from genimg.sweeps.launcher import GpuQueueLauncher
from genimg.sweeps.queue import SweepError, work_off

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0
_JOB, _FOLDER, _NOTE, _FIXED = "job", "directory", "note", "fixed_overrides"  # what the study knows of its trials besides


class OptunaStudySweeper(Sweeper):
    """Searches by Optuna; see configs/hydra/sweeper/optuna_study.yaml for what each setting means.

    Args:
        n_trials, direction, sampler, startup_trials, seed, storage, study_name: of the study.
        prune_after: images from which on the median rule (Golovin et al. 2017) ends trials; None never does.
        prune_startup_trials: that must have ended before.
        params: key -> values, in the syntax of the command line.

    Raises:
        ValueError: naming a setting that cannot be.
    """

    def __init__(
        self,
        n_trials: int,
        direction: str,
        sampler: str,
        startup_trials: int,
        seed: int,
        storage: str | None,
        study_name: str,
        prune_after: int | None,
        prune_startup_trials: int,
        params: Mapping[str, Any] | None,
    ) -> None:
        for key, value in (
            ("n_trials", n_trials),
            ("startup_trials", startup_trials),
            ("prune_startup_trials", prune_startup_trials),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(f"hydra.sweeper.{key}={value} must be 1 or more trials")
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"hydra.sweeper.direction={direction} must be minimize or maximize")
        if sampler not in ("tpe", "random"):
            raise ValueError(f"hydra.sweeper.sampler={sampler} must be tpe or random")
        if type(seed) is not int or seed < 0:
            raise ValueError(f"hydra.sweeper.seed={seed} must be a whole number, 0 or more")
        if prune_after is not None and (type(prune_after) is not int or prune_after < 0):
            raise ValueError(f"hydra.sweeper.prune_after={prune_after} must be a number of images, or null")
        self._n_trials, self._direction, self._sampler, self._startup_trials = n_trials, direction, sampler, startup_trials
        self._seed, self._storage, self._study_name = seed, storage, study_name
        self._prune_after, self._prune_startup_trials = prune_after, prune_startup_trials
        self._params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, GpuQueueLauncher):
            raise ValueError("hydra/sweeper=optuna_study needs the other launcher: add hydra/launcher=gpu_queue")
        self._slots = launcher.slots

    def sweep(self, arguments: list[str]) -> None:
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        try:
            import optuna
        except ImportError as error:
            raise ValueError("hydra/sweeper=optuna_study needs the package optuna: pip install 'genimg[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        given = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        overrides = OverridesParser.create().parse_overrides(given)
        space = {override.get_key_element(): _distribution(override) for override in overrides if override.is_sweep_override()}
        fixed = [
            f"{override.get_key_element()}={override.get_value_element_as_str()}"
            for override in overrides
            if not override.is_sweep_override()
        ]
        if not space:
            raise ValueError(
                "nothing is searched for: give a key several values, such as 'optimizer.lr=tag(log,interval(1e-5,1e-2))'"
            )
        folder = Path(str(self._config.hydra.sweep.dir)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        storage = self._storage or f"sqlite:///{folder / 'study.db'}"
        study = self._open(storage, fixed)
        log.info(
            "study %s in %s: %d of %d trials there", study.study_name, storage, len(_of_jobs(study.trials)), self._n_trials
        )
        trials = _Trials(self, study, space, fixed, folder)
        work_off(trials, self._slots)
        report_on(folder)
        trials.report()

    def _open(self, storage: str, fixed: list[str]) -> Study:
        import optuna

        try:
            direction = optuna.study.StudyDirection[self._direction.upper()]
            study = optuna.create_study(storage=storage, study_name=self._study_name, direction=direction, load_if_exists=True)
        except Exception as error:  # of SQLAlchemy, which Optuna lets through
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"hydra.sweeper.storage={storage} cannot be opened ({reason})") from error
        if study.direction.name.lower() != self._direction:
            raise ValueError(f"hydra.sweeper.direction={self._direction}, but study {self._study_name} in {storage} is to "
                             f"{study.direction.name.lower()}: choose another hydra.sweeper.study_name")  # fmt: skip
        known = study.user_attrs.get(_FIXED, fixed)
        if sorted(known) != sorted(fixed):
            changed = " ".join(sorted(set(known) ^ set(fixed)))
            raise ValueError(f"study {self._study_name} in {storage} is of jobs with other settings ({changed}), that do not "
                             "compare: undo the change, or choose another hydra.sweeper.study_name")  # fmt: skip
        study.set_user_attr(_FIXED, fixed)
        # A seed of its own for every launch, or it would draw the first trials once more.
        seed = self._seed + len(study.trials)
        study.sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if self._sampler == "random"
            else optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self._startup_trials, constant_liar=len(self._slots) > 1
            )
        )
        if self._prune_after is not None:
            study.pruner = optuna.pruners.MedianPruner(
                n_startup_trials=self._prune_startup_trials, n_warmup_steps=self._prune_after
            )
        else:
            study.pruner = optuna.pruners.NopPruner()
        return study

    def job(self, number: int, overrides: list[str]) -> Job:
        """The job of a trial."""
        return compose_job(self._context, self._config, number, overrides)

    @property
    def n_trials(self) -> int:
        """Jobs of the whole study."""
        return self._n_trials

    @property
    def higher_is_better(self) -> bool:
        """Of the metric."""
        return self._direction == "maximize"


class _Trials:
    """The jobs of a study.

    Args:
        sweeper: whose study it is.
        study: opened.
        space: key -> values.
        fixed: overrides of all jobs.
        folder: of the sweep.
    """

    def __init__(
        self, sweeper: OptunaStudySweeper, study: Study, space: dict[str, BaseDistribution], fixed: list[str], folder: Path
    ) -> None:
        self._sweeper, self._study, self._space, self._fixed, self._folder = sweeper, study, space, fixed, folder
        self._jobs: dict[int, Job] = {}
        self._trials: dict[int, Trial] = {}
        self._next_look: dict[int, float] = {}
        self._left: list[FrozenTrial] = []  # of earlier launches
        for number, trial in _of_jobs(study.trials).items():
            self._jobs[number] = job = self._job(number, trial)
            state = trial.state.name.lower()
            job.status = {"complete": "complete", "pruned": "pruned", "fail": "failed"}.get(state, "waiting")
            job.note = trial.user_attrs.get(_NOTE, "")
            if job.status in ("failed", "waiting"):
                self._left.append(trial)
            else:
                log.info("#%d is %s: %s", number, job.status, job.words)
        self.total = max(sweeper.n_trials, len(self._jobs))
        self._write()

    @property
    def num_done(self) -> int:
        return sum(job.status not in ("waiting", "running") for job in self._jobs.values())

    def next(self) -> Job | None:
        import optuna

        if self._left:
            frozen = self._left.pop(0)
            number = frozen.user_attrs[_JOB]
            if frozen.state == optuna.trial.TrialState.RUNNING:
                trial = optuna.trial.Trial(self._study, frozen._trial_id)
                for name, distribution in self._space.items():  # of one that had just been asked for
                    trial._suggest(name, distribution)
            else:  # a trial that has failed cannot be told anything else
                if frozen.state == optuna.trial.TrialState.FAIL:
                    kept = {key: frozen.user_attrs[key] for key in (_JOB, _FOLDER)}
                    self._study.enqueue_trial(frozen.params, user_attrs=kept)
                trial = self._study.ask(self._space)
        elif len(self._jobs) < self._sweeper.n_trials:
            trial = self._study.ask(self._space)
            number = len(self._jobs)
            trial.set_user_attr(_JOB, number)
        else:
            return None
        self._trials[number] = trial
        job = self._jobs[number] = self._job(number, trial)
        trial.set_user_attr(_FOLDER, str(job.folder))
        return job

    def why_hopeless(self, job: Job) -> str | None:
        if time.monotonic() < self._next_look.get(job.number, 0.0):
            return None
        self._next_look[job.number] = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        trial = self._trials[job.number]
        known = self._study._storage.get_trial(trial._trial_id).intermediate_values
        for images, value in job.measured().items():
            if images not in known:
                trial.report(value, step=images)
                if trial.should_prune():
                    return f"{value:.6g} at {images} images is worse than the median trial"
        return None

    def ended(self, job: Job) -> None:
        import optuna

        trial, states = self._trials[job.number], optuna.trial.TrialState
        if job.status == "complete":
            self._next_look.pop(job.number, None)
            self.why_hopeless(job)  # reports what was measured last
            value = job.value()
            self._check_direction(job)
            if value is None:
                job.status, job.note = "failed", "it was not evaluated: a study needs evaluation= other than none"
        if job.status == "complete":
            self._study.tell(trial, value)
        elif job.status == "pruned":
            trial.set_user_attr(_NOTE, job.note)
            self._study.tell(trial, state=states.PRUNED)
        elif job.status == "failed":
            trial.set_user_attr(_NOTE, job.note)
            self._study.tell(trial, state=states.FAIL)
        self._write()  # one that was stopped stays under way in the study

    def report(self) -> None:
        """Say what was found.

        Raises:
            SweepError: if a job failed.
        """
        complete = [job for job in self._jobs.values() if job.status == "complete"]
        if complete:
            best = self._study.best_trial
            log.info("best of %d complete trials: #%d with %.6g: %s", len(complete), best.user_attrs[_JOB], best.value,
                     " ".join(f"{key}={value}" for key, value in best.params.items()))  # fmt: skip
        failed = [job for job in self._jobs.values() if job.status not in ("complete", "pruned")]
        if failed:
            numbers = ", ".join(f"#{job.number}" for job in failed)
            raise SweepError(
                f"{len(failed)} of {len(self._jobs)} jobs failed, {numbers}: the reasons are above and in console.log of their "
                f"directories in {self._folder}; the same command runs these again, and no others"
            )

    def _check_direction(self, job: Job) -> None:
        summary = job.summary()
        if summary.get("higher_is_better") not in (None, self._sweeper.higher_is_better):
            wanted = "maximize" if summary["higher_is_better"] else "minimize"
            better = "higher" if summary["higher_is_better"] else "lower"
            raise ValueError(f"{summary['primary']} is better where it is {better}: give hydra.sweeper.direction={wanted}, and "
                             "another hydra.sweeper.study_name")  # fmt: skip

    def _job(self, number: int, trial: Trial | FrozenTrial) -> Job:
        values = [f"{name}={value}" for name, value in trial.params.items()]
        job = self._sweeper.job(number, [*self._fixed, *values])
        job.folder = Path(trial.user_attrs.get(_FOLDER, job.folder))
        job.own = [f"{name}={_short(value)}" for name, value in trial.params.items()]
        return job

    def _write(self) -> None:
        write_table([self._jobs[number] for number in sorted(self._jobs)], self._folder / "sweep.csv")


def _of_jobs(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Number of the job -> its latest trial."""
    return {trial.user_attrs[_JOB]: trial for trial in trials if _JOB in trial.user_attrs}


def _distribution(override: Override) -> BaseDistribution:
    """What Optuna draws a key's values from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    is_log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        if is_log and value.start <= 0:
            raise ValueError(f"{override.input_line}: a logarithmic interval begins above 0")
        kind = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
        return kind(value.start, value.end, log=is_log)  # type: ignore[arg-type]
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int) and value.step > 0:
        values = list(value.range())
        if values:
            return IntDistribution(int(values[0]), int(values[-1]), step=value.step)
    choices = list(map(str, override.sweep_string_iterator())) if override.is_discrete_sweep() else []
    if not choices:
        raise ValueError(f"{override.input_line} holds no values to choose from")
    return CategoricalDistribution(choices)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
