"""Train a model, from the command line or from Python."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

import genimg
from genimg.api.assemble import Assembly, assemble, describe_parts
from genimg.api.data import own_dataset
from genimg.api.debugging import shortened
from genimg.api.default_evaluation import with_evaluation
from genimg.api.dry_run import rehearse
from genimg.api.initial_weights import InitialWeights, warn_of_random_frozen_weights, warn_without_initial_weights
from genimg.api.run import DivergedError, Run, Training
from genimg.api.thread_trial import choose_threads
from genimg.api.time_budget import PROVISIONAL_RATE, images_per_second
from genimg.api.trained_networks import with_trained_networks
from genimg.api.usual import (
    refuse_concatenated_labels,
    refuse_repeated_options,
    warn_of_conditioning_without_effect,
    warn_of_missing_penalties,
    warn_of_short_training,
)
from genimg.config import resume
from genimg.config.compose import Composition, Config, compose, require_all_values, thaw
from genimg.config.structure import require_groups
from genimg.data.identity import had_labels
from genimg.errors import ConfigError, UserError, is_bug
from genimg.training.autotune import resolve_auto
from genimg.training.components import TrainingComponents
from genimg.training.device import describe_hardware
from genimg.training.ema import chosen_weights
from genimg.training.logger import Logger, SilentLogger, require_readable_records
from genimg.training.recorder import Outcome, Recorder
from genimg.training.thread_choice import same_threads_afterwards
from genimg.training.trainer import Trainer
from genimg.training.update import NonFiniteError
from genimg.utils import run_log
from genimg.utils.distributed import broadcast_object, raise_on_any_rank, rank, world_size
from genimg.utils.durations import to_seconds
from genimg.utils.files import InUseError, alone_in, atomically, new_directory, remove_leftovers
from genimg.utils.paths import RUN_FILES, directory_to_continue_in, expanded, relative, run_directory_of
from genimg.utils.regular_files import require_plain
from genimg.utils.silence import silent
from genimg.utils.type_hints import as_written

log = logging.getLogger(__name__)

Callback = Callable[[int, Mapping[str, float]], None]
"""Function called with the images seen and values by name: losses every ``trainer.log_interval``, metrics after evaluations."""

_PATIENCE = 20.0  # seconds to wait for another process that is saving and about to exit


def train(overrides: Sequence[str] = (), *, dataset: object = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Train a model, as ``genimg-train`` with the same arguments does, or continue a run.

    Args:
        overrides: Command-line arguments such as ``["model=dcgan", "data=mnist", "trainer.duration=5 epochs"]``.
        dataset: Images to train on instead of those of ``data=``: an array, a torch ``Dataset`` or a Hugging Face dataset (see
            ``genimg.as_dataset``). They are converted to ``data.image_size`` and ``data.channels``.
        callbacks: Functions called with the images seen and values by name, in the order of training.

    Returns:
        The finished run. Ctrl-C stops after the current step and saves a checkpoint.

    Raises:
        UserError: If the arguments or the data are invalid.
        DivergedError: If training diverges.
    """
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ConfigError(
            f"callbacks={callbacks!r} must be a list of functions that take images seen and values", key="callbacks"
        )
    if dataset is not None and not isinstance(overrides, str):
        if given := next((each for each in overrides if str(each).lstrip("+").startswith("data=")), None):
            raise ConfigError(f"dataset= and {given} both name images: give one of them", key="dataset")
        overrides = ["data=given", *overrides]
    composition = compose(overrides)
    run_dir, device_name = _run_dir(composition), str(composition.config.device)
    if composition.config.dry_run is True:
        with same_threads_afterwards():
            dry_run(composition, run_dir, device_name, dataset=dataset)
        return Run(run_dir, "dry_run", {})
    with same_threads_afterwards(), _removed_if_nothing_begins(run_dir), alone_in_run(run_dir):
        training = prepare(composition, run_dir, device_name, dataset=dataset, callbacks=callbacks)
        with training.recorded() as trainer:
            trainer.fit()
    assert training.run is not None
    return training.run


@contextlib.contextmanager
def _removed_if_nothing_begins(run_dir: Path) -> Iterator[None]:
    """Remove a new run directory if the run is rejected at its start."""
    is_new = not run_dir.exists() or not any(run_dir.iterdir())
    try:
        yield
    except (UserError, KeyboardInterrupt):
        if is_new:
            remove_if_nothing_began(run_dir)
        raise


def remove_if_nothing_began(run_dir: Path) -> None:
    """Remove the directory of a run that was rejected at its start and holds only startup records.

    The working directory, a directory with other content, and one that another process uses are left untouched.
    """
    if run_dir.resolve() == Path.cwd():
        return
    names = {path.name for path in run_dir.iterdir()}
    notes = [".hydra", "train.log", *(["wandb", "wandb-id.txt"] if "wandb-id.txt" in names else [])]
    if not names <= set(notes):
        return
    if (run_dir / "train.log").is_file() and (run_dir / "train.log").stat().st_mtime < run_log.STARTED:
        return  # another process writes this log
    with contextlib.suppress(InUseError, OSError), alone_in(run_dir / ".hydra" / "lock", ""):
        for path in (run_dir / name for name in notes):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        run_dir.rmdir()
        if re.fullmatch(r"\d{4}-\d\d-\d\d", run_dir.parent.name):  # the directory of the day, created for this run
            run_dir.parent.rmdir()  # fails if it holds other runs
            if run_dir.parents[1].name == "outputs":
                run_dir.parents[1].rmdir()


@contextlib.contextmanager
def alone_in_run(run_dir: Path) -> Iterator[None]:
    """Lock a run directory, because two processes training in it would overwrite each other's checkpoints.

    Raises:
        UnsafeFileError: If the directory holds a link, named pipe or device at a path that training writes.
        InUseError: If another process trains in it.
    """
    require_plain(run_dir, RUN_FILES)
    lock = run_dir / ".hydra" / "lock"
    is_new = not lock.exists()
    in_use = f"run_dir={run_dir} is in use by another genimg-train: wait until it ends, or choose another run_dir"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone_in(lock, in_use, patience=_PATIENCE))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise ConfigError(f"run_dir={run_dir} cannot be written ({error.strerror})", "choose another run_dir") from error
        try:
            yield
        except BaseException as error:
            if is_new and not is_bug(error):  # a rejected run must not change its directory
                with contextlib.suppress(OSError):
                    lock.unlink()
                    lock.parent.rmdir()  # fails if it holds something else
            raise


def _run_dir(composition: Composition) -> Path:
    """Return the chosen directory, that of the checkpoint to resume, or a new one."""
    resumed = composition.config.resume
    chosen = next((each for each in composition.typed() if each.key_or_group == "run_dir"), None)
    if chosen is not None:
        return expanded("run_dir", chosen.value()).resolve()
    if resumed not in (None, "auto"):
        return directory_to_continue_in(expanded("resume", resumed).resolve())
    names = (composition.choices.get(group) for group in ("model", "data"))
    path = Path("outputs", f"{datetime.now():%Y-%m-%d}", "_".join([f"{datetime.now():%H-%M-%S}", *map(str, names)]))
    is_dry = composition.config.dry_run is True  # a dry run makes no directory
    return (path if is_dry else Path(new_directory(str(path)))).resolve()


def prepare(
    composition: Composition,
    run_dir: Path,
    device_name: str,
    *,
    dataset: object = None,
    callbacks: Sequence[Callback] = (),
) -> Training:
    """Build the run that a composed config describes, restored from its checkpoint if there is one.

    Args:
        composition: The composed config.
        run_dir: Directory to write to; only the first rank needs access to it.
        device_name: Name of this process's device.
        dataset, callbacks: See ``train``.
    """
    composition, start, assembly, parts, initial = _built(composition, run_dir, device_name, dataset)
    config, saved = assembly.config, start.saved
    recorder = _Recorders(assembly.logger, callbacks)
    facts = {
        "genimg_version": genimg.__version__,
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "num_images": len(parts.source),
        "class_names": list(parts.source.class_names),
        "data": parts.identity(),
        "facts": assembly.facts.record(),
        "decisions": parts.decisions.record(),
        "hardware": describe_hardware(parts.device),
        "processes": world_size(),
        "performance": parts.performance.describe(parts.optimizers.values()),
    }
    facts["initial_weights"] = initial if saved is None else saved.state.get("initial_weights", {})
    facts["data_history"] = [] if saved is None else resume.data_history(saved.state, facts)
    if saved is not None:
        resume.check_facts(saved.state, facts, force=config["resume_force"])
        _require_work(saved, parts, config, run_dir)

    def make_logger(step: int, evaluated: bool) -> Logger:
        if rank() > 0:
            return SilentLogger()
        return Logger(run_dir, step=step, evaluated=evaluated, recorder=recorder)

    seconds = to_seconds(config["trainer"]["duration"])
    trainer = parts.trainer(
        folder=run_dir / "checkpoints", make_logger=make_logger, describe={**facts, **config.record()},
        time_limit=None if seconds is None else float(seconds),
    )  # fmt: skip
    if saved is not None:
        _restore(trainer, saved, config)
    with raise_on_any_rank():
        if rank() == 0:
            require_readable_records(run_dir)
            recorder.open(run_dir, thaw(config))
    try:
        run_log.begin()
        if rank() == 0:
            for folder in (run_dir, run_dir / "samples", run_dir / "averages"):
                remove_leftovers(folder)
            with atomically(run_dir / "config.yaml") as temporary:
                OmegaConf.save(OmegaConf.create(thaw(config)), temporary)
        if trainer.state.images < trainer.settings.duration:
            _announce(composition, assembly, parts, trainer, run_dir)
    except BaseException:
        if rank() == 0:
            recorder.close("failed")
        raise
    return Training(composition, config, trainer, run_dir)


def dry_run(composition: Composition, run_dir: Path, device_name: str, *, dataset: object = None) -> None:
    """Train a few steps of the run that a composed config describes, and log the estimated cost of the run; write no files.

    Args:
        composition, device_name, dataset: See ``prepare``.
        run_dir: Directory that the run would use.

    Raises:
        DivergedError: If these steps diverge.
    """
    _, _, assembly, parts, _ = _built(composition, run_dir / ".dry_run", device_name, dataset)  # this directory does not exist
    try:
        rehearse(parts, assembly.config)
    except NonFiniteError as error:
        raise DivergedError(
            f"training diverged: the loss or gradient of {error.group} was not finite at step {error.step} of the dry run",
            "try a lower optimizer.lr, or trainer.max_grad_norm=1",
        ) from error


def _built(
    composition: Composition, run_dir: Path, device_name: str, dataset: object
) -> tuple[Composition, resume.Start, Assembly, TrainingComponents, Mapping[str, Any]]:
    """Build the components of a run, with every ``auto`` setting resolved and no file written.

    The last item is the record of the weights that a new run starts from; it is empty if these are random.
    """
    require_groups(composition.config)
    refuse_repeated_options(composition)
    composition = shortened(composition)
    composed = composition.config
    if not resume.names_a_checkpoint(composed):
        require_all_values(composed)
    # Only the first rank reads the run directory: other hosts may not have it.
    with raise_on_any_rank():
        found = _found_start(composition, run_dir) if rank() == 0 else None
    start = broadcast_object(None if found is None else found[0])
    config, saved = start.config, start.saved
    with raise_on_any_rank():
        initial = None
        for key, usual in (("init_match", "all"), ("init_parts", None)):
            if config[key] != usual and config["init_from"] is None:
                problem = f"{key}={as_written(config[key])} has no effect without init_from"
                raise ConfigError(problem, "set init_from=RUN, or remove it", key=key)
        if rank() == 0 and saved is None and config["init_from"] is not None:
            initial = InitialWeights.open(config["init_from"], config["allow"])
    if saved is None:
        refuse_concatenated_labels(config)
        warn_of_missing_penalties(composition)
    if config["print_config"] and rank() == 0:
        print(OmegaConf.to_yaml(OmegaConf.create(thaw(config))))
    build = partial(
        assemble,
        device_name=device_name if world_size() > 1 else config["device"],
        named=start.named,
        may_replace_evaluation=start.may_replace_evaluation,
        dataset=None if dataset is None else own_dataset(dataset, config),
        weights=None if saved is None else saved.state["method"],
        trained={} if found is None or saved is not None else found[1],
        labelled=saved is None or had_labels(saved.state),
        check_classes=None if saved is None else partial(resume.check_classes, saved.state, force=bool(config["resume_force"])),
        initialise=None if initial is None else initial.loader(config),
    )
    searches = saved is None and config["trainer"]["accumulation"] == "auto"
    resolve = partial(resolve_auto, may_compile=not config["dry_run"])
    decided, rate = start.decided, None if start.decided is None else start.decided.images_per_second
    recorded, choice = None if saved is None else resume.last_threads(saved.state), None
    if to_seconds(config["trainer"]["duration"]) is not None and rate is None:
        trial = build(config, decided=decided, images_per_second=PROVISIONAL_RATE)
        config, parts = trial.config, resolve(trial.components, accumulation=searches)
        choice = choose_threads(parts, config, recorded)
        rate = images_per_second(parts, config, spent=choice.spent)
        decided, searches = parts.decisions, False
        del trial, parts  # their memory is needed
        with silent():  # everything was said before
            assembly = build(config, decided=decided, images_per_second=rate)
    else:
        assembly = build(config, decided=decided, images_per_second=rate)
    if saved is None and rank() == 0:
        warn_of_conditioning_without_effect(composition, assembly.components.method)
        warn_of_random_frozen_weights(assembly.components.method, initial)
        if initial is None:
            warn_without_initial_weights(assembly.components.method, composition.choices.get("model"))
        else:
            initial.warn_of_another_kind(config["model"])
    parts = resolve(assembly.components, accumulation=searches)
    choice = choice or choose_threads(parts, assembly.config, recorded)
    parts = replace(parts, threads=choice.threads)
    return composition, start, assembly, parts, dict(initial.record) if initial else {}


def _found_start(composition: Composition, run_dir: Path) -> tuple[resume.Start, Mapping[str, Tensor]]:
    """Return how a run starts, and the weights of networks that other runs have trained."""
    composition, trained = with_trained_networks(composition)
    return with_evaluation(resume.find_start(composition, run_dir), composition), trained


def _require_work(saved: resume.Saved, parts: TrainingComponents, config: Config, run_dir: Path) -> None:
    """Check that a new run from a checkpoint has something left to train; a completed run that is resumed stays unchanged.

    Raises:
        ConfigError: If nothing is left to train.
    """
    is_complete = saved.state["training"]["images"] >= parts.settings.duration
    if is_complete and run_directory_of(saved.path).resolve() != run_dir.resolve():
        duration = config["trainer"]["duration"]
        raise ConfigError(
            f"trainer.duration={duration} is reached: {relative(saved.path)} has already been trained that long",
            f"give a longer one to train in run_dir={relative(run_dir)}",
            key="trainer.duration",
        )


def _restore(trainer: Trainer, saved: resume.Saved, config: Config) -> None:
    """Restore a trainer from a checkpoint."""
    trainer.load_state_dict(saved.state)
    before = chosen_weights(saved.state["averages"], saved.state["config"]["trainer"].get("weights", "auto"))
    if before != trainer.weights or not resume.same_measure(saved.state["config"]["evaluation"], config["evaluation"]):
        trainer.state.forget_evaluations()
    elif trainer.evaluator and trainer.state.best and trainer.evaluator.primary not in trainer.state.best:
        trainer.state.forget_evaluations()  # they used another version of the features
    log.info("resuming from %s at %d images", saved.path, trainer.state.images)


class _Recorders:
    """Passes a run's records to the config's logger, if any, and to callbacks."""

    def __init__(self, logger: Recorder | None, callbacks: Sequence[Callback]) -> None:
        self._logger = logger
        self._callbacks = callbacks

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        if self._logger:
            self._logger.open(run_dir, config)

    def scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        if self._logger:
            self._logger.scalars(step, images, values)
        for callback in self._callbacks:
            callback(images, values)

    def picture(self, step: int, images: int, name: str, picture: Tensor) -> None:
        if self._logger:
            self._logger.picture(step, images, name, picture)

    def close(self, outcome: Outcome) -> None:
        if self._logger:
            self._logger.close(outcome)


def _announce(composition: Composition, assembly: Assembly, parts: TrainingComponents, trainer: Trainer, run_dir: Path) -> None:
    log.info("run directory: %s", run_dir)
    describe_parts(parts, assembly.config)
    settings = trainer.settings
    log.info(
        "training for %s: %d images in %d steps of %d",
        assembly.config["trainer"]["duration"],
        settings.duration,
        settings.duration // settings.batch_size,
        settings.batch_size,
    )
    if trainer.state.images == 0:
        warn_of_short_training(composition, settings, assembly.config, assembly.builder)
