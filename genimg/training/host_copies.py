"""Copies of a training's state in host memory, to be written while the next steps run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


def snapshot(value: Any) -> Any:
    """Return a copy of mappings, lists and tensors in host memory that later steps do not change."""
    return map_tensors(copied_to_host, value)


class PinnedCopies:
    """Copies of what is on a GPU, in pinned host memory that the next copy reuses.

    The GPU copies to pinned memory without the host. Pinning takes long, so the memory is kept. Tensors that are already on the
    host are copied to new memory; keeping it would save little, because the C library reuses that of tensors up to 32 MiB.

    PyTorch rounds each allocation of pinned memory up to a power of two bytes. All tensors of a copy are therefore parts of one
    block. Still, each has a storage of its own, because ``torch.save`` writes whole storages.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def copy(self, value: Any) -> tuple[Any, Callable[[], object]]:
        """Copy mappings, lists and tensors as ``snapshot`` does, but without waiting for the GPU.

        Returns:
            The copy, of which the next call overwrites the tensors that are on a GPU; and a function that waits until the GPU
            has made the copy, for any thread.
        """
        on_gpu = [tensor for tensor in _tensors_in(value) if _is_filled(tensor)]
        if not on_gpu:
            return snapshot(value), _wait_for_nothing
        self._reserve(sum(map(_room, on_gpu)))
        used = 0

        def copied(tensor: Tensor) -> Tensor:
            nonlocal used
            if not _is_filled(tensor):
                return copied_to_host(tensor)
            place = self._place(tensor, used)
            used += _room(tensor)
            return place.copy_(tensor.detach(), non_blocking=True)

        copy, device = map_tensors(copied, value), on_gpu[0].device
        made = torch.cuda.Event(blocking=True)  # so a thread that waits for it sleeps
        made.record(torch.cuda.current_stream(device))
        return copy, partial(_wait_for, made, device)

    def _reserve(self, size: int) -> None:
        if size <= len(self._block):
            return
        self._block = torch.empty(0, dtype=torch.uint8)  # so the old block can be freed first
        try:
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # some systems limit pinned memory; copies then wait for the GPU
            self._block = torch.empty(size, dtype=torch.uint8)

    def _place(self, tensor: Tensor, start: int) -> Tensor:
        """Return an uninitialised tensor like ``tensor`` in the block from the byte ``start`` on."""
        part = torch.from_numpy(self._block.numpy()[start : start + tensor.nbytes])
        like = torch.empty_like(tensor, device="meta")
        return torch.empty(0, dtype=tensor.dtype).set_(part.untyped_storage(), 0, like.shape, like.stride())


def copied_to_host(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor in host memory."""
    return tensor.detach().to("cpu", copy=True)


def _is_filled(tensor: Tensor) -> bool:
    """Return whether a tensor on a GPU has numbers. Empty ones need no place; ``torch.save`` refuses two at one address."""
    return tensor.is_cuda and tensor.numel() > 0


def _room(tensor: Tensor) -> int:
    """Return the number of bytes that a tensor takes up in the block."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _wait_for(made: torch.cuda.Event, device: torch.device) -> None:
    with torch.cuda.device(device):  # in another thread, the first GPU would be the current one, and get a context
        made.synchronize()


def _wait_for_nothing() -> None:
    """Return at once: a copy from host memory is complete."""


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return mappings and lists with ``function`` applied to their tensors, in the order of ``_tensors_in``."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)
