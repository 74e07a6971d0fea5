"""hydra/sweeper=optuna_study: a search with Optuna that a later launch can continue.

Each trial is a job of hydra/launcher=gpu_queue. Launching the same command again continues interrupted trials, repeats failed
ones in their own directories, and adds new ones until there are ``n_trials``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, setup_globals
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from genimg.errors import ConfigError, first_line
from genimg.evaluation.directions import declared_direction
from genimg.sweeps.budget import Budget
from genimg.sweeps.job import Job, compose_job, report_on
from genimg.sweeps.launcher import GpuQueueLauncher, refuse_what_is_of_one_run
from genimg.sweeps.queue import alone_in_sweep, work_off
from genimg.sweeps.trials import Trials, distribution, of_jobs
from genimg.utils.regular_files import open_regular

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

_FILE = "study.db"
_FIXED, _SPACE = "fixed_overrides", "space"  # attributes of a study


class OptunaStudySweeper(Sweeper):
    """Searches with Optuna; configs/hydra/sweeper/optuna_study.yaml explains the settings.

    Args:
        n_trials, direction, sampler, startup_trials, seed, storage, study_name: Settings of the study.
        prune_after: Number of images after which the median rule (Golovin et al. 2017) may end a trial; None disables it.
        prune_startup_trials: Number of trials that must end before any trial is pruned.
        params: Values by key, in the syntax of the command line.

    Raises:
        ConfigError: If a setting is invalid.
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
        counts = {"n_trials": n_trials, "startup_trials": startup_trials, "prune_startup_trials": prune_startup_trials}
        for key, value in counts.items():
            if type(value) is not int or value < 1:
                raise ConfigError(f"hydra.sweeper.{key}={value} must be 1 or more trials")
        if direction not in ("minimize", "maximize"):
            raise ConfigError(f"hydra.sweeper.direction={direction} must be minimize or maximize")
        if sampler not in ("tpe", "random"):
            raise ConfigError(f"hydra.sweeper.sampler={sampler} must be tpe or random")
        if type(seed) is not int or seed < 0:
            raise ConfigError(f"hydra.sweeper.seed={seed} must be a whole number, 0 or more")
        if prune_after is not None and (type(prune_after) is not int or prune_after < 0):
            raise ConfigError(f"hydra.sweeper.prune_after={prune_after} must be a number of images, or null")
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
            raise ConfigError("hydra/sweeper=optuna_study needs the other launcher: add hydra/launcher=gpu_queue")
        if not launcher.skip_finished:
            raise ConfigError(
                "hydra.launcher.skip_finished=false has no effect on a study: choose another hydra.sweeper.study_name"
            )
        self._slots = launcher.slots

    def sweep(self, arguments: list[str]) -> None:
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("hydra/sweeper=optuna_study needs the package optuna: pip install 'genimg[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        given = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        overrides = {each.key_or_group: each for each in parser.parse_overrides(given)}.values()  # the last value of a key wins
        space = {each.get_key_element(): distribution(each) for each in overrides if each.is_sweep_override()}
        fixed = [
            f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in overrides if not each.is_sweep_override()
        ]
        if not space:
            example = "'optimizer.lr=tag(log,interval(1e-5,1e-2))'"
            raise ConfigError(f"hydra/sweeper=optuna_study has nothing to search: give a key several values, such as {example}")
        folder = Path(str(self._config.hydra.sweep.dir)).resolve()
        budget = Budget.of_sweep(self._config, self._n_trials, len(self._slots), folder)
        if budget is not None:
            if any(key == "trainer.duration" for key in space):
                raise ConfigError(f"budget={budget.text} sets the duration of every run: do not search trainer.duration")
            fixed = budget.applied(fixed)
        composed = self._context.config_loader.load_sweep_config(self._config, fixed)
        refuse_what_is_of_one_run(composed, fixed)
        self._check(composed)
        with alone_in_sweep(folder):
            if budget is not None:
                budget.record(folder)
            self._search(space, fixed, folder, budget)

    def _search(self, space: dict[str, BaseDistribution], fixed: list[str], folder: Path, budget: Budget | None) -> None:
        study = self._open(self._storage or f"sqlite:///{folder / _FILE}", fixed, space, folder)
        trials = Trials(self._compose, study, space, fixed, folder, n_trials=self._n_trials, budget=budget)
        work_off(trials, self._slots)
        report_on(folder)
        trials.report()

    def _check(self, composed: DictConfig) -> None:
        """Refuse a config that would make every job fail.

        Raises:
            ConfigError: If there is no evaluation, or the direction contradicts its first metric.
        """
        evaluation = OmegaConf.to_container(composed.evaluation)
        assert isinstance(evaluation, dict)
        if "_target_" not in evaluation:
            raise ConfigError("evaluation=none gives a study no values to compare: choose another evaluation=")
        is_higher_better = declared_direction(evaluation)
        wanted = {True: "maximize", False: "minimize", None: self._direction}[is_higher_better]
        if wanted != self._direction:
            better = "higher" if is_higher_better else "lower"
            raise ConfigError(f"hydra.sweeper.direction={self._direction}, but the evaluation's first metric is better when it "
                             f"is {better}: give hydra.sweeper.direction={wanted}")  # fmt: skip

    def _open(self, storage: str, fixed: list[str], space: dict[str, BaseDistribution], folder: Path) -> Study:
        import optuna
        from sqlalchemy.engine import make_url

        shown = storage.partition("@")[2] or storage  # without the password
        if self._storage is None and (folder / _FILE).exists():
            open_regular(folder / _FILE, below=folder).close()
        try:
            shown = make_url(storage).render_as_string(hide_password=True)
            study = optuna.create_study(
                storage=storage,
                study_name=self._study_name,
                direction=optuna.study.StudyDirection[self._direction.upper()],
                load_if_exists=True,
            )
            known_attributes, _ = study.user_attrs, study.get_trials(deepcopy=False)  # a damaged file raises an error only here
        except Exception as error:  # Optuna does not wrap the errors of SQLAlchemy
            reason = first_line(error)
            raise ConfigError(f"hydra.sweeper.storage={shown} cannot be opened ({reason})") from error
        name = f"study {self._study_name} in {shown}"
        if study.direction.name.lower() != self._direction:
            raise ConfigError(
                f"hydra.sweeper.direction={self._direction}, but {name} has direction={study.direction.name.lower()}: "
                             "choose another hydra.sweep.dir")  # fmt: skip
        searched = {key: optuna.distributions.distribution_to_json(each) for key, each in space.items()}
        for key, now, what in (
            (_FIXED, sorted(fixed), "other settings"),
            (_SPACE, sorted(f"{key}: {each}" for key, each in searched.items()), "another search"),
        ):
            known = known_attributes.get(key, now)
            if known != now:
                known = known if isinstance(known, list) else [known]
                before, after = ("; ".join(str(each) for each in one if each not in other) or "nothing"
                                 for one, other in ((known, now), (now, known)))  # fmt: skip
                raise ConfigError(
                    f"{name} has {what} (there {before}, here {after}), so its values are not comparable: undo the change, or "
                    "choose another hydra.sweep.dir"
                )
            study.set_user_attr(key, now)
        if not of_jobs(study.trials) and (folder / "sweep.csv").exists():
            raise ConfigError(f"hydra.sweep.dir={folder} holds the jobs of another sweep: choose another hydra.sweep.dir")
        log.info("%s: %d of %d trials exist", name, len(of_jobs(study.trials)), self._n_trials)
        # Each launch needs its own seed; otherwise it would draw the first trials again.
        seed = self._seed + len(study.trials)
        study.sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if self._sampler == "random"
            else optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self._startup_trials, constant_liar=len(self._slots) > 1
            )
        )
        study.pruner = (
            optuna.pruners.NopPruner()
            if self._prune_after is None
            else optuna.pruners.MedianPruner(n_startup_trials=self._prune_startup_trials, n_warmup_steps=self._prune_after)
        )
        return study

    def _compose(self, number: int, overrides: list[str]) -> Job:
        return compose_job(self._context, self._config, number, overrides)
