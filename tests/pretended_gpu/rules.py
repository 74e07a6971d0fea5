"""What a real GPU would do with an operation: whether its operands may be on two devices, and whether the host waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_WITHOUT_KERNELS = {
    "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "resize_", "resize_as_", "set_", "record_stream",
    "is_pinned", "is_same_size", "_unsafe_view", "_efficientzerotensor", "_version",
}  # fmt: skip
_WAITS = {  # because the shape of the result, or an error, depends on values
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc",
    "equal", "is_nonzero", "_linalg_eigh", "_linalg_svd", "linalg_eig", "_linalg_det", "linalg_qr", "_linalg_solve_ex",
    "linalg_inv_ex", "linalg_cholesky_ex", "embedding_renorm_",
}  # fmt: skip
_COPIES = {"copy_", "copy", "_to_copy", "_foreach_copy_"}
_INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
_WITH_NUMBERS = {"where", "masked_fill", "masked_fill_", "fill_", "lerp", "lerp_", "addcmul", "addcdiv"}
_STAGED_BYTES = 64 * 1024  # the driver buffers up to this many bytes of pageable memory and returns


class MixedDevicesError(RuntimeError):
    """An operation has operands on the CPU and on the GPU."""


@cache
def name_of(func: OpOverload) -> str:
    """Return the name of an operation without its namespace and overload."""
    return func._schema.name.rpartition("::")[2]


@cache
def launches_nothing(func: OpOverload) -> bool:
    """Return whether an operation only makes a view or allocates memory."""
    returns = func._schema.returns
    is_view = bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)
    return is_view or name_of(func) in _WITHOUT_KERNELS


def check_devices(func: OpOverload, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Check the operands of an operation on the GPU.

    Raises:
        MixedDevicesError: If one of them is on the CPU although CUDA's kernel needs it on the GPU.
    """
    name, on_cpu = name_of(func), [tensor for tensor in tensors if not tensor.is_cuda]
    if not on_cpu or name in _COPIES:
        return
    if name in _INDEXING:  # which moves indices to the GPU itself
        if not args[0].is_cuda:
            raise MixedDevicesError(f"{func}: a tensor on the CPU has indices on the GPU")
        return
    if any(tensor.ndim for tensor in on_cpu):
        raise MixedDevicesError(f"{func}: tensors of shapes {[tuple(each.shape) for each in on_cpu]} are on the CPU")
    if torch.Tag.pointwise not in func.tags and not name.startswith("_foreach") and name not in _WITH_NUMBERS:
        raise MixedDevicesError(f"{func}: a number is in a tensor on the CPU")


def waits(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterator[str]:
    """Yield why the host would wait for the GPU during an operation."""
    name = name_of(func)
    if name in _COPIES:
        yield from _waits_of_copy(name, args, kwargs)
    elif name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        yield name
    elif name in _INDEXING:
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                yield f"{name} by a mask"
            elif index is not None and not index.is_cuda:
                yield f"{name} by indices on the CPU"
    elif name == "where" and not all(tensor.is_cuda for tensor in tensors):
        yield "where with a number on the CPU"


def _waits_of_copy(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[str]:
    pairs: list[tuple[Tensor, Tensor | None]]
    if name == "_to_copy":
        target = kwargs.get("device")
        to_gpu = args[0].is_cuda if target is None else torch.device(target).type == "cuda"
        pairs, non_blocking = [(args[0], None)], bool(kwargs.get("non_blocking"))
    else:
        into, source = (args[0], args[1]) if name == "_foreach_copy_" else ([args[0]], [args[1]])
        pairs = list(zip(source, into, strict=True))
        non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    for tensor, place in pairs:
        if place is not None:
            to_gpu = place.is_cuda
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            continue
        if tensor.is_cuda and not to_gpu:
            if not (non_blocking and place is not None and place.is_pinned()):
                yield "copy to the CPU" + (", non_blocking into pageable memory" if non_blocking else "")
        elif not tensor.is_cuda and to_gpu:
            if not non_blocking:
                yield f"copy of {size} bytes to the GPU without non_blocking"
            elif size > _STAGED_BYTES and not tensor.is_pinned():
                yield f"copy of {size} bytes of pageable memory to the GPU"
