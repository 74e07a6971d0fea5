"""Background work during training: a thread writes files while the next steps run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import nn

from genimg.training.host_copies import PinnedCopies
from genimg.utils.threads import serial_thread


class Background:
    """Runs one job at a time, in order. An exception of a job is raised by the next call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[Any] | None = None
        self._copies = PinnedCopies()

    def submit(self, job: Callable[[], object]) -> None:
        """Start ``job`` after the previous one has ended, so at most one job is in memory."""
        self.wait()
        self._pool = self._pool or serial_thread("genimg-writer")
        self._pending = self._pool.submit(job)

    def submit_with_copy(self, job: Callable[[Any], object], value: Any) -> None:
        """Start ``job`` with a copy of ``value`` in host memory, after the previous job has ended.

        Returns before a GPU has made the copy. The memory is used again for the next copy, so the job must not keep any tensor.

        Args:
            job: Function of the copy.
            value: Mappings, lists and tensors.
        """
        self.wait()
        copy, wait = self._copies.copy(value)
        self.submit(partial(_run_when_made, job, copy, wait))

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
            self._copies = PinnedCopies()


def _run_when_made(job: Callable[[Any], object], copy: Any, wait: Callable[[], object]) -> None:
    wait()
    job(copy)


@contextlib.contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``module`` after the block.

    Pictures and evaluations compute standing statistics and fit densities. They may depend on the clock, and a run may be
    resumed with others, so they must not change the contents of a checkpoint.
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
