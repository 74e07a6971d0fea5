"""Batches copied to a GPU one ahead, while it computes the step before."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

import torch

from genimg.types import Batch
from genimg.utils.threads import serial_thread

Extra = TypeVar("Extra")


def prefetch(batches: Iterator[tuple[Batch, Extra]], device: torch.device) -> Generator[tuple[Batch, Extra], None, None]:
    """Yield batches on a GPU; the next one is read and copied there while the caller uses the last one.

    A thread reads the next batch and copies it on a stream of its own. Its place on the GPU is allocated on the caller's
    stream, so the GPU reuses the memory of earlier batches as if there were a single stream, however far the host is ahead. The
    copy waits for what was queued on the caller's stream before the allocation, which may still use this memory; it does not
    wait for the step with the last batch.

    Close the generator to end the thread. An exception of the iterator is raised in place of its batch.

    Args:
        batches: Batches in pinned memory, always with the same shapes and types, and what else belongs to each. The iterator
            must not draw from PyTorch's global generators, whose numbers belong to the training step.
        device: CUDA device.
    """
    copies = torch.cuda.Stream(device)

    def fill(place: Batch, free: torch.cuda.Event) -> tuple[torch.cuda.Event, Extra]:
        with torch.cuda.stream(copies):  # this also makes the device the thread's current one, for which memory is pinned
            batch, extra = next(batches)
            copies.wait_event(free)
            for key, tensor in place.items():
                tensor.copy_(batch[key], non_blocking=True)
            return copies.record_event(), extra

    thread = serial_thread("genimg-prefetch")
    try:
        first, extra = next(batches)
        batch = {key: tensor.to(device, non_blocking=True) for key, tensor in first.items()}
        while True:
            place = {key: torch.empty_like(tensor) for key, tensor in batch.items()}
            coming = thread.submit(fill, place, torch.cuda.current_stream(device).record_event())
            yield batch, extra
            copied, extra = coming.result()
            torch.cuda.current_stream(device).wait_event(copied)
            batch = place
    finally:
        thread.shutdown(cancel_futures=True)
        torch.cuda.current_stream(device).wait_stream(copies)  # the place of an unused batch may be filled until then
