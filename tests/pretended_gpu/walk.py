"""Run commands of genimg on the pretended GPU and print a JSON record of each.

The process needs the preloaded library of ``build.py``; ``build.run`` starts it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
import torch.distributed as dist
from fork_server import mode_of
from hydra._internal.hydra import Hydra
from torch.optim import Optimizer

import genimg
from genimg import cli
from genimg.commands.failures import Failure
from genimg.training import trainer as trainer_module
from genimg.training.host_copies import snapshot
from genimg.training.step_graphs import StepGraphs
from genimg.training.trainer import Trainer
from genimg.types import Progress
from genimg.utils import distributed
from pretended_gpu.device import PretendedGPU
from pretended_gpu.graphs import computing_graphs

_PACKAGE = Path(str(genimg.__file__)).parent
_PHASES = {
    "_log": "log", "_show": "preview", "_save": "save", "_save_snapshots": "save", "_measure": "evaluation",
    "load_state_dict": "resume",
}  # fmt: skip
LATER_STEPS, BETWEEN_STEPS = "later steps", "between steps"
"""Phases of the steps after a trainer's first one, and of what else the training loop does around them."""


@dataclass
class Record:
    """What happened during a command.

    Attributes:
        command: Words of the command line, without ``genimg-``.
        seconds: Duration.
        failure: Error that ended it; empty if there was none.
        launches: CUDA kernels that ran outside of the dispatch mode, and so computed nothing.
        on_cpu: Tensors of the method, its averages and its optimizers that are on the CPU.
        waits: Number of waits for the device by phase, and by reason and line.
        operations: Number of operations by step; the replay of a graph counts as one.
        graphs: Number of steps captured as CUDA graphs.
        not_captured: Why other steps were not.
        doubles: Number of results in float64 by phase, and by operation and line.
    """

    command: list[str]
    seconds: float = 0.0
    failure: str = ""
    launches: int = 0
    on_cpu: list[str] = field(default_factory=list)
    waits: dict[str, Counter[str]] = field(default_factory=dict)
    operations: list[int] = field(default_factory=list)
    graphs: int = 0
    not_captured: list[str] = field(default_factory=list)
    doubles: dict[str, Counter[str]] = field(default_factory=dict)


def walk(command: list[str]) -> Record:
    """Run a command on the pretended GPU. ``train-eagerly`` is ``train`` without captures of CUDA graphs."""
    record = Record(command)
    trainers: list[Trainer] = []
    gpu = PretendedGPU(_PACKAGE)
    start = time.monotonic()
    entry_point = {"eval": "evaluate", "train-eagerly": "train"}.get(command[0], command[0])
    with (
        mock.patch.object(sys, "argv", [f"genimg-{entry_point}", *command[1:]]),
        mock.patch.object(cli, "end", _raise),
        mock.patch.object(distributed, "_join", _join),
        mock.patch.object(Hydra, "get_mode", mode_of(Hydra.get_mode)),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        gpu,
        computing_graphs(gpu),
        _named_phases(gpu, record, trainers),
        _noted_captures(gpu, record, allowed=command[0] != "train-eagerly"),
    ):
        try:
            getattr(cli, entry_point)()
        except BaseException as error:
            record.failure = "".join(traceback.format_exception(error))
        finally:
            _close_logs()
        record.on_cpu = [name for trainer in trainers for name in _on_cpu(trainer)]
    record.seconds = round(time.monotonic() - start, 2)
    record.launches, record.waits, record.doubles = gpu.launches, dict(gpu.waits), dict(gpu.doubles)
    return record


_TIMEOUT = timedelta(minutes=2)
_groups = count()


def _join(backend: str) -> None:
    """Join a process group that sends the GPU's tensors with the library for those of the CPU."""
    own_rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    store = dist.FileStore(f"process_group_{next(_groups)}", size)
    backend = backend.replace("nccl", "gloo")
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=_TIMEOUT)


def _raise(name: str, primary: str, failure: Failure, jobs: list[Failure]) -> NoReturn:
    raise failure.error


@contextlib.contextmanager
def _named_phases(gpu: PretendedGPU, record: Record, trainers: list[Trainer]) -> Iterator[None]:
    """Report what the trainer does under the names of its phases, and note trainers and the operations of their steps."""

    def within(original: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            with gpu.during(phase):
                return original(*args, **kwargs)

        return function

    begun: set[int] = set()
    initialise, begin, end = Trainer.__init__, Trainer._begin_step, Trainer._end_step

    def initialise_noted(self: Trainer, *args: Any, **kwargs: Any) -> None:
        trainers.append(self)
        initialise(self, *args, **kwargs)

    def begin_noted(self: Trainer, stream: Any, progress: Progress) -> Any:
        gpu.phase = LATER_STEPS if id(self) in begun else "first step"
        gpu.operations[gpu.phase].clear()
        begun.add(id(self))
        return begin(self, stream, progress)

    def end_noted(self: Trainer, *args: Any) -> None:
        end(self, *args)
        record.operations.append(gpu.operations[gpu.phase].total())
        gpu.phase = BETWEEN_STEPS

    replacements = {name: within(getattr(Trainer, name), phase) for name, phase in _PHASES.items()}
    replacements |= {"__init__": initialise_noted, "_begin_step": begin_noted, "_end_step": end_noted}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(trainer_module, "snapshot", within(snapshot, "snapshot")))
        for name, replacement in replacements.items():
            stack.enter_context(mock.patch.object(Trainer, name, replacement))
        yield


@contextlib.contextmanager
def _noted_captures(gpu: PretendedGPU, record: Record, *, allowed: bool) -> Iterator[None]:
    """Note captures of steps, which wait for the device, or prevent them."""
    capture, refuse = StepGraphs._capture, StepGraphs._refuse

    def noted(self: StepGraphs, kind: Any, *args: Any) -> None:
        if not allowed:
            kind.is_eager = True
            return
        with gpu.during("capture"):
            capture(self, kind, *args)
        record.graphs += kind.graph is not None

    def refused(self: StepGraphs, kind: Any, reason: str) -> None:
        record.not_captured.append(reason)
        refuse(self, kind, reason)

    with mock.patch.object(StepGraphs, "_capture", noted), mock.patch.object(StepGraphs, "_refuse", refused):
        yield


def _on_cpu(trainer: Trainer) -> list[str]:
    """Return the names of the trainer's tensors on the CPU, except step counts that an optimizer keeps there on purpose."""
    modules = {"method": trainer.method} | {f"averages.{name}": each.method for name, each in trainer.averages.items()}
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in modules.items():
        own = module.state_dict(keep_vars=True) | dict(module.named_buffers()) | dict(module.named_parameters())
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in own.items()}
    for group, optimizer in trainer.optimizers.items():
        for number, (parameter, state) in enumerate(optimizer.state.items()):
            kept = {key for key in state if key != "step" or not _counts_on_cpu(optimizer, parameter)}
            tensors |= {f"optimizers.{group}.{number}.{key}": state[key] for key in kept}
    return [name for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor) and not tensor.is_cuda]


def _counts_on_cpu(optimizer: Optimizer, parameter: torch.Tensor) -> bool:
    group = next(group for group in optimizer.param_groups if any(parameter is each for each in group["params"]))
    return not (group.get("fused") or group.get("capturable"))


def _close_logs() -> None:
    """Close the files of the root logger, which Hydra sets up for each command."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()


def main() -> None:
    """Run the commands in the JSON list of standard input."""
    for command in json.load(sys.stdin):
        print(json.dumps(vars(walk(command))), flush=True)


if __name__ == "__main__":
    main()
