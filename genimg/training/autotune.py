"""Resolve ``auto`` settings by trials: how many microbatches fit into memory, and whether CUDA graphs and compiling pay.

Trials train for a few steps and leave no trace: afterwards, weights, optimizers and random numbers are as they would be without
trials.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from genimg.errors import ConfigError, first_line, is_memory_full
from genimg.training.components import TrainingComponents
from genimg.training.logger import SilentLogger
from genimg.training.performance import Performance
from genimg.training.trainer import Trainer
from genimg.training.update import NonFiniteError
from genimg.utils.distributed import alone, broadcast_object, on_every_rank, world_size

log = logging.getLogger(__name__)

_GAIN = 1.05  # minimum speedup over plain steps
_TOLERANCE = 0.05  # maximum difference of the trial steps' losses, relative to them or to 1
_COMPARED, _UNTIMED, _TIMED = 6, 20, 20  # steps of a trial, in this order; graphs are captured before the timed ones


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
    return choose_execution(parts, Limits(), may_compile=may_compile)


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
        with without_trace(parts) as tried, alone():
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


@dataclass(frozen=True)
class Limits:
    """Durations of a training without CUDA graphs and compilation, in seconds, from which a trial of them pays.

    Attributes:
        graph: Limit for capturing steps as CUDA graphs, which takes seconds.
        compile: Limit for compiling, which takes minutes.
    """

    graph: float = 60.0
    compile: float = 15 * 60.0


def choose_execution(parts: TrainingComponents, limits: Limits, *, may_compile: bool) -> TrainingComponents:
    """Return the components with ``performance.graph`` and ``performance.compile`` resolved by short trials.

    The fastest combination is chosen whose losses agree with those of plain steps, if it is at least 5 % faster than these.

    Args:
        parts: Components, not yet trained.
        limits: Durations of training from which a trial pays.
        may_compile: Whether to try compiling.
    """
    given = parts.performance
    plain = replace(given, graph=given.graph is True, compile=False if given.compile == "auto" else given.compile)
    if plain == given or parts.sharding is not None:  # processes with parts of the weights cannot try anything alone
        return replace(parts, performance=plain)
    may_compile = may_compile and not (given.activation_checkpointing or parts.settings.sync_batch_norm)
    tries_graph = given.graph == "auto" and plain.may_choose_graphs(parts.device)
    candidates = []
    if parts.device.type == "cuda":
        candidates = _candidates(given, plain, tries_graph=tries_graph, may_compile=may_compile)
    chosen = fastest(parts, plain, candidates, limits) if candidates else plain
    if chosen.compile != plain.compile:
        chosen.compile_networks(parts.method)
    return replace(parts, performance=chosen)


def _candidates(given: Performance, plain: Performance, *, tries_graph: bool, may_compile: bool) -> list[Performance]:
    """Return the combinations to try besides the plain one."""
    found = []
    if tries_graph:
        found.append(replace(plain, graph=True))
    if given.compile == "auto" and may_compile:
        # Without graphs of whole steps, small networks need those of torch.compile.
        has_graphs = tries_graph or plain.graph is True
        found.append(replace(plain, graph=has_graphs, compile="default" if has_graphs else "reduce-overhead"))
    return found


@dataclass(frozen=True)
class _Trial:
    """Seconds per step and mean losses of a trial, or the reason why there are none."""

    seconds: float = math.inf
    losses: Sequence[float] = ()
    reason: str = ""


def fastest(parts: TrainingComponents, plain: Performance, candidates: Sequence[Performance], limits: Limits) -> Performance:
    """Return the fastest of some settings by trials that leave no trace.

    Args:
        parts: Components, not yet trained.
        plain: Settings to which the candidates are compared.
        candidates: Settings with other values of ``graph`` and ``compile``.
        limits: Durations of training from which a trial pays.
    """
    parts.data.load()
    own = replace(parts, settings=replace(parts.settings, batch_size=parts.settings.batch_size // world_size()))
    with alone():  # a failing rank must not block the others
        usual = _try(own, plain, plain)
        total = usual.seconds * parts.settings.duration / parts.settings.batch_size
        trials = []
        for each in candidates:
            limit = limits.graph if each.compile == plain.compile else limits.compile
            is_short = total < limit or usual.reason
            trials.append(_Trial(reason=usual.reason or f"training takes {total:.0f} s without it") if is_short
                          else _compared(_try(own, each, plain), usual))  # fmt: skip
    chosen, best = plain, broadcast_object(usual.seconds)
    for each, trial in zip(candidates, trials, strict=True):
        works, seconds = on_every_rank(not trial.reason), broadcast_object(trial.seconds)
        log.info("%s: %s", _named(each, plain), f"{1e3 * seconds:.2f} ms a step instead of {1e3 * usual.seconds:.2f}"
                 if works else f"not used ({trial.reason or 'another process cannot use it'})")  # fmt: skip
        if works and seconds < best:
            chosen, best = each, seconds
    return chosen


def _try(parts: TrainingComponents, performance: Performance, plain: Performance) -> _Trial:
    compiles = performance.compile != plain.compile
    try:
        with without_trace(replace(parts, performance=performance)) as tried:
            if compiles:
                performance.compile_networks(tried.method)
            try:
                return _Trial(*_time(tried))
            finally:
                if compiles:
                    performance.forget_compiled(tried.method)
    except Exception as error:  # what does not work must not end a run that works without it
        return _Trial(reason=first_line(error)[:200])


def _compared(trial: _Trial, usual: _Trial) -> _Trial:
    """Return the trial, with a reason if its losses differ from those of plain steps or it is not faster."""
    if trial.reason:
        return trial
    pairs = zip(trial.losses, usual.losses, strict=True)
    off = max((abs(new - old) / max(1.0, abs(old)) for new, old in pairs), default=0.0)
    if not off <= _TOLERANCE:
        return replace(trial, reason=f"losses differ by {off:.2g}")
    if usual.seconds / trial.seconds <= _GAIN:
        return replace(trial, reason=f"{1e3 * trial.seconds:.2f} ms a step instead of {1e3 * usual.seconds:.2f}")
    return trial


def _named(performance: Performance, plain: Performance) -> str:
    names = (["CUDA graphs"] if performance.graph != plain.graph else []) + (
        [f"torch.compile ({performance.compile})"] if performance.compile != plain.compile else []
    )
    return " with ".join(names)


def _time(parts: TrainingComponents) -> tuple[float, list[float]]:
    """Return the seconds per step, and the mean losses of the first steps."""
    trainer = _trainer(parts)
    steps = trainer.steps()
    for _ in range(_COMPARED):
        next(steps)
    losses = [value for name, value in sorted(trainer.means.pop().items()) if name.startswith("loss/")]
    for _ in range(_UNTIMED):
        next(steps)
    trainer.updater.raise_if_not_finite()  # waits for the device
    start = time.perf_counter()
    for _ in range(_TIMED):
        next(steps)
    trainer.updater.raise_if_not_finite()  # waits for the device
    return (time.perf_counter() - start) / _TIMED, losses


def _trainer(parts: TrainingComponents) -> Trainer:
    return parts.trainer(folder=Path(), make_logger=lambda *_: SilentLogger(), describe={})


@contextlib.contextmanager
def without_trace(parts: TrainingComponents) -> Iterator[TrainingComponents]:
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
