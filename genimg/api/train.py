"""Train a model, from the command line or from Python."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

import genimg
from genimg.api.assemble import Assembly, assemble, describe_parts
from genimg.api.debugging import say_what_was_learnt, shortened
from genimg.api.dry_run import rehearse
from genimg.api.results import sentence, table
from genimg.api.usual import (
    asked_for_extractor,
    refuse_repeated_penalties,
    warn_of_missing_penalties,
    warn_of_short_training,
)
from genimg.config import resume
from genimg.config.compose import Composition, Config, compose, require_all_values, thaw
from genimg.config.instantiate import mounted
from genimg.data.datasets.builtin import Source
from genimg.data.datasets.external import as_dataset, dataset_of
from genimg.data.identity import Identity, identity_of
from genimg.errors import ConfigError, UserError
from genimg.evaluation.periodic import PeriodicEvaluator
from genimg.methods.image_to_image import Translation
from genimg.reporting import write_report
from genimg.training.autotune import resolve_auto
from genimg.training.components import TrainingComponents
from genimg.training.device import describe_hardware
from genimg.training.logger import Logger, Recorder, SilentLogger, write_hyperparameters
from genimg.training.state import TrainingState
from genimg.training.trainer import StopRequestedError, Trainer, WorseningError
from genimg.training.update import NonFiniteError
from genimg.utils.distributed import failing_together, of_first_rank, rank, world_size
from genimg.utils.environment import git_commit, versions
from genimg.utils.files import alone_in, new_directory, write_json
from genimg.utils.paths import expanded, relative, run_directory_of
from genimg.utils.words import argument

if TYPE_CHECKING:
    from genimg.api.model import Model

log = logging.getLogger(__name__)

Callback = Callable[[int, Mapping[str, float]], None]
"""Called with the images seen and numbers by name: losses at every ``trainer.log_interval``, metrics after evaluations."""

_PATIENCE = 20.0  # seconds for another process that is just saving and ending


class DivergedError(UserError):
    """Training produced infinite or undefined numbers, or images that only grew worse."""


@dataclass(frozen=True)
class Run:
    """A training that has ended.

    Attributes:
        directory: Of the run: config.yaml, checkpoints/, samples/, metrics.jsonl, summary.json, report.html.
        status: ``completed``; ``stopped``, by a signal, with a checkpoint to continue from; ``dry_run``.
        summary: What summary.json holds: images seen, metrics of the last and the best evaluation, speed, versions.
        best: Best value of the evaluator's first metric; None without evaluation.
        signal: Number of the signal that stopped it, if one did.
        allow: Packages of the user's own that its config names.
    """

    directory: Path
    status: str
    summary: Mapping[str, Any] = field(repr=False)
    best: float | None = None
    signal: int | None = None
    allow: Sequence[str] = ()

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the last evaluation, by name."""
        return dict(self.summary.get("last", {}))

    def model(self, which: str = "last", *, device: str = "auto") -> Model:
        """Load the trained model.

        Args:
            which: ``last`` checkpoint or ``best`` one.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        """
        from genimg.api.model import load

        return load(self.directory, which=which, device=device, allow=self.allow)


def train(overrides: Sequence[str] = (), *, dataset: object = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Train a model, as ``genimg-train`` with the same arguments would, or continue a run.

    Args:
        overrides: Arguments of the command line, such as ``["model=dcgan", "data=mnist", "trainer.duration=5 epochs"]``.
        dataset: Images to train on instead of those of ``data=``: an array, a torch ``Dataset`` or a Hugging Face dataset (see
            ``genimg.as_dataset``). ``data.image_size`` and ``data.channels`` bring them to one size.
        callbacks: Called with the images seen and numbers by name, in the order of training.

    Returns:
        The finished run. Ctrl-C stops after the step under way, with a checkpoint.

    Raises:
        UserError: For whatever the arguments or the data have wrong; DivergedError if training diverges.
    """
    arguments = list(overrides)
    if dataset is not None:
        if any(each.lstrip("+").startswith("data=") for each in arguments):
            raise ConfigError("dataset= and data= both name images: give one of them", key="dataset")
        arguments.insert(0, "data=given")
    composition = compose(arguments)
    is_dry = composition.config.dry_run is True
    run_dir = _run_dir(composition)
    if is_dry:
        return run(composition, run_dir / ".dry_run", str(composition.config.device), dataset=dataset, callbacks=callbacks)
    with _removed_if_nothing_begins(run_dir), alone_in_run(run_dir):
        return run(composition, run_dir, str(composition.config.device), dataset=dataset, callbacks=callbacks)


@contextlib.contextmanager
def _removed_if_nothing_begins(run_dir: Path) -> Iterator[None]:
    """Remove a new run directory if the run is refused at its start."""
    is_new = not run_dir.exists() or not any(run_dir.iterdir())
    try:
        yield
    except UserError:
        if is_new:
            remove_if_nothing_began(run_dir)
        raise


def remove_if_nothing_began(run_dir: Path) -> None:
    """Remove the directory of a run that was refused at its start, which holds notes of the start alone."""
    if {path.name for path in run_dir.iterdir()} <= {".hydra", "train.log", "wandb", "wandb-id.txt"}:
        shutil.rmtree(run_dir, ignore_errors=True)


def alone_in_run(run_dir: Path) -> Any:
    """Lock a run directory: two processes that train in it would overwrite each other's checkpoints."""
    return alone_in(
        run_dir / ".hydra" / "lock",
        f"run_dir={run_dir} is in use by another genimg-train: wait for its end, or choose another run_dir",
        patience=_PATIENCE,
    )


def _run_dir(composition: Composition) -> Path:
    """The directory that was chosen, that of the checkpoint to resume, or a new one."""
    resumed = composition.config.resume
    chosen = next((each for each in composition.typed() if each.key_or_group == "run_dir"), None)
    if chosen is not None:
        return expanded("run_dir", chosen.value()).resolve()
    if resumed not in (None, "auto"):
        return run_directory_of(expanded("resume", resumed).resolve())
    names = (composition.choices.get(group) for group in ("model", "data"))
    path = Path("outputs", f"{datetime.now():%Y-%m-%d}", "_".join([f"{datetime.now():%H-%M-%S}", *map(str, names)]))
    is_dry = composition.config.dry_run is True  # it makes no directory
    return (path if is_dry else Path(new_directory(str(path)))).resolve()


def run(
    composition: Composition,
    run_dir: Path,
    device_name: str,
    *,
    dataset: object = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train, or continue, the run that a composed config describes.

    Args:
        composition: The config.
        run_dir: To write to; only the first rank needs to see it.
        device_name: Of this process.
        dataset, callbacks: See ``train``.
    """
    refuse_repeated_penalties(composition)
    composition = shortened(composition)
    composed = composition.config
    if not resume.names_a_checkpoint(composed):
        require_all_values(composed)
    # Only the first rank needs to see the run directory: other hosts may not have it.
    with failing_together():
        start = resume.find_start(composition, run_dir) if rank() == 0 else None
    start = of_first_rank(start)
    config, saved = start.config, start.saved
    if saved is None:
        warn_of_missing_penalties(composition)
    if config["print_config"] and rank() == 0:
        print(OmegaConf.to_yaml(OmegaConf.create(thaw(config))))
    was_measured_with_it = saved is not None and saved.state["config"]["evaluation"] == config["evaluation"]
    # The evaluation of a checkpoint that is named was chosen when that run was started.
    named_checkpoint = resume.names_a_checkpoint(composed)
    replaceable = not (was_measured_with_it or named_checkpoint or asked_for_extractor(composition))
    assembly = assemble(
        config,
        device_name if world_size() > 1 else config["device"],
        named=start.named,
        decided=start.decided,
        may_replace_evaluation=replaceable,
        dataset=None if dataset is None else _own_dataset(dataset, config),
    )
    config = assembly.config
    parts = resolve_auto(
        assembly.components,
        accumulation=saved is None and config["trainer"]["accumulation"] == "auto",
        may_compile=not config["dry_run"],
    )
    if config["dry_run"]:
        rehearse(parts, config["trainer"]["duration"])
        return Run(run_dir, "dry_run", {})
    recorder = _Recorders(assembly.logger, callbacks)
    facts = {
        "genimg_version": genimg.__version__,
        "torch_version": str(torch.__version__),
        "num_images": len(parts.source),
        "class_names": list(parts.source.class_names),
        "data": _identity(parts),
        "facts": assembly.facts.record(),
        "decisions": parts.decisions.record(),
        "hardware": describe_hardware(parts.device),
        "processes": world_size(),
        "performance": parts.performance.describe(parts.optimizers.values()),
    }

    facts["data_history"] = [] if saved is None else resume.data_history(saved.state, facts)
    if saved is not None:
        resume.check_facts(saved.state, facts, force=config["resume_force"])

    def make_logger(step: int, evaluated: bool) -> Logger:
        if rank() > 0:
            return SilentLogger()
        return Logger(run_dir, step=step, evaluated=evaluated, recorder=recorder)

    trainer = parts.trainer(folder=run_dir / "checkpoints", make_logger=make_logger, describe={**facts, **config.record()})
    if saved is not None:
        trainer.load_state_dict(saved.state)
        if not resume.same_measure(saved.state["config"]["evaluation"], config["evaluation"]):
            trainer.state.forget_evaluations()
        elif parts.evaluator and trainer.state.best and parts.evaluator.primary not in trainer.state.best:
            trainer.state.forget_evaluations()  # by features of another version
        log.info("resuming from %s at %d images", saved.path, trainer.state.images)
    with failing_together():
        if rank() == 0:
            recorder.open(run_dir, thaw(config))
    if rank() == 0:
        OmegaConf.save(OmegaConf.create(thaw(config)), run_dir / "config.yaml")
    if trainer.state.images < trainer.settings.duration:
        _announce(composition, assembly, parts, trainer, run_dir)
    return _fit(composition, trainer, config, parts.evaluator, run_dir)


def _own_dataset(dataset: object, config: Config) -> Source:
    data = config["data"]
    with mounted("data", as_dataset):
        return dataset_of(dataset, "dataset", image_size=data["image_size"], channels=data["channels"], fit=data["fit"])


class _Recorders:
    """Gives a run's records to the logger of the config, if there is one, and to callbacks."""

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

    def close(self) -> None:
        if self._logger:
            self._logger.close()


def _identity(parts: TrainingComponents) -> Identity:
    task = parts.method.task if isinstance(parts.method, Translation) else None
    masks = None if task is None else task.fingerprint()
    return identity_of(parts.source, captions="caption" in parts.method.batch_keys, masks=masks)


def _announce(composition: Composition, assembly: Assembly, parts: TrainingComponents, trainer: Trainer, run_dir: Path) -> None:
    log.info("run directory: %s", run_dir)
    describe_parts(parts)
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


def _fit(composition: Composition, trainer: Trainer, config: Config, evaluator: PeriodicEvaluator | None, run_dir: Path) -> Run:
    stopped_by: int | None = None
    page: Path | None = None
    start, images_before = time.monotonic(), trainer.state.images
    summary: dict[str, Any] = {"status": "failed"}
    if rank() == 0 and images_before < trainer.settings.duration:
        (run_dir / "summary.json").unlink(missing_ok=True)  # of an earlier launch, which a kill of this one would leave
    try:
        state = trainer.fit()
        summary["status"] = "completed"
    except StopRequestedError:
        state = trainer.state
        summary["status"] = "stopped"
        log.warning("stopped at %d images; the checkpoint is written", state.images)
        command = "torchrun ... -m genimg.train" if world_size() > 1 else "genimg-train"
        log.warning("to continue: %s %s", command, argument("resume", relative(run_dir)))
        stopped_by = trainer.stop_signal or signal.SIGINT  # none: another process received it
    except KeyboardInterrupt:
        summary["status"] = "interrupted"
        log.warning("interrupted at %d images; what was saved last is in %s", trainer.state.images, trainer.folder.path)
        raise
    except (NonFiniteError, WorseningError) as error:
        summary["status"] = "diverged"
        raise DivergedError(_why_it_ended(error, trainer, evaluator)) from error
    finally:
        summary |= _summary(composition, trainer, config) | {"wall_seconds": round(time.monotonic() - start, 1)}
        if rank() == 0:
            _write_summary(run_dir, summary)
            page = _write_page(run_dir) if summary["status"] != "interrupted" else None
    best = state.best[evaluator.primary] if evaluator and evaluator.primary and state.best else None
    if stopped_by is not None:
        return Run(run_dir, "stopped", summary, best, stopped_by, config["allow"])
    if images_before >= trainer.settings.duration:
        _say_that_it_is_complete(state, config["trainer"]["duration"], evaluator, run_dir)
        return Run(run_dir, "completed", summary, best, allow=config["allow"])
    if rank() == 0 and state.last:
        write_hyperparameters(run_dir, config, [f"evaluation/{name}" for name in state.last])
    log.info(
        "finished %d images; %d of them now, in %.0f s", state.images, state.images - images_before, summary["wall_seconds"]
    )
    _report(state, summary, evaluator, run_dir)
    if isinstance(debug := config.get("debug"), dict) and debug.get("one_batch") and rank() == 0:
        say_what_was_learnt(run_dir)
    if rank() == 0 and page is not None:
        log.info("report:      %s", relative(page))
    return Run(run_dir, "completed", summary, best, allow=config["allow"])


def _say_that_it_is_complete(state: TrainingState, duration: str, evaluator: PeriodicEvaluator | None, run_dir: Path) -> None:
    name = (evaluator.primary or "") if evaluator else ""
    result = f": {name} is {state.last[name]:.6g}" if name in state.last else ""
    if result and state.best_images != state.images:
        result += f", and was {state.best[name]:.6g} at its {state.best_in_words}"
    log.info("this run is complete, with %d images%s", state.images, result)
    command = "torchrun ... -m genimg.train" if world_size() > 1 else "genimg-train"
    log.info("to train longer than %s: %s %s trainer.duration=...", duration, command, argument("resume", relative(run_dir)))


def _why_it_ended(error: NonFiniteError | WorseningError, trainer: Trainer, evaluator: PeriodicEvaluator | None) -> str:
    state, folder = trainer.state, trainer.folder.path
    if isinstance(error, NonFiniteError):
        last = folder / "last.pt"
        good = f"the last good checkpoint is {relative(last)}" if last.is_file() else "there is no earlier checkpoint"
        return (
            f"training diverged: the loss or gradient of {error.group} was not finite at step {error.step}; {good}. Try a "
            "lower optimizer.lr, trainer.max_grad_norm=1, precision=fp32, or another loss"
        )
    assert evaluator is not None
    assert evaluator.stop_if is not None
    watch = evaluator.stop_if
    name = evaluator.primary or "" if watch.metric is None else watch.name_in(state.last)
    if watch.metric is None:
        best = f"{state.best[name]:.6g} (at {state.best_images} images)"
        words = f"more than {watch.factor:g} times worse than its best of {best}"
    else:
        words = f"above {watch.above:g}" if watch.above is not None else f"below {watch.below:g}"
    kept = "best" if state.best else "last"
    return (
        f"training stopped at {state.images} images, because evaluation.stop_if says so: {name} is {state.last[name]:.6g}, "
        f"and has been {words} for {state.worse_evaluations} evaluation{'s' * (state.worse_evaluations > 1)} in a row; "
        f"the {kept} checkpoint is {relative(folder / f'{kept}.pt')}"
    )


def _summary(composition: Composition, trainer: Trainer, config: Config) -> dict[str, Any]:
    state = trainer.state
    return {
        "overrides": [each for each in composition.overrides if not each.startswith("run_dir=")],
        "images": state.images,
        "duration": trainer.settings.duration,
        "steps": trainer.progress.step,
        "primary": trainer.evaluator.primary if trainer.evaluator else None,
        "higher_is_better": trainer.evaluator.higher_is_better if trainer.evaluator else None,
        "last": state.last,
        "best": state.best,
        "best_images": state.best_images,
        "num_evaluations": state.num_evaluations,
        "final": state.final,
        "provenance": state.provenance,
        "data": trainer.describe["data"],
        "data_history": trainer.describe["data_history"],
        "training_images_per_second": round(state.images / state.seconds, 1) if state.seconds else None,
        "data_wait_share": round(state.waiting_seconds / max(state.seconds, 1e-9), 4),
        "evaluation_seconds": round(state.evaluation_seconds, 1),
        "seed": config["seed"],
        "hardware": describe_hardware(trainer.device),
        "processes": world_size(),
        "placement": trainer.data.placement,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    try:
        write_json(run_dir / "summary.json", summary)
    except OSError as error:  # often the disk is full, and the error under way says more
        log.warning("summary.json cannot be written (%s)", error.strerror)


def _write_page(run_dir: Path) -> Path | None:
    """Write the run's own report; best effort."""
    try:
        return write_report([run_dir], run_dir / "report.html").html
    except Exception as error:
        log.warning("report.html cannot be written (%s)", error)
        return None


def _report(state: TrainingState, summary: Mapping[str, Any], evaluator: PeriodicEvaluator | None, run_dir: Path) -> None:
    shown = relative(run_dir)
    rate = summary["training_images_per_second"]
    waiting = state.waiting_seconds / max(state.seconds, 1e-9)
    log.info("%s images/s while training, %.1f %% of it waiting for data", rate, 100 * waiting)
    if waiting > 0.1 and summary["placement"] == "workers":
        log.info("  more data.num_workers=N shorten that, or genimg-prepare, which decodes the images once and for all")
    if evaluator and state.best:
        columns = {"last": state.last, state.best_in_words: state.best}
        log.info("%s", table(columns | ({"at the end": state.final["metrics"]} if state.final else {})))
        log.info("measured with %s", sentence(summary["provenance"]))
        share = state.evaluation_seconds / max(state.evaluation_seconds + state.seconds, 1e-9)
        log.info("evaluation took %.0f s, %.0f %% of training and evaluation together", state.evaluation_seconds, 100 * share)
    pictures = sorted((run_dir / "samples").glob(f"*-{state.images:09d}.png"))
    names = ",".join(path.name.removesuffix(f"-{state.images:09d}.png") for path in pictures)
    several = names if len(pictures) == 1 else f"{{{names}}}"
    log.info("pictures:    %s", shown / "samples" / f"{several}-{state.images:09d}.png")
    log.info("curves:      tensorboard --logdir %s   (or %s)", shlex.quote(str(shown)), shown / "metrics.jsonl")
    log.info("checkpoint:  %s", shown / "checkpoints" / ("best.pt" if state.best else "last.pt"))
