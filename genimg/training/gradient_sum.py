"""Sum gradients over several processes while the backward pass still computes others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

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
        alike = groupby(parameters[::-1], lambda parameter: (parameter.dtype, parameter.device))
        self._buckets = [_Bucket(group) for _, run in alike for group in in_buckets(run, size)]
        self._num_sent = 0  # all ranks send buckets in the same order

    @contextlib.contextmanager
    def of_backward(self, *, is_last: bool) -> Iterator[None]:
        """Collect the gradients of the block's backward pass in buckets, and sum these over all ranks if it is the last.

        Args:
            is_last: Whether the block runs the last of several backward passes that add up. The parameters that it gives
                gradients must be the same on every rank. Parameters without any gradient keep none.
        """
        self._num_sent = 0
        for bucket in self._buckets:
            bucket.begin()
        with contextlib.ExitStack() as hooks:  # hooks that stay would keep the parameters alive
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    hook = partial(self._on_gradient, bucket, is_last)
                    hooks.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
            yield
        if not is_last:
            return
        waiting = self._buckets[self._num_sent :]
        all_reduce_([each.grad for bucket in waiting for each in bucket.parameters if each.grad is not None])
        for bucket in self._buckets:
            bucket.wait()

    def _on_gradient(self, bucket: _Bucket, is_last: bool, parameter: Tensor) -> None:
        if parameter.grad is None:  # undefined, such as that of the last bias in a path length penalty
            return
        bucket.add(parameter)
        while is_last and self._num_sent < len(self._buckets) and self._buckets[self._num_sent].is_complete:
            self._buckets[self._num_sent].send()
            self._num_sent += 1


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
        """Begin a backward pass."""
        self._num_added = 0
        self._finish = None

    @property
    def is_complete(self) -> bool:
        return self._num_added == len(self.parameters)

    @torch.no_grad()
    def add(self, parameter: Tensor) -> None:
        """Move a parameter's gradient into the bucket, where later backward passes add to it."""
        if self._flat is None:
            self._allocate()
        place, gradient = self._places[id(parameter)], parameter.grad
        assert gradient is not None
        if gradient.data_ptr() != place.data_ptr():
            place.copy_(gradient)
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
