"""What the entry points do once their config is composed."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import genimg
from genimg import build, resuming
from genimg.data.placement import Data
from genimg.environment import environment
from genimg.evaluation.evaluator import Evaluation, Evaluator
from genimg.explain import quoted
from genimg.images import grid, to_uint8, write_png
from genimg.interfaces import Method
from genimg.training import checkpoint
from genimg.training.device import choose_device, choose_precision, describe_hardware
from genimg.training.logger import Logger
from genimg.training.trainer import StopRequestedError, Trainer, TrainingState
from genimg.training.update import NonFiniteError

log = logging.getLogger(__name__)

Config = dict[str, Any]


class DivergedError(Exception):
    """Training produced infinite or undefined numbers."""

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
        _require_all_values(composed)
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
        log.warning("to continue: genimg-train %s", _argument("resume", _relative(run_dir)))
        sys.exit(128 + (signal.SIGTERM if trainer.stop_signal == signal.SIGTERM else signal.SIGINT))
    except KeyboardInterrupt:
        summary["status"] = "interrupted"
        log.warning("interrupted at %d images; what was saved last is in %s", trainer.state.images, trainer.folder.path)
        raise
    except NonFiniteError as error:
        state = trainer.state
        summary["status"] = "diverged"
        last = trainer.folder.path / "last.pt"
        good = f"the last good checkpoint is {_relative(last)}" if last.is_file() else "there is no earlier checkpoint"
        raise DivergedError(
            f"training diverged: the loss or gradient of {error.group} was not finite at step {error.step}; {good}. Try a "
            "lower optimizer.lr, trainer.max_grad_norm=1, precision=fp32, or another loss"
        ) from error
    finally:
        provenance = evaluator.provenance(trainer.method, trainer.data) if evaluator and trainer.state.last else {}
        summary |= {
            "images": trainer.state.images,
            "steps": trainer.progress.step,
            "last": trainer.state.last,
            "best": trainer.state.best,
            "best_images": trainer.state.best_images,
            "provenance": provenance,
            "wall_seconds": round(time.monotonic() - start, 1),
            "training_images_per_second": round(trainer.state.images / trainer.state.seconds, 1)
            if trainer.state.seconds
            else None,
            "seed": config["seed"],
            "hardware": describe_hardware(trainer.device),
            **environment(),
        }
        _write_summary(run_dir, summary)
    log.info(
        "finished %d images; %d of them now, in %.0f s", state.images, state.images - images_before, summary["wall_seconds"]
    )
    _report(state, summary, evaluator, run_dir)
    return state.best[evaluator.primary] if evaluator and state.best else None


def _write_summary(run_dir: Path, summary: Config) -> None:
    try:
        _write_json(run_dir / "summary.json", summary)
    except OSError as error:  # often the disk is full, and the error under way says more
        log.warning("summary.json cannot be written (%s)", error.strerror)


def _report(state: TrainingState, summary: Config, evaluator: Evaluator | None, run_dir: Path) -> None:
    shown = _relative(run_dir)
    rate = summary["training_images_per_second"]
    log.info("%s images/s while training", rate)
    if evaluator and state.best:
        log.info("%s", _table({"last": state.last, f"best, at {state.best_images} images": state.best}))
        log.info("measured with %s", _sentence(summary["provenance"]))
    pictures = sorted((run_dir / "samples").glob(f"*-{state.images:09d}.png"))
    log.info("pictures:    %s", "  ".join(str(_relative(path)) for path in pictures))
    log.info("curves:      tensorboard --logdir %s   (or %s)", shlex.quote(str(shown)), shown / "metrics.jsonl")
    log.info("checkpoint:  %s", shown / "checkpoints" / ("best.pt" if evaluator else "last.pt"))


def evaluate(composed: DictConfig) -> dict[str, float]:
    """Print the metrics of a checkpoint, as its own run would measure them."""
    _require_all_values(composed)
    options: Config = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    path, state = _open(options)
    config = state["config"]
    if not config["evaluation"]:
        raise ValueError(f"{path} was trained with evaluation=none, so that there is nothing to evaluate it with")
    for key, value in (
        ("num_images", options["num_images"]), ("batch_size", options["batch_size"]), ("seed", options["seed"]),
    ):  # fmt: skip
        if value is not None:
            config["evaluation"][key] = value
    splits = config["evaluation"]["splits"]
    if isinstance(options["num_images"], int) and options["num_images"] < splits:
        raise ValueError(f"num_images={options['num_images']} is too few: the Inception Score has {splits} splits")
    if options["inception_weights"] is not None:
        if "weights" not in config["evaluation"]["extractor"]:
            raise ValueError("inception_weights has no effect: this checkpoint's evaluation does not use Inception")
        config["evaluation"]["extractor"]["weights"] = options["inception_weights"]
    if options["data_root"] is not None:
        if "root" not in config["data"]:
            raise ValueError("data_root has no effect: this checkpoint's data is not read from a directory")
        config["data"]["root"] = options["data_root"]
    device = choose_device(options["device"])
    builder = build.Builder(allowed=(*build.ALLOWED, *options["allow"]))
    source = build.build_source(config, builder)
    builder = build.Builder(builder.allowed, epoch_size=len(source), batch_size=config["trainer"]["batch_size"])
    evaluator = build.build_evaluator(config, builder)
    assert evaluator is not None
    method = _load_method(config, builder, state, device)
    data = build.build_data(config, source, device)
    result = evaluator.evaluate(method, data, device)
    _print_evaluation(path, state, result, options["output"])
    return result.values


def _print_evaluation(path: Path, state: Config, result: Evaluation, output: str | None) -> None:
    images = state["training"]["images"]
    log.info("%s, trained on %d images", path, images)
    log.info("%s", _table({"value": result.values}))
    log.info("measured with %s", _sentence(result.provenance))
    if output is not None:
        record = {"checkpoint": str(path), "images": images, "metrics": result.values, "provenance": result.provenance}
        _write_json(Path(output), {**record, **environment()})
        log.info("written to %s", output)


def sample(composed: DictConfig) -> None:
    """Write generated images as PNG files and one grid."""
    _require_all_values(composed)
    options: Config = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    num_images, batch_size = options["num_images"], options["batch_size"]
    for key in ("num_images", "batch_size"):
        if not isinstance(options[key], int) or options[key] < 1:
            raise ValueError(f"{key}={options[key]} must be 1 or more")
    path, state = _open(options)
    config = state["config"]
    device = choose_device(options["device"])
    allowed = (*build.ALLOWED, *options["allow"])
    builder = build.Builder(allowed, epoch_size=state["num_images"], batch_size=config["trainer"]["batch_size"])
    method = _load_method(config, builder, state, device)
    for key in ("label", "text"):
        if options[key] is not None and key not in method.batch_keys:
            raise ValueError(f"{key}={options[key]}: this model was trained without {key}s and cannot be asked for one")
    default = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    folder = Path(options["output"]) if options["output"] else default / f"samples-seed{options['seed']}"
    folder.mkdir(parents=True, exist_ok=True)
    shown: list[torch.Tensor] = []
    for start in tqdm(range(0, num_images, batch_size), desc="sampling", unit="batch", disable=None):
        indices = range(start, min(start + batch_size, num_images))
        drawn = {key: value.to(device) for key, value in method.draw(indices, options["seed"]).items()}
        images = method.sample(drawn).float().cpu()
        for index, image in zip(indices, to_uint8(images), strict=True):
            write_png(image, folder / f"{index:06d}.png")
        if start < 256:
            shown.append(images)
    picture = folder.with_name(folder.name + ".png")
    write_png(grid(torch.cat(shown)[:256]), picture)
    log.info("from %s, trained on %d images", path, state["training"]["images"])
    log.info("%d images: %s", num_images, folder)
    log.info("grid: %s", picture)


def _require_all_values(composed: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ValueError(f"{missing[0]} is required: set {missing[0]}=VALUE")


def _open(options: Config) -> tuple[Path, Config]:
    path = checkpoint.find(Path(str(options["ckpt"])).expanduser())
    state = checkpoint.load(path)
    checkpoint.require_whole(state, path)
    return path, state


def _load_method(config: Config, builder: build.Builder, state: Config, device: torch.device) -> Method:
    method: Method = builder.build(config["model"], "model")
    method.load_state_dict(state["method"])
    return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def _table(columns: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(columns.values())))
    width = max(map(len, names)) + 2
    header = " " * width + "".join(f"{title:>28}" for title in columns)
    rows = [name.ljust(width) + "".join(f"{values[name]:>28.6g}" for values in columns.values()) for name in names]
    return "\n".join([header, *rows])


def _sentence(provenance: Config) -> str:
    short = provenance["weights_sha256"][:8]
    return (
        f"{provenance['extractor']} ({short}), {provenance['num_generated']} generated against {provenance['num_real']} real "
        f"images of {provenance['real']}, {provenance['weights']} weights, seed {provenance['seed']}"
    )


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _argument(key: str, path: Path) -> str:
    """``key=path`` as it can be pasted, with the quotes that Hydra and then the shell need."""
    text = str(path)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return f"{key}={text}"
    return shlex.quote(f"{key}={quoted(text)}")


def _write_json(path: Path, value: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _remove_if_nothing_began(run_dir: Path) -> None:
    """A directory of a run that was refused at its start holds nothing but Hydra's notes."""
    if {path.name for path in run_dir.iterdir()} <= {".hydra", "train.log"}:
        shutil.rmtree(run_dir, ignore_errors=True)


def _write_to_log_file(text: str) -> None:
    """Tracebacks go to the run's log, not to the terminal."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("genimg", logging.ERROR, "", 0, text, None, None))
