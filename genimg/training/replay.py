"""Compute a forward pass first without and later with a graph: both give the same numbers, and side effects happen once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from genimg.types import Batch
from genimg.utils.random_streams import StreamPosition


class Replay:
    """A function of a microbatch that can be repeated with the random numbers and buffers of its first call.

    The side effects of the first call persist: batch norm's running statistics, spectral norm's vectors and StyleGAN2's average
    style. The second call changes copies of the initial buffers.

    Args:
        function: Function to compute twice.
        microbatch: Argument of the function.
        networks: Networks whose buffers the function may change.
        device: Device whose generator is used in addition to the CPU's.
    """

    def __init__(
        self, function: Callable[[Batch], Batch], microbatch: Batch, networks: Sequence[nn.Module], device: torch.device
    ) -> None:
        self._function = function
        self._microbatch = microbatch
        self._networks = networks
        self._device = device
        self._position: StreamPosition | None = None
        self._buffers: list[dict[str, Tensor | None]] = []

    @torch.no_grad()
    def first(self) -> Batch:
        """Return the results, computed without a graph."""
        self._position = StreamPosition(self._device)
        self._buffers = [
            {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
            for module in self._modules()
        ]
        return self._function(self._microbatch)

    def again(self) -> Batch:
        """Return the same results with a graph. Call it once, after ``first`` and before the networks' weights change."""
        with self._as_then():
            return self._function(self._microbatch)

    def _modules(self) -> list[nn.Module]:
        return [module for network in self._networks for module in network.modules() if module._buffers]

    @contextlib.contextmanager
    def _as_then(self) -> Iterator[None]:
        # Replace the tensors instead of their values, because the graph may still need them.
        assert self._position is not None
        modules = self._modules()
        now = [dict(module._buffers) for module in modules]
        for module, buffers in zip(modules, self._buffers, strict=True):
            module._buffers.update(buffers)
        try:
            with self._position.repeated():
                yield
        finally:
            for module, buffers in zip(modules, now, strict=True):
                module._buffers.update(buffers)
