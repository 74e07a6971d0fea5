"""Check that the model of a checkpoint's config fits its weights, before memory is allocated for it.

A config of a few bytes can describe a model of any size, whose constructor would allocate all of the model's memory before the
weights are compared. So the model is first built on the device ``meta``, where tensors have shapes but no values.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from genimg.config.instantiate import ALLOWED, Builder
from genimg.errors import CheckpointError, first_line

_SLACK = 2**28  # bytes for buffers that are not in the checkpoint
_TIMES_ONE_NETWORK = 32  # ratio of the model's size to that of an exported file, which holds only one of its networks
_MODULES_PER_TENSOR = 100  # per tensor in the checkpoint
_MODULES_WITHOUT = 10_000  # modules without tensors
_FIX = "use the version of genimg, and of the packages in allow=, that it was trained with"
_IN_PLACE = {"uniform_", "normal_", "fill_", "zero_", "copy_", "mul_", "add_", "clamp_", "trunc_normal_"}


def require_fitting(
    build: Callable[[], nn.Module], weights: Mapping[str, Tensor], builder: Builder, *, are_a_part: bool = False
) -> None:
    """Refuse a model that does not fit the weights in its checkpoint.

    Nothing is checked if the user allows packages, because their code runs anyway and may need tensor values.

    Args:
        build: Function that builds the model of the checkpoint's config.
        weights: The checkpoint's tensors by name.
        builder: Builder of the config.
        are_a_part: Whether the tensors are those of a single network, with names that differ from the model's. If so, only
            total sizes are compared.

    Raises:
        CheckpointError: If the shape of a tensor differs, or if the model needs far more memory than the checkpoint's tensors.
        UserError: If the model rejects a value of the config.
    """
    if set(builder.allowed) - set(ALLOWED):
        return
    try:
        with _without_memory(len(weights)):
            model = build()
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        if isinstance(error, TypeError) and "verflow" not in str(error):  # PyTorch raises it for overflow
            raise
        raise CheckpointError(
            f"the model that the checkpoint's config describes cannot be built ({first_line(error)})", _FIX
        ) from error
    for name, tensor in () if are_a_part else model.state_dict().items():
        if name not in weights:
            raise _misfit(f"{name} is missing")
        if tensor.shape != weights[name].shape:
            raise _misfit(f"{name} has the shape {list(weights[name].shape)}, but {list(tensor.shape)} in the model")
    needed = _size(itertools.chain(model.parameters(), model.buffers()))
    if needed > (_TIMES_ONE_NETWORK if are_a_part else 2) * _size(weights.values()) + _SLACK:
        raise _misfit(f"it would take {needed:,} bytes")


def shapes_of(build: Callable[[], nn.Module], builder: Builder) -> dict[str, torch.Size]:
    """Return the shapes of a model's tensors by name, without memory for them and without drawing random numbers.

    A model with packages that the user allows is built in memory, because its code may need tensor values.

    Args:
        build: Function that builds the model.
        builder: Builder of its config.
    """
    if set(builder.allowed) - set(ALLOWED):
        with torch.random.fork_rng(devices=[]):
            model = build()
    else:
        with _without_memory(_MODULES_WITHOUT):
            model = build()
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _misfit(detail: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's weights do not fit the model that its config describes ({detail})", _FIX, key="")


def _size(tensors: Iterable[Tensor]) -> int:
    """Return the total size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextlib.contextmanager
def _without_memory(num_tensors: int) -> Iterator[None]:
    """Build modules on the device ``meta`` within the block, and limit their number.

    Args:
        num_tensors: Number of tensors in the checkpoint.
    """
    left = _MODULES_PER_TENSOR * num_tensors + _MODULES_WITHOUT

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _misfit("it has more layers than the checkpoint")

    hook = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"), _Uninitialised(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same warnings appear when the model is built for use
            yield
    finally:
        hook.remove()


class _Uninitialised(TorchFunctionMode):
    """Skips the initialisation of tensors on the device ``meta``, because PyTorch does it slowly."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _IN_PLACE or (name.endswith("_") and getattr(func, "__module__", "") == "torch.nn.init"):
            tensor = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))
