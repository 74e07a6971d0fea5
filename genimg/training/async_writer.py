"""Background work during training: a thread writes files while the next steps run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from genimg.utils.threads import serial_thread


class Background:
    """Runs one job at a time, in order. An exception of a job is raised by the next call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[Any] | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Start ``job`` after the previous one has ended, so at most one job is in memory."""
        self.wait()
        self._pool = self._pool or serial_thread("genimg-writer")
        self._pending = self._pool.submit(job)

    def wait(self) -> None:
        """Wait for the running job, if any."""
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            if self._pending.done():  # false if a signal interrupted the wait
                self._pending = None

    def check(self) -> None:
        """Raise the exception of the last job, if any, without waiting for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Wait for the running job and end the thread; the next job starts a new one."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = self._pending = None


@contextlib.contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``module`` after the block.

    Previews compute standing statistics and fit densities. When they are made depends on the clock, so they must not change
    the contents of a checkpoint.
    """
    buffers = [(part, name, value) for part in module.modules() for name, value in part._buffers.items() if value is not None]
    copies = [value.clone() for _, _, value in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for (part, name, value), copy in zip(buffers, copies, strict=True):
                value.copy_(copy)
                part._buffers[name] = value  # in case the block replaced it


def snapshot(value: Any) -> Any:
    """Return a copy of mappings, lists and tensors in host memory that later steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value
