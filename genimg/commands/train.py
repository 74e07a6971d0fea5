"""genimg-train: train, or continue, the run that a config describes."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import signal
import sys
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

import genimg
from genimg.api.assemble import Assembly, assemble, describe_parts
from genimg.api.debugging import say_what_was_learnt, shortened
from genimg.api.dry_run import rehearse
from genimg.api.usual import (
    asked_for_extractor,
    refuse_repeated_penalties,
    warn_of_missing_penalties,
    warn_of_short_training,
)
from genimg.commands.common import sentence, table
from genimg.config import resume
from genimg.config.compose import require_all_values, thaw
from genimg.config.instantiate import Config
from genimg.data.identity import Identity, identity_of
from genimg.errors import UserError
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
from genimg.utils.distributed import (
    AnotherProcessError,
    failing_together,
    of_first_rank,
    processes_of_torchrun,
    rank,
    world_size,
)
from genimg.utils.environment import git_commit, versions
from genimg.utils.files import InUseError, alone_in, write_json
from genimg.utils.paths import relative
from genimg.utils.torchrun import rank_of_torchrun
from genimg.utils.words import argument

log = logging.getLogger(__name__)

_PATIENCE = 20.0  # seconds for another process that is just saving and ending


class DivergedError(UserError):
    """Training produced infinite or undefined numbers, or images that only grew worse."""


def train(composed: DictConfig) -> float | None:
    """Train, or continue, the run that the config describes.

    Returns:
        The best value of the evaluator's first metric (what a sweeper minimises), or None without evaluation.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    try:
        with processes_of_torchrun(str(composed.device)) as device_name, logging_redirect_tqdm():
            if rank() > 0:
                logging.disable(logging.WARNING)  # the first rank says it
            if world_size() > 1 and hydra.mode == RunMode.MULTIRUN:
                raise ValueError("torchrun trains one run: start a sweep (-m) without it, or torchrun for each of its runs")
            _refuse_what_has_no_effect(hydra)
            if not isinstance(composed.dry_run, bool):
                raise ValueError(f"dry_run={composed.dry_run} must be true or false")
            if composed.dry_run and hydra.mode == RunMode.MULTIRUN:
                raise ValueError("dry_run=true looks at one run: leave -m away")
            if composed.dry_run:
                run_dir = run_dir / ".dry_run"  # which is not there: nothing is looked up, cleaned up or written
            with _alone_in(run_dir) if rank() == 0 and not composed.dry_run else contextlib.nullcontext():
                return _train(composed, of_first_rank(run_dir), device_name)
    except Exception as error:
        _write_to_log_file(traceback.format_exc())
        its_own = rank_of_torchrun() == 0 and composed.dry_run is not True and not isinstance(error, InUseError)
        if hydra.mode == RunMode.RUN and isinstance(error, ValueError | OSError | AnotherProcessError) and its_own:
            _remove_if_nothing_began(run_dir)
        if hydra.mode == RunMode.MULTIRUN:  # Hydra goes on with the next job and would tell only at the end
            log.error("this job failed: %s", error)
        raise


def _refuse_what_has_no_effect(hydra: Any) -> None:
    """A launcher without a sweep, a ready search as a value of a sweep, or one directory for all jobs.

    Raises:
        ValueError: naming it, with the fix.
    """
    of_sweeps = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.", "hydra.sweep.")
    if hydra.mode == RunMode.RUN and (found := [each for each in hydra.overrides.hydra if each.startswith(of_sweeps)]):
        raise ValueError(f"{found[0]} has no effect on a single run: add -m for a sweep, or remove it")
    if hydra.mode == RunMode.MULTIRUN:
        for override in hydra.overrides.task:
            if override.startswith("run_dir="):
                raise ValueError(f"{override} has no effect in a sweep: give hydra.sweep.dir")
            if override.startswith("sweep=") and override != "sweep=null":
                raise ValueError(f"{override}: one ready search at a time, and without -m")


def _alone_in(run_dir: Path) -> AbstractContextManager[None]:
    """Two processes that train in one directory would take turns in overwriting each other's checkpoints."""
    return alone_in(
        run_dir / ".hydra" / "lock",
        f"run_dir={run_dir} is in use by another genimg-train: wait for its end, or choose another run_dir",
        patience=_PATIENCE,
    )


def _train(composed: DictConfig, run_dir: Path, device_name: str) -> float | None:
    refuse_repeated_penalties(HydraConfig.get().overrides.task)
    composed = shortened(composed)
    if not resume.names_a_checkpoint(composed):
        require_all_values(composed)
    # Only the first rank needs to see the run directory: other hosts may not have it.
    with failing_together():
        start = resume.find_start(composed, run_dir) if rank() == 0 else None
    start = of_first_rank(start)
    config, saved = start.config, start.saved
    if saved is None:
        warn_of_missing_penalties(composed)
    if config["print_config"] and rank() == 0:
        print(OmegaConf.to_yaml(OmegaConf.create(thaw(config))))
    was_measured_with_it = saved is not None and saved.state["config"]["evaluation"] == config["evaluation"]
    # The evaluation of a checkpoint that is named was chosen when that run was started.
    named_checkpoint = resume.names_a_checkpoint(composed)
    replaceable = not (was_measured_with_it or named_checkpoint or asked_for_extractor())
    assembly = assemble(
        config,
        device_name if world_size() > 1 else config["device"],
        named=start.named,
        decided=start.decided,
        may_replace_evaluation=replaceable,
    )
    config = assembly.config
    parts = resolve_auto(
        assembly.components,
        accumulation=saved is None and config["trainer"]["accumulation"] == "auto",
        may_compile=not config["dry_run"],
    )
    if config["dry_run"]:
        rehearse(parts, config["trainer"]["duration"])
        return None
    recorder: Recorder | None = assembly.builder.build_group(config, "logger")
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
        if recorder and rank() == 0:
            recorder.open(run_dir, config)
    if rank() == 0:
        OmegaConf.save(OmegaConf.create(thaw(config)), run_dir / "config.yaml")
    if trainer.state.images < trainer.settings.duration:
        _announce(assembly, parts, trainer, run_dir)
    return _fit(trainer, config, parts.evaluator, run_dir)


def _identity(parts: TrainingComponents) -> Identity:
    task = parts.method.task if isinstance(parts.method, Translation) else None
    masks = None if task is None else task.fingerprint()
    return identity_of(parts.source, captions="caption" in parts.method.batch_keys, masks=masks)


def _announce(assembly: Assembly, parts: TrainingComponents, trainer: Trainer, run_dir: Path) -> None:
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
        warn_of_short_training(settings, assembly.config, assembly.builder)


def _fit(trainer: Trainer, config: Config, evaluator: PeriodicEvaluator | None, run_dir: Path) -> float | None:
    start, images_before = time.monotonic(), trainer.state.images
    summary: Config = {"status": "failed"}
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
        sys.exit(128 + (trainer.stop_signal or signal.SIGINT))  # none: another process received it
    except KeyboardInterrupt:
        summary["status"] = "interrupted"
        log.warning("interrupted at %d images; what was saved last is in %s", trainer.state.images, trainer.folder.path)
        raise
    except (NonFiniteError, WorseningError) as error:
        summary["status"] = "diverged"
        raise DivergedError(_why_it_ended(error, trainer, evaluator)) from error
    finally:
        summary |= _summary(trainer, config) | {"wall_seconds": round(time.monotonic() - start, 1)}
        if rank() == 0:
            _write_summary(run_dir, summary)
            page = _write_page(run_dir) if summary["status"] != "interrupted" else None
    if images_before >= trainer.settings.duration:
        _say_that_it_is_complete(state, config["trainer"]["duration"], evaluator, run_dir)
        return state.best[evaluator.primary] if evaluator and evaluator.primary and state.best else None
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
    return state.best[evaluator.primary] if evaluator and evaluator.primary and state.best else None


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


def _summary(trainer: Trainer, config: Config) -> Config:
    state = trainer.state
    return {
        "overrides": [each for each in HydraConfig.get().overrides.task if not each.startswith("run_dir=")],
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


def _write_summary(run_dir: Path, summary: Config) -> None:
    try:
        write_json(run_dir / "summary.json", summary)
    except OSError as error:  # often the disk is full, and the error under way says more
        log.warning("summary.json cannot be written (%s)", error.strerror)


def _write_page(run_dir: Path) -> Path | None:
    """The run's own report; a run is no worse for the lack of it."""
    try:
        return write_report([run_dir], run_dir / "report.html").html
    except Exception as error:
        log.warning("report.html cannot be written (%s)", error)
        return None


def _report(state: TrainingState, summary: Config, evaluator: PeriodicEvaluator | None, run_dir: Path) -> None:
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


def _remove_if_nothing_began(run_dir: Path) -> None:
    """A directory of a run that was refused at its start holds nothing but Hydra's notes."""
    if {path.name for path in run_dir.iterdir()} <= {".hydra", "train.log", "wandb", "wandb-id.txt"}:
        shutil.rmtree(run_dir, ignore_errors=True)


def _write_to_log_file(text: str) -> None:
    """Tracebacks go to the run's log, not to the terminal."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("genimg", logging.ERROR, "", 0, text, None, None))
