"""Repeat a part of an earlier training, from a checkpoint or from the start, without writing any file."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genimg
from genimg.api.assemble import assemble
from genimg.api.data import own_dataset
from genimg.api.method import Initialise
from genimg.api.trained_networks import frozen_weights
from genimg.config import resume, untrusted
from genimg.config.compose import Composition
from genimg.config.instantiate import ALLOWED, Builder
from genimg.data.identity import had_labels
from genimg.errors import CheckpointError
from genimg.methods.capabilities import PreparesSaving
from genimg.training.autotune import resolve_auto
from genimg.training.decisions import Decisions
from genimg.training.device import describe_hardware
from genimg.training.host_copies import snapshot
from genimg.training.logger import SilentLogger
from genimg.training.recorded_threads import RecordedThreads
from genimg.training.thread_choice import same_threads_afterwards, set_threads
from genimg.training.trainer import Trainer
from genimg.utils.distributed import world_size
from genimg.utils.progress import Progress
from genimg.utils.silence import silent

_MOST_THREADS = 1024


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay.

    Attributes:
        state: State at its end, in the format of a checkpoint.
        parameters: Names of the parameters that each optimizer trains, in the order that numbers them in its state.
        facts: Versions, hardware, performance settings and data of the replay, in the format of a checkpoint.
        numbers: Numbers of threads with which its steps ran, in order of their first use; empty where genimg does not set them.
        seconds: Seconds that the steps took.
    """

    state: Mapping[str, Any]
    parameters: Mapping[str, Sequence[str]]
    facts: Mapping[str, Any]
    numbers: tuple[int, ...]
    seconds: float


def replay(
    saved: resume.Saved,
    composition: Composition,
    images: int,
    *,
    threads: RecordedThreads,
    ends: Sequence[int] = (),
    from_the_start: bool = False,
    initialise: Initialise | None = None,
    dataset: object = None,
) -> ReplayResult:
    """Repeat the steps of a training after a checkpoint.

    Nothing is evaluated, drawn or logged, and no file is written. All ranks must call it.

    Args:
        saved: Complete checkpoint.
        composition: Composition with the settings that belong to this machine, on top of the checkpoint's config.
        images: Number of images seen at the end of the replay.
        threads: Number of CPU threads of every step.
        ends: Numbers of images at which the training has ended and was continued later, and therefore logged.
        from_the_start: Whether to begin with the initial weights instead of the checkpoint.
        initialise: See ``build_method``; only with ``from_the_start``, and only the first rank needs it.
        dataset: Images of a training with ``data=given``.

    Raises:
        UserError: If the data is not available, or the checkpoint does not fit.
        NonFiniteError: If the replay diverges.
    """
    saved = _without_records(saved)
    start, state = resume.start_from(saved, composition, saved.path.parent), saved.state
    config, decided = start.config, Decisions.restored(state["decisions"])
    trained = frozen_weights(config, state["method"], tuple(config["allow"])) if from_the_start else {}
    with same_threads_afterwards():
        with silent():  # the training said everything
            parts = assemble(
                config,
                config["device"],
                named=start.named,
                decided=decided,
                images_per_second=decided.images_per_second,
                dataset=None if dataset is None else own_dataset(dataset, config),
                weights=state["method"],
                trained=trained,
                labelled=had_labels(state),
                check_classes=partial(resume.check_classes, state, force=False),
                initialise=initialise,
                from_the_start=from_the_start,
                evaluates=False,
            ).components
            parts = resolve_auto(parts, accumulation=False, may_compile=False)
        trainer = parts.trainer(folder=Path(), make_logger=lambda *_: SilentLogger(), describe={})
        if not from_the_start:
            # PyTorch's optimizers would train the checkpoint's own tensors.
            trainer.load_state_dict({**state, "optimizers": snapshot(state["optimizers"])})
        hardware, begin = describe_hardware(parts.device), time.monotonic()
        numbers = _train(trainer, images, threads if parts.device.type == "cpu" else None, ends)
        seconds = time.monotonic() - begin
        if isinstance(trainer.method, PreparesSaving):
            trainer.method.before_saving()
        names = {id(parameter): name for name, parameter in trainer.method.named_parameters()}
        return ReplayResult(
            state=trainer.state_dict(),
            parameters={
                group: [names[id(each)] for each in parameters] for group, parameters in trainer.updater.parameters.items()
            },
            facts={
                "genimg_version": genimg.__version__,
                "torch_version": str(torch.__version__),
                "numpy_version": np.__version__,
                "hardware": hardware,
                "processes": world_size(),
                "performance": parts.performance.describe(parts.optimizers.values()),
                "precision": parts.precision.name,
                "data": parts.identity(),
            },
            numbers=numbers,
            seconds=seconds,
        )


def _without_records(saved: resume.Saved) -> resume.Saved:
    """Return a checkpoint whose config names no logger and no files of the evaluation, because neither is built."""
    raw = copy.deepcopy(saved.state["raw_config"])
    raw["logger"] = None
    builder = Builder((*ALLOWED, *map(str, raw.get("allow") or ())))
    for place in list(untrusted.places(raw.get("evaluation"), builder)):
        del place.node[place.name]
    return replace(saved, state={**saved.state, "raw_config": raw})


def _train(trainer: Trainer, images: int, threads: RecordedThreads | None, ends: Sequence[int]) -> tuple[int, ...]:
    """Train until ``images`` have been seen, and return the numbers of threads that were used."""
    state, batch_size, interval = trainer.state, trainer.settings.batch_size, trainer.settings.log_interval
    numbers: dict[int, None] = {}
    trainer.data.load()
    with _progress(trainer, images) as progress, contextlib.closing(trainer.steps()) as steps:  # type: ignore[type-var]
        while state.images < images:
            if threads is not None and (number := _checked(threads.at(state.images // batch_size))) is not None:
                set_threads(number)
                numbers[number] = None
            next(steps)
            if trainer.due(interval) or state.images in ends:
                trainer.means.pop()
            progress.update()
    trainer.updater.raise_if_not_finite()
    return tuple(numbers)


@contextlib.contextmanager
def _progress(trainer: Trainer, images: int) -> Iterator[Progress]:
    batch_size = trainer.settings.batch_size
    first, last = trainer.state.images // batch_size, images // batch_size
    progress = Progress(total=last - first, desc=f"replaying steps {first:,} to {last:,}", unit="step", leave=False)
    with contextlib.closing(progress):
        yield progress


def _checked(number: int | None) -> int | None:
    """Return a recorded number of threads.

    Raises:
        CheckpointError: If it is impossible.
    """
    if number is not None and not 1 <= number <= _MOST_THREADS:
        raise CheckpointError(f"the checkpoint's training.threads={number} must be 1 to {_MOST_THREADS}", key="")
    return number
