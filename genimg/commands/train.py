"""genimg-train: train, or continue, the run that a config describes."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

import genimg
from genimg import build, resuming
from genimg.commands.common import Config, argument, relative, require_all_values, sentence, table, write_json
from genimg.data.placement import Data
from genimg.environment import git_commit, versions
from genimg.evaluation.evaluator import Evaluator
from genimg.interfaces import Method
from genimg.training import checkpoint
from genimg.training.device import choose_device, choose_precision, describe_hardware
from genimg.training.logger import Logger
from genimg.training.trainer import StopRequestedError, Trainer, TrainingState, WorseningError
from genimg.training.update import NonFiniteError

log = logging.getLogger(__name__)


class DivergedError(Exception):
    """Training produced infinite or undefined numbers, or images that only grew worse."""

    is_users = True


def train(composed: DictConfig) -> float | None:
    """Train, or continue, the run that the config describes.

    Returns:
        The best value of the evaluator's first metric (what a sweeper minimises), or None without evaluation.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    try:
        with logging_redirect_tqdm():
            return _train(composed, run_dir)
    except Exception as error:
        _write_to_log_file(traceback.format_exc())
        if hydra.mode == RunMode.RUN and isinstance(error, ValueError | OSError):
            _remove_if_nothing_began(run_dir)
        if hydra.mode == RunMode.MULTIRUN:  # Hydra goes on with the next job and would tell only at the end
            log.error("this job failed: %s", error)
        raise


def _train(composed: DictConfig, run_dir: Path) -> float | None:
    if not resuming.names_a_checkpoint(composed):
        require_all_values(composed)
    source_config, config, saved = resuming.find_start(composed, run_dir)
    build.check_top_level(config)
    if not isinstance(config["seed"], int) or config["seed"] < 0:
        raise ValueError(f"seed={config['seed']} must be a whole number, 0 or more")
    if config["print_config"]:
        print(OmegaConf.to_yaml(OmegaConf.create(config)))

    device = choose_device(config["device"])
    precision = choose_precision(config["precision"], device)
    precision.apply_globally()
    torch.manual_seed(config["seed"])  # of the initial weights

    # What needs no data comes first: nobody shall download a dataset to learn of a typing mistake.
    if not isinstance(config["allow"], list) or not isinstance(config["optimizer_overrides"], dict):
        raise ValueError("allow must be a list such as allow=[mypackage], and optimizer_overrides a mapping")
    batch_size = config["trainer"]["batch_size"]
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"trainer.batch_size={batch_size} must be 1 or more images")
    builder = build.Builder(allowed=(*build.ALLOWED, *map(str, config["allow"])), epoch_size=1, batch_size=batch_size)
    build.check_pairing(config, builder)
    builder.trainer_settings(config["trainer"])
    source = build.build_source(config, builder)
    if batch_size > len(source):
        raise ValueError(f"trainer.batch_size={batch_size} is larger than the data: {source.name} has {len(source)} images")
    builder = build.Builder(builder.allowed, epoch_size=len(source), batch_size=batch_size)
    settings = builder.trainer_settings(config["trainer"])
    schedule = build.build_schedule(config, builder)
    method = build.build_method(config, source, builder)
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = build.build_optimizers(config, method, builder)
    evaluator = build.build_evaluator(config, builder)  # last, because it may download
    data = build.build_data(config, source, device)
    facts = {
        "genimg_version": genimg.__version__,
        "torch_version": str(torch.__version__),
        "num_images": len(source),
        "precision": precision.name,
        "hardware": describe_hardware(device),
    }

    trainer = Trainer(
        settings,
        method,
        optimizers,
        schedule,
        data,
        evaluator,
        precision=precision,
        seed=config["seed"],
        folder=checkpoint.CheckpointFolder(run_dir / "checkpoints", keep_last=settings.keep_last),
        make_logger=lambda step, evaluated: Logger(run_dir, step=step, evaluated=evaluated),
        describe={**facts, "config": config, "config_source": source_config},
    )
    if saved is not None:
        resuming.check_facts(saved.state, facts, force=config["resume_force"])
        trainer.load_state_dict(saved.state)
        if not resuming.same_measure(saved.state["config"]["evaluation"], config["evaluation"]):
            trainer.state.forget_evaluations()
        log.info("resuming from %s at %d images", saved.path, trainer.state.images)
    OmegaConf.save(OmegaConf.create(config), run_dir / "config.yaml")
    _announce(config, method, data, device, precision.name, trainer, run_dir)
    return _fit(trainer, config, evaluator, run_dir)


def _announce(
    config: Config, method: Method, data: Data, device: torch.device, precision: str, trainer: Trainer, run_dir: Path
) -> None:
    counts = ", ".join(
        f"{name} {sum(p.numel() for p in parameters):,}" for name, parameters in method.parameter_groups().items()
    )
    source = data.source
    log.info("run directory: %s", run_dir)
    log.info(
        "data: %s, %d images of %s, placement %s",
        source.name,
        len(source),
        "x".join(map(str, source.shape)),
        data.placement,
    )
    if source.labels is not None and "label" not in method.batch_keys:
        log.info("the data's %d classes are not used: the model is unconditional", len(source.class_names))
    log.info("parameters: %s", counts)
    log.info("device %s, precision %s, %d threads", device, precision, torch.get_num_threads())
    settings = trainer.settings
    steps = settings.duration // settings.batch_size
    log.info(
        "training for %s: %d images in %d steps of %d",
        config["trainer"]["duration"],
        settings.duration,
        steps,
        settings.batch_size,
    )


def _fit(trainer: Trainer, config: Config, evaluator: Evaluator | None, run_dir: Path) -> float | None:
    start, images_before = time.monotonic(), trainer.state.images
    if images_before >= trainer.settings.duration:
        log.info("this run is complete: raise trainer.duration to train longer, or choose another run_dir")
    summary: Config = {"status": "failed"}
    try:
        state = trainer.fit()
        summary["status"] = "completed"
    except StopRequestedError:
        state = trainer.state
        summary["status"] = "stopped"
        log.warning("stopped at %d images; the checkpoint is written", state.images)
        log.warning("to continue: genimg-train %s", argument("resume", relative(run_dir)))
        sys.exit(128 + (signal.SIGTERM if trainer.stop_signal == signal.SIGTERM else signal.SIGINT))
    except KeyboardInterrupt:
        summary["status"] = "interrupted"
        log.warning("interrupted at %d images; what was saved last is in %s", trainer.state.images, trainer.folder.path)
        raise
    except NonFiniteError as error:
        state = trainer.state
        summary["status"] = "diverged"
        last = trainer.folder.path / "last.pt"
        good = f"the last good checkpoint is {relative(last)}" if last.is_file() else "there is no earlier checkpoint"
        raise DivergedError(
            f"training diverged: the loss or gradient of {error.group} was not finite at step {error.step}; {good}. Try a "
            "lower optimizer.lr, trainer.max_grad_norm=1, precision=fp32, or another loss"
        ) from error
    except WorseningError as error:
        state = trainer.state
        summary["status"] = "diverged"
        assert evaluator is not None
        assert evaluator.stop_if is not None
        name, watch = evaluator.primary, evaluator.stop_if
        raise DivergedError(
            f"training stopped at {state.images} images, because evaluation.stop_if says so: {name} is {state.last[name]:.6g}, "
            f"and has been more than {watch.factor:g} times worse than its best of {state.best[name]:.6g} (at "
            f"{state.best_images} images) for {state.worse_evaluations} evaluation{'s' * (state.worse_evaluations > 1)} in a "
            "row; the best checkpoint is "
            f"{relative(trainer.folder.path / 'best.pt')}"
        ) from error
    finally:
        summary |= {
            "images": trainer.state.images,
            "steps": trainer.progress.step,
            "last": trainer.state.last,
            "best": trainer.state.best,
            "best_images": trainer.state.best_images,
            "final": trainer.state.final,
            "provenance": trainer.state.provenance,
            "wall_seconds": round(time.monotonic() - start, 1),
            "training_images_per_second": round(trainer.state.images / trainer.state.seconds, 1)
            if trainer.state.seconds
            else None,
            "evaluation_seconds": round(trainer.state.evaluation_seconds, 1),
            "seed": config["seed"],
            "hardware": describe_hardware(trainer.device),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        _write_summary(run_dir, summary)
    log.info(
        "finished %d images; %d of them now, in %.0f s", state.images, state.images - images_before, summary["wall_seconds"]
    )
    _report(state, summary, evaluator, run_dir)
    return state.best[evaluator.primary] if evaluator and state.best else None


def _write_summary(run_dir: Path, summary: Config) -> None:
    try:
        write_json(run_dir / "summary.json", summary)
    except OSError as error:  # often the disk is full, and the error under way says more
        log.warning("summary.json cannot be written (%s)", error.strerror)


def _report(state: TrainingState, summary: Config, evaluator: Evaluator | None, run_dir: Path) -> None:
    shown = relative(run_dir)
    rate = summary["training_images_per_second"]
    log.info("%s images/s while training", rate)
    if evaluator and state.best:
        columns = {"last": state.last, f"best, at {state.best_images} images": state.best}
        log.info("%s", table(columns | ({"at the end": state.final["metrics"]} if state.final else {})))
        log.info("measured with %s", sentence(summary["provenance"]))
        share = state.evaluation_seconds / max(state.evaluation_seconds + state.seconds, 1e-9)
        log.info("evaluation took %.0f s, %.0f %% of training and evaluation together", state.evaluation_seconds, 100 * share)
    pictures = sorted((run_dir / "samples").glob(f"*-{state.images:09d}.png"))
    log.info("pictures:    %s", "  ".join(str(relative(path)) for path in pictures))
    log.info("curves:      tensorboard --logdir %s   (or %s)", shlex.quote(str(shown)), shown / "metrics.jsonl")
    log.info("checkpoint:  %s", shown / "checkpoints" / ("best.pt" if evaluator else "last.pt"))


def _remove_if_nothing_began(run_dir: Path) -> None:
    """A directory of a run that was refused at its start holds nothing but Hydra's notes."""
    if {path.name for path in run_dir.iterdir()} <= {".hydra", "train.log"}:
        shutil.rmtree(run_dir, ignore_errors=True)


def _write_to_log_file(text: str) -> None:
    """Tracebacks go to the run's log, not to the terminal."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("genimg", logging.ERROR, "", 0, text, None, None))
