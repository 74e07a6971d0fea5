"""Resolve ``auto`` settings by benchmarking: how many microbatches fit into memory, and whether compiling pays.

Trials train for a few steps and leave no trace: afterwards, weights, optimizers and random numbers are as they would be without
trials.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from genimg.errors import ConfigError, first_line, is_memory_full
from genimg.training.components import TrainingComponents
from genimg.training.logger import SilentLogger
from genimg.training.trainer import Trainer
from genimg.training.update import NonFiniteError
from genimg.utils.distributed import alone, on_every_rank, world_size

log = logging.getLogger(__name__)

_MODE = "reduce-overhead"  # CUDA graphs: small networks are limited by launch overhead between kernels
_WORTH_COMPILING = 15 * 60.0  # seconds of training below which compiling does not pay
_GAIN = 1.05  # minimum speedup of compiled steps
_TOLERANCE = 0.05  # maximum difference of the trial steps' losses, relative to them or to 1
_WARM_UP, _TIMED = 6, 20  # steps of a trial


def resolve_auto(parts: TrainingComponents, *, accumulation: bool, may_compile: bool) -> TrainingComponents:
    """Resolve ``auto`` settings by benchmarking.

    Args:
        parts: Components, not yet trained.
        accumulation: Whether to find the number of microbatches.
        may_compile: Whether to try compiling, which takes minutes.

    Returns:
        The components with all settings resolved.

    Raises:
        ConfigError: If even a single image does not fit into memory.
    """
    if accumulation:
        if parts.device.type == "cuda":
            parts = search_accumulation(parts, fits)
        log.info("accumulation: %d microbatches, the fewest that fit into memory", parts.settings.accumulation)
    if parts.performance.compile == "auto":
        mode: str | bool = False
        tried = may_compile and not (parts.performance.activation_checkpointing or parts.settings.sync_batch_norm)
        if parts.device.type == "cuda" and tried:
            mode = choose_compilation(parts, _WORTH_COMPILING)
        parts = replace(parts, performance=replace(parts.performance, compile=mode))
        if mode:
            parts.performance.compile_networks(parts.method)
    return parts


def search_accumulation(parts: TrainingComponents, fits: Callable[[TrainingComponents], bool]) -> TrainingComponents:
    """Return the components with the fewest microbatches for which a step fits into the memory of every process.

    Args:
        parts: Components, not yet trained.
        fits: Function that returns whether a step of the components fits into memory.

    Raises:
        ConfigError: If even a single image does not fit.
    """
    parts.data.load()
    share = parts.settings.batch_size // world_size()
    for count in (n for n in range(1, share + 1) if share % n == 0):
        with _without_trace(parts) as tried, alone():
            settings = replace(parts.settings, batch_size=share, accumulation=count)
            found = fits(replace(tried, settings=settings))
        if on_every_rank(found):
            settings = replace(parts.settings, accumulation=count)
            return replace(parts, settings=settings, optimizers=parts.make_optimizers())
    raise ConfigError("a single image does not fit into the GPU's memory: choose a smaller data.image_size or model")


def fits(parts: TrainingComponents) -> bool:
    """Return whether a step fits into memory, including the state of the optimizers."""
    trainer = _trainer(parts)
    steps = trainer.steps()
    try:
        for _ in range(2):
            trainer.state.images = 0  # a step at which all interval-based work is done
            next(steps)
        trainer.updater.raise_if_not_finite()  # waits for the device
    except (RuntimeError, MemoryError) as error:
        if is_memory_full(error):
            return False
        raise
    except NonFiniteError:
        pass  # not a memory problem; training will report it
    return True


def choose_compilation(parts: TrainingComponents, worth: float, mode: str = _MODE) -> str | bool:
    """Return ``mode`` if training takes long, compiling works, losses stay the same and steps become faster; else False.

    Args:
        parts: Components, neither compiled nor trained.
        worth: Duration of training without compiling, in seconds, from which compiling pays.
        mode: Mode of torch.compile.
    """
    parts.data.load()
    share = parts.settings.batch_size // world_size()
    plain = fast = off = math.inf
    reason = ""
    with alone():  # a failing rank must not block the others
        own = replace(parts, settings=replace(parts.settings, batch_size=share))
        try:
            with _without_trace(own) as tried:
                plain, losses = _time(tried)
            if (seconds := plain * parts.settings.duration / parts.settings.batch_size) < worth:
                reason = f"training takes only {seconds:.0f} s without it"
            else:
                compiled = replace(own, performance=replace(own.performance, compile=mode))
                fast, compiled_losses = _time_compiled(compiled)
                differences = zip(compiled_losses, losses, strict=True)
                off = max((abs(new - old) / max(1.0, abs(old)) for new, old in differences), default=0.0)
        except Exception as error:  # a failure of the compiler must not end a run that works without it
            reason = first_line(error)[:200]
    if not reason and off > _TOLERANCE:
        reason = f"losses differ by {off:.2g}"
    if not reason and plain / fast <= _GAIN:
        reason = f"{1e3 * fast:.2f} ms a step instead of {1e3 * plain:.2f}"
    if not on_every_rank(not reason):
        log.info("compilation: none (%s)", reason or "another process cannot compile")
        return False
    log.info("compilation: %s, %.2f ms a step instead of %.2f", mode, 1e3 * fast, 1e3 * plain)
    return mode


def _time_compiled(parts: TrainingComponents) -> tuple[float, list[float]]:
    with _without_trace(parts) as tried:
        tried.performance.compile_networks(tried.method)
        try:
            return _time(tried)
        finally:
            tried.performance.forget_compiled(tried.method)


def _time(parts: TrainingComponents) -> tuple[float, list[float]]:
    """Return the seconds per step, and the mean losses over the warm-up steps."""
    trainer = _trainer(parts)
    steps = trainer.steps()
    for _ in range(_WARM_UP):
        next(steps)
    losses = [value for name, value in sorted(trainer.means.pop().items()) if name.startswith("loss/")]
    start = time.perf_counter()
    for _ in range(_TIMED):
        next(steps)
    trainer.updater.raise_if_not_finite()  # waits for the device
    return (time.perf_counter() - start) / _TIMED, losses


def _trainer(parts: TrainingComponents) -> Trainer:
    return parts.trainer(folder=Path(), make_logger=lambda *_: SilentLogger(), describe={})


@contextlib.contextmanager
def _without_trace(parts: TrainingComponents) -> Iterator[TrainingComponents]:
    """Yield the components with their own optimizers; restore the weights and free the memory afterwards."""
    initial = {name: tensor.to("cpu", copy=True) for name, tensor in parts.method.state_dict().items()}
    requires_grad_before = [(parameter, parameter.requires_grad) for parameter in parts.method.parameters()]
    trial = replace(parts, optimizers=parts.make_optimizers())
    try:
        yield trial
    finally:
        for optimizer in trial.optimizers.values():
            optimizer.state.clear()
        for parameter, requires_grad in requires_grad_before:
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
        parts.method.load_state_dict(initial)
        gc.collect()
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(parts.device)
