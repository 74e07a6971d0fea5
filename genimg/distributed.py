"""This process among those of torchrun: sums and rows over all of them. In a single process, everything is the identity."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


@contextlib.contextmanager
def processes_of_torchrun(device_name: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; gives the name of this process's device.

    Args:
        device_name: as the config has it; ``auto`` and ``cuda`` become this process's own GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device_name
        return
    on_gpu = device_name in ("auto", "cuda") and torch.cuda.is_available()
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("WORLD_SIZE is set without LOCAL_RANK: start several processes with torchrun, or unset WORLD_SIZE")
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()}): lower --nproc-per-node"
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield f"cuda:{local_rank}" if on_gpu else device_name
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    return dist.get_world_size() if _several() else 1


def shard(total: int) -> range:
    """This process's contiguous share of ``range(total)``; the shares of all ranks, in order, are the whole."""
    r, n = rank(), world_size()
    return range(total * r // n, total * (r + 1) // n)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, on the tensor's own device."""
    if not _several():
        return tensor
    on_device = tensor.to(_device(), copy=True)  # all_reduce writes into it
    dist.all_reduce(on_device)
    return on_device.to(tensor.device)


def on_every_rank(condition: bool) -> bool:
    """Whether it holds on all of them, so that all take the same way."""
    return int(sum_over_ranks(torch.tensor(int(condition)))) == world_size()


def rows_of_all_ranks(tensor: Tensor) -> Tensor:
    """Every rank's rows [N_r, ...] below each other, in the order of the ranks."""
    if not _several():
        return tensor
    counts = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(tensor)], device=_device()))
    most = max(int(count) for count in counts)
    padded = torch.zeros(most, *tensor.shape[1:], dtype=tensor.dtype, device=_device())  # all_gather wants equal shapes
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)]).to(tensor.device)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    """NCCL speaks only to GPUs, gloo to the host's memory."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
