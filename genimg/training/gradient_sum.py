"""Sum gradients over several processes while the backward pass still computes others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from genimg.utils.distributed import all_reduce_, begin_sum_, in_buckets

_BUCKET = 2**22  # numbers per message (16 MB): few messages, and several for networks of a size that matters


class GradientSum:
    """Sums the gradients of some parameters over all ranks.

    Gradients travel in buckets. A bucket is sent as soon as its gradients and those of all buckets before it are complete, so
    most messages overlap with the rest of the backward pass (Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating
    Data Parallel Training", section 3.2.3). Buckets are filled in the reverse order of the parameters, which is about the order
    in which gradients are completed. Their contents depend on the model alone: an all-reduce adds numbers of more than two
    ranks in an order that depends on their position in the message, and a resumed run must repeat it.

    Args:
        parameters: Parameters, the same on every rank.
        size: Largest size of a bucket of several parameters, in numbers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], size: int = _BUCKET) -> None:
        self._buckets = [_Bucket(group) for group in in_buckets(parameters[::-1], size)]
        self._next = 0  # bucket to send next: all ranks send them in the same order
        self._is_active = False
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, bucket))

    @contextlib.contextmanager
    def of_backward(self) -> Iterator[None]:
        """Replace the gradients that the block's backward pass completes by their sums over all ranks.

        Gradients may hold earlier microbatches. Parameters without a gradient keep none; they must be the same on every rank.
        """
        self._next, self._is_active = 0, True
        for bucket in self._buckets:
            bucket.begin()
        try:
            yield
        finally:
            self._is_active = False
        rest = [p.grad for bucket in self._buckets[self._next :] for p in bucket.parameters if p.grad is not None]
        all_reduce_(rest)
        for bucket in self._buckets:
            bucket.wait()

    def _on_gradient(self, bucket: _Bucket, parameter: Tensor) -> None:
        if not self._is_active:
            return
        bucket.add(parameter)
        while self._next < len(self._buckets) and self._buckets[self._next].is_complete:
            self._buckets[self._next].send()
            self._next += 1


class _Bucket:
    """Gradients of some parameters in one tensor.

    Args:
        parameters: Parameters of one device and dtype.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._flat: Tensor | None = None
        self._places: dict[int, Tensor] = {}  # of a parameter's gradient, by the parameter's id
        self._num_added = 0
        self._finish: Callable[[], object] | None = None

    def begin(self) -> None:
        """Forget what was added."""
        self._num_added = 0
        self._finish = None

    @property
    def is_complete(self) -> bool:
        return self._num_added == len(self.parameters)

    @torch.no_grad()
    def add(self, parameter: Tensor) -> None:
        """Move a parameter's gradient into the bucket."""
        if self._flat is None:
            self._allocate()
        place = self._places[id(parameter)]
        assert parameter.grad is not None
        place.copy_(parameter.grad)
        parameter.grad = place
        self._num_added += 1

    def send(self) -> None:
        assert self._flat is not None
        self._finish = begin_sum_(self._flat)

    def wait(self) -> None:
        """Wait for the sums, if the bucket was sent."""
        if self._finish is not None:
            self._finish()

    def _allocate(self) -> None:
        """Allocate the tensor, in which a gradient has the strides of its parameter, as autograd lays it out."""
        first, position = self.parameters[0], 0
        self._flat = torch.empty(sum(p.numel() for p in self.parameters), dtype=first.dtype, device=first.device)
        for parameter in self.parameters:
            strides = torch.empty_like(parameter, device="meta").stride()
            self._places[id(parameter)] = self._flat.as_strided(parameter.shape, strides, position)
            position += parameter.numel()
