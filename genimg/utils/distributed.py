"""Collectives and synchronization of torchrun's processes. In a single process, each collective is the identity."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from genimg.errors import ConfigError, UserError, is_bug
from genimg.utils.torchrun import is_of_several

T = TypeVar("T", bound=Tensor)

_TIMEOUT = timedelta(minutes=30)  # the longest wait is for the first rank of a host to list or download a dataset
_BUCKET = 2**24  # numbers reduced at once: few messages, little extra memory (64 MB)


class AnotherProcessError(UserError):
    """An error in another process, which also ends this process.

    Args:
        problem: Number of the process, and its error message.
        details: Traceback if the error is a bug; empty otherwise.
    """

    def __init__(self, problem: str, details: str = "") -> None:
        super().__init__(problem, key="")
        self.details = details


@contextlib.contextmanager
def processes_of_torchrun(device_name: str) -> Iterator[str]:
    """Join the process group of torchrun, if there is one, and yield the name of this process's device.

    Args:
        device_name: Device name in the config; ``auto`` and ``cuda`` become this process's own GPU.

    Raises:
        ConfigError: If the processes do not match the device.
    """
    if not is_of_several():
        yield device_name
        return
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("WORLD_SIZE is set without LOCAL_RANK: start several processes with torchrun, or unset WORLD_SIZE")
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = device_name in ("auto", "cuda") and torch.cuda.is_available()
    if device_name not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"device={device_name} cannot be shared by several processes: use device=auto, cuda or cpu")
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()}): lower --nproc-per-node"
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    _join("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield f"cuda:{local_rank}" if on_gpu else "cuda" if device_name == "cuda" else "cpu"
    except SystemExit:  # after a stop that all ranks agreed on
        dist.destroy_process_group()
        raise
    # This is not done after an error, because it waits for all ranks, and some may wait for a message from a failed process.
    dist.destroy_process_group()


def _join(backend: str) -> None:
    """Initialize the process group at torchrun's rendezvous.

    On one host, torchrun's store survives a restart of the processes and keeps the addresses of dead ones, so each attempt uses
    its own prefix. Several hosts may count attempts differently; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has the same effect.
    """
    store, own_rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=_TIMEOUT)


def rank() -> int:
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    return dist.get_world_size() if _several() else 1


def shard(total: int) -> range:
    """Return this rank's contiguous part of ``range(total)``; the parts of all ranks, in order, form the whole range."""
    r, n = rank(), world_size()
    return range(total * r // n, total * (r + 1) // n)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of the tensor over all ranks, on its own device."""
    if not _several():
        return tensor
    total = tensor.clone()  # all_reduce writes into it
    dist.all_reduce(total)
    return total


def least_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise minimum of the tensor over all ranks."""
    if not _several():
        return tensor
    least = tensor.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return least


def all_reduce_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, with many tensors in one message.

    Args:
        tensors: Tensors of one device and dtype, with the same shapes in the same order on every rank.
    """
    if not _several():
        return
    for bucket in in_buckets(tensors, _BUCKET):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(total.view(tensor.shape))


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor that is divided among ranks (``DTensor``), in the same memory; else the tensor."""
    to_local = getattr(tensor, "to_local", None)  # without an import of distributed tensors, which takes long
    return tensor if to_local is None else to_local()


def begin_sum_(tensor: Tensor) -> Callable[[], object]:
    """Begin to replace a tensor by its sum over all ranks, and return a function that waits until this is done."""
    if not _several():
        return lambda: None
    return dist.all_reduce(tensor, async_op=True).wait


def on_every_rank(condition: bool) -> bool:
    """Return whether the condition holds on every rank, so all ranks take the same branch."""
    return int(sum_over_ranks(torch.tensor(int(condition)))) == world_size()


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate the rows [N_r, ...] of all ranks in rank order."""
    if not _several():
        return tensor
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(tensor)]))
    most = max(int(count) for count in counts)
    padded = tensor.new_zeros(most, *tensor.shape[1:])  # all_gather needs equal shapes
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def all_gather_equal_rows(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, which must be equally many. No counts are exchanged, so nothing waits for a GPU."""
    if not _several():
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def broadcast_object(value: Any) -> Any:
    """Return the first rank's value on every rank; it can be any value that can be pickled."""
    if not _several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of the first rank."""
    if not _several():
        return
    for tensor in tensors:
        flat = tensor.contiguous()
        dist.broadcast(flat, src=0)
        tensor.copy_(flat)


@contextlib.contextmanager
def raise_on_any_rank() -> Iterator[None]:
    """Make all ranks fail at the end of the block if one has failed, so none waits for a rank that has exited.

    Raises:
        AnotherProcessError: If another rank failed, with that rank's message, and with its traceback if it is a bug.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        if not _several():
            raise
        error = caught
    if not _several():
        return
    failures: list[tuple[str, str] | None] = [None] * world_size()
    dist.all_gather_object(failures, None if error is None else _described(error))
    if error is not None:
        raise error
    for number, failure in enumerate(failures):
        if failure is not None:
            message, details = failure
            raise AnotherProcessError(f"process {number}: {message}", details)


def _described(error: Exception) -> tuple[str, str]:
    """Return an error's message, and its traceback if it is a bug."""
    details = "".join(traceback.format_exception(error)) if is_bug(error) else ""
    return str(error) or type(error).__name__, details


@contextlib.contextmanager
def first_of_each_host() -> Iterator[None]:
    """Run the block on the first rank of each host before the other ranks, so only that rank downloads files."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        with raise_on_any_rank():
            yield
        with raise_on_any_rank():
            pass
    else:
        with raise_on_any_rank():
            pass
        with raise_on_any_rank():
            yield


class Vote:
    """A vote on several questions: whether any rank has said yes. All ranks learn the outcome one call later, so none waits.

    Votes pass through host memory and do not use the GPU.

    Args:
        num_questions: Number of questions.
    """

    def __init__(self, num_questions: int) -> None:
        self._pending: tuple[Any, Tensor] | None = None
        self._num_questions = num_questions

    def cast(self, *answers: bool) -> list[bool]:
        """Cast this rank's answers and return the outcome of the previous vote, or of this one in a single process."""
        if not _several():
            return list(answers)
        outcome = self.wait()
        ballot = torch.tensor(answers, dtype=torch.int64)
        self._pending = dist.all_reduce(ballot, op=dist.ReduceOp.MAX, async_op=True), ballot
        return outcome

    def wait(self) -> list[bool]:
        """Return the outcome of the pending vote; every rank must call it."""
        if self._pending is None:
            return [False] * self._num_questions
        work, ballot = self._pending
        work.wait()
        self._pending = None
        return [bool(answer) for answer in ballot.tolist()]


def in_buckets(tensors: Iterable[T], size: int) -> Iterator[list[T]]:
    """Group consecutive tensors, as many as have at most ``size`` numbers together; a larger tensor has a group of its own.

    Args:
        tensors: Tensors.
        size: Largest size of a group of several tensors, in numbers.
    """
    bucket: list[T] = []
    count = 0
    for tensor in tensors:
        if bucket and count + tensor.numel() > size:
            yield bucket
            bucket, count = [], 0
        bucket.append(tensor)
        count += tensor.numel()
    if bucket:
        yield bucket


_apart = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Treat this process as the only one within the block: nothing is sent, and no rank waits for another."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def _several() -> bool:
    return not _apart and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
