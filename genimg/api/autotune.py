"""What ``auto`` means where only trying tells: microbatches that fit into memory, and whether compiling pays.

Trials train a few steps and leave no trace: weights, optimizers and random numbers start as if there had been none.
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

from genimg.api.assemble import Parts
from genimg.config.instantiate import Config
from genimg.data.loader import Data
from genimg.training.logger import SilentLogger
from genimg.training.trainer import Trainer
from genimg.training.update import NonFiniteError
from genimg.utils.distributed import alone, on_every_rank, world_size

log = logging.getLogger(__name__)

_MODE = "reduce-overhead"  # CUDA graphs: what a small network is short of is time between kernels
_WORTH_COMPILING = 15 * 60.0  # seconds of training below which the minutes that compiling takes do not come back
_GAIN = 1.05  # how much faster compiled steps must be
_TOLERANCE = 0.05  # by which losses of the trial steps may differ, relative to them or to 1
_WARM_UP, _TIMED = 6, 20  # steps of a trial


def settle(parts: Parts, data: Data, config: Config, source_config: Config) -> Parts:
    """The parts with everything decided, and the decisions in both configs, so that a resumed run keeps them.

    Args:
        parts: not yet trained.
        data: what they will be trained on.
        config, source_config: resolved and not; ``trainer.accumulation`` and ``performance.compile`` are written.

    Raises:
        ValueError: if not even single images fit into the memory.
    """
    if config["trainer"]["accumulation"] == "auto":
        if parts.device.type == "cuda":
            parts = search_accumulation(parts, data, fits)
        count = parts.settings.accumulation
        config["trainer"]["accumulation"] = source_config["trainer"]["accumulation"] = count
        log.info("trainer.accumulation=auto: %d", count)
    if parts.performance.compile == "auto":
        mode: str | bool = False
        tried = not (config["dry_run"] or parts.performance.activation_checkpointing or parts.settings.sync_batch_norm)
        if parts.device.type == "cuda" and tried:
            mode = choose_compilation(parts, data, _WORTH_COMPILING)
        config["performance"]["compile"] = source_config["performance"]["compile"] = mode
        parts = replace(parts, performance=replace(parts.performance, compile=mode))
        if mode:
            parts.performance.compile_networks(parts.method)
    return parts


def search_accumulation(parts: Parts, data: Data, fits: Callable[[Parts, Data], bool]) -> Parts:
    """The parts with the fewest microbatches with which a step fits into the memory of every process.

    Args:
        parts: not yet trained.
        data: what they will be trained on; it is loaded, and so takes its place in the memory.
        fits: whether parts can take a step.

    Raises:
        ValueError: if not even single images fit.
    """
    data.load()
    share = parts.settings.batch_size // world_size()
    for count in (n for n in range(1, share + 1) if share % n == 0):
        with _without_trace(parts) as tried, alone():
            settings = replace(parts.settings, batch_size=share, accumulation=count)
            found = fits(replace(tried, settings=settings), data)
        if on_every_rank(found):
            settings = replace(parts.settings, accumulation=count)
            return replace(parts, settings=settings, optimizers=parts.make_optimizers())
    raise ValueError("not even single images fit into the GPU's memory: choose a smaller data.image_size or model")


def fits(parts: Parts, data: Data) -> bool:
    """Whether a step does not run out of memory, once optimizers have their state."""
    trainer = _trainer(parts, data)
    steps = trainer.steps()
    try:
        for _ in range(2):
            trainer.state.images = 0  # where all that is done at intervals is done
            next(steps)
        trainer.updater.raise_if_not_finite()  # waits for the device
    except RuntimeError as error:  # torch.OutOfMemoryError among them; cuBLAS has no type of its own
        if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
            return False
        raise
    except NonFiniteError:
        pass  # not a matter of memory; the training will say so
    return True


def choose_compilation(parts: Parts, data: Data, worth: float, mode: str = _MODE) -> str | bool:
    """``mode`` if the training is long, compiling works, losses stay the same and steps become faster; else False.

    Args:
        parts: not compiled and not yet trained.
        data: what they will be trained on.
        worth: seconds that the training must take without it.
        mode: of torch.compile.
    """
    data.load()
    share = parts.settings.batch_size // world_size()
    plain = fast = off = math.inf
    reason = ""
    with alone():  # so that a rank which fails keeps no other waiting
        own = replace(parts, settings=replace(parts.settings, batch_size=share))
        try:
            with _without_trace(own) as tried:
                plain, losses = _time(tried, data)
            if (seconds := plain * parts.settings.duration / parts.settings.batch_size) < worth:
                reason = f"the training takes {seconds:.0f} s without"
            else:
                compiled = replace(own, performance=replace(own.performance, compile=mode))
                fast, compiled_losses = _time_compiled(compiled, data)
                differences = zip(compiled_losses, losses, strict=True)
                off = max((abs(new - old) / max(1.0, abs(old)) for new, old in differences), default=0.0)
        except Exception as error:  # a compiler has many ways to fail, and none of them shall end a training that runs without
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if not reason and off > _TOLERANCE:
        reason = f"losses differ by {off:.2g}"
    if not reason and plain / fast <= _GAIN:
        reason = f"{1e3 * fast:.2f} ms a step instead of {1e3 * plain:.2f}"
    if not on_every_rank(not reason):
        log.info("performance.compile=auto: not compiled (%s)", reason or "another process cannot")
        return False
    log.info("performance.compile=auto: %s, %.2f ms a step instead of %.2f", mode, 1e3 * fast, 1e3 * plain)
    return mode


def _time_compiled(parts: Parts, data: Data) -> tuple[float, list[float]]:
    with _without_trace(parts) as tried:
        tried.performance.compile_networks(tried.method)
        try:
            return _time(tried, data)
        finally:
            tried.performance.forget_compiled(tried.method)


def _time(parts: Parts, data: Data) -> tuple[float, list[float]]:
    """Seconds a step, and the losses' means over the steps that warm up."""
    trainer = _trainer(parts, data)
    steps = trainer.steps()
    for _ in range(_WARM_UP):
        next(steps)
    losses = [value for name, value in sorted(trainer.means.pop().items()) if name.startswith("loss/")]
    start = time.perf_counter()
    for _ in range(_TIMED):
        next(steps)
    trainer.updater.raise_if_not_finite()  # waits for the device
    return (time.perf_counter() - start) / _TIMED, losses


def _trainer(parts: Parts, data: Data) -> Trainer:
    return parts.trainer(data, folder=Path(), make_logger=lambda *_: SilentLogger(), describe={})


@contextlib.contextmanager
def _without_trace(parts: Parts) -> Iterator[Parts]:
    """The parts with optimizers of their own; at the end the weights are what they were, and the memory is free."""
    initial = {name: tensor.to("cpu", copy=True) for name, tensor in parts.method.state_dict().items()}
    wanted = [(parameter, parameter.requires_grad) for parameter in parts.method.parameters()]
    trial = replace(parts, optimizers=parts.make_optimizers())
    try:
        yield trial
    finally:
        for optimizer in trial.optimizers.values():
            optimizer.state.clear()
        for parameter, requires_grad in wanted:
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
        parts.method.load_state_dict(initial)
        gc.collect()
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(parts.device)
