"""A dispatch mode that runs each CUDA operation with its CPU kernel, on the same memory.

It needs the preloaded library of build.py, whose device memory is the host's. Beyond computing, it

- raises an error, as CUDA would, where an operation has operands on both devices;
- notes each wait of the host for the device, with the line of the package that causes it;
- counts operations, each of which is one kernel or several, and results in float64;
- draws random numbers from the seed and the offset of the CUDA generator, so a generator that is not seeded shows;
- fills uninitialised memory with NaN.

It does not cover cuDNN, NCCL, the rounding of a GPU's kernels, or time.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.backends import cuda
from torch.utils._python_dispatch import TorchDispatchMode

from pretended_gpu import rules
from pretended_gpu.generators import DefaultGenerator

OTHER_THREADS = "other threads"
"""Phase of waits outside of the main thread; these do not delay the training."""

OFFSETS_PER_DRAW = 4
"""What an operation that draws random numbers adds to the generator's offset."""

_Report = defaultdict[str, Counter[str]]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class HostCall:
    """An operation on the host's view of its operands.

    Attributes:
        func: Operation.
        args: Its positional arguments, all on the CPU.
        kwargs: Its keyword arguments, all on the CPU, and None in place of a generator.
        generator: CUDA generator that it draws from; None if it draws nothing.
    """

    func: OpOverload
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    generator: torch.Generator | None

    def __call__(self, seed: int = 0, offset: int = 0) -> Any:
        """Compute the result, whose random numbers are a function of ``seed`` and ``offset``."""
        if self.generator is None:
            return self.func(*self.args, **self.kwargs)
        digest = hashlib.sha256(f"{seed} {offset}".encode()).digest()
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
        try:
            return self.func(*self.args, **self.kwargs)
        finally:
            torch.default_generator.set_state(state)


class Recorder(Protocol):
    """What a graph does with the operations of its capture."""

    def add(self, call: HostCall, originals: dict[int, Tensor], to_gpu: Callable[[Any], Any]) -> Any:
        """Record an operation and return its result, which is not computed yet.

        Args:
            call: Operation.
            originals: CUDA tensors by the id of the host's view in ``call``.
            to_gpu: Function that moves a tensor of the result to the GPU.
        """


class PretendedGPU(TorchDispatchMode):
    """Computes what happens on the GPU within its context.

    Args:
        package: Directory of the code whose lines are reported.

    Attributes:
        phase: Name under which waits and operations are reported.
        waits: Number of waits by phase, and by reason and line.
        operations: Number of operations by phase and name.
        doubles: Number of results in float64, which some GPUs lack, by phase, and by operation and line.
        recorder: Graph that is being captured, or None.
    """

    def __init__(self, package: Path) -> None:
        super().__init__()
        self._package = f"{package}/"
        self.phase = "setup"
        self.waits: _Report = defaultdict(Counter)
        self.operations: _Report = defaultdict(Counter)
        self.doubles: _Report = defaultdict(Counter)
        self.recorder: Recorder | None = None
        torch.cuda.init()
        self.default_generator = DefaultGenerator(torch.cuda.default_generators[0])
        self._library = ctypes.CDLL(None)  # the preloaded one
        self._library.pretended_launches.restype = ctypes.c_long
        self._first_launch = self._library.pretended_launches()
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda name: self._report_wait(f"{name.decode()} in PyTorch"))

    def __enter__(self) -> PretendedGPU:
        assert torch.cuda.get_device_name(0) == "pretended GPU", "the library of build.py must be preloaded"
        self._generators = torch.cuda.default_generators
        torch.cuda.default_generators = (self.default_generator,)
        torch.backends.cudnn.enabled = False  # the CPU has no kernels for its operations, nor for those of fused attention
        for enable in (cuda.enable_cudnn_sdp, cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp):
            enable(False)
        self._set_callback(ctypes.cast(self._callback, ctypes.c_void_p).value)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._set_callback(None)
        torch.cuda.default_generators = self._generators

    def _set_callback(self, address: int | None) -> None:
        ctypes.c_void_p.in_dll(self._library, "pretended_on_wait").value = address

    @property
    def launches(self) -> int:
        """Number of CUDA kernels that were launched outside of this mode, and so computed nothing."""
        return self._library.pretended_launches() - self._first_launch

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Report under the name ``phase`` within the block."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
        on_gpu = [tensor for tensor in tensors if tensor.is_cuda]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        creates = target is not None and target.type == "cuda"
        if not (on_gpu or creates) or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if rules.launches_nothing(func):
            result = func(*args, **kwargs)
            if "empty" in rules.name_of(func) and result.is_cuda:
                poison(result)
            return result
        rules.check_devices(func, args, tensors)
        for reason in rules.waits(func, args, kwargs, tensors):
            self.wait(reason)
        self.operations[self.phase][str(func)] += 1
        call, originals = self._on_host(func, args, kwargs)

        def to_gpu(value: Any) -> Any:
            """Return the GPU's copy of a result, but the tensor itself if the operation wrote into it."""
            if not isinstance(value, Tensor):
                return value
            if value.dtype == torch.float64:
                self.doubles[self.phase][f"{rules.name_of(func)} at {self.where()}"] += 1
            if id(value) in originals:
                return originals[id(value)]
            if any(value is tensor for tensor in tensors) or (target is not None and not creates):
                return value
            return to_device(value, torch.device("cuda"))

        if self.is_capturing:
            assert self.recorder is not None
            return self.recorder.add(call, originals, to_gpu)
        if call.generator is None:
            return map_nested(to_gpu, call())
        offset = call.generator.get_offset()
        call.generator.set_offset(offset + OFFSETS_PER_DRAW)
        return map_nested(to_gpu, call(call.generator.initial_seed(), offset))

    @property
    def is_capturing(self) -> bool:
        """Whether operations go into a graph."""
        return self.recorder is not None and torch.cuda.is_current_stream_capturing()

    def wait(self, reason: str) -> None:
        """Note that the host waits for the device.

        Raises:
            RuntimeError: If the operation is to go into a graph.
        """
        if self.is_capturing:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({reason})")
        self._report_wait(reason)

    def _report_wait(self, reason: str) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self.waits[self.phase if is_main else OTHER_THREADS][f"{reason} at {self.where()}"] += 1

    def where(self) -> str:
        """Return the innermost line of the package, and the line of another of its modules that called it."""
        lines: list[str] = []
        last, frame = "", _caller()
        while frame is not None and len(lines) < 2:
            file = frame.f_code.co_filename
            if file.startswith(self._package) and file != last:
                lines.append(f"{file.removeprefix(self._package)}:{frame.f_lineno}")
                last = file
            frame = frame.f_back
        return " < ".join(lines) or "no line of the package (a thread of autograd?)"

    def _on_host(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[HostCall, dict[int, Tensor]]:
        """Return the operation on the host's views, and the CUDA tensors by the ids of these views."""
        views: dict[int, Tensor] = {}
        originals: dict[int, Tensor] = {}

        def on_host(value: Any) -> Any:
            if isinstance(value, torch.device):
                return _CPU
            if not isinstance(value, Tensor) or not value.is_cuda:
                return value
            if id(value) not in views:
                views[id(value)] = host_view(value)
                originals[id(views[id(value)])] = value
            return views[id(value)]

        of_host = {name: map_nested(on_host, value) for name, value in kwargs.items() if name != "non_blocking"}
        generator = of_host.get("generator")
        if generator is not None and generator.device.type != "cuda":
            raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found '{generator.device.type}'")
        if "generator" in of_host:  # some operations have to get one
            of_host["generator"] = None
        draws = torch.Tag.nondeterministic_seeded in func.tags
        source = (generator or self.default_generator.continued) if draws else None
        return HostCall(func, map_nested(on_host, args), of_host, source), originals


def map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Return ``value`` with ``function`` applied to what its lists and tuples hold; much faster than torch's own."""
    if isinstance(value, list | tuple):
        return type(value)([map_nested(function, each) for each in value])
    return function(value)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in nested lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def host_view(tensor: Tensor) -> Tensor:
    """Return the CPU's view of a CUDA tensor's memory."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    of_host = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), _CPU, storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(of_host, tensor.storage_offset(), tensor.size(), tensor.stride())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on the pretended GPU."""
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    if tensor.numel():
        host_view(made).copy_(tensor)
    return made


def poison(tensor: Tensor) -> None:
    """Fill a new tensor's memory with what is NaN as floating point and -1 as an integer."""
    storage = tensor.untyped_storage()
    ctypes.memset(storage.data_ptr(), 0xFF, storage.nbytes())


def _caller() -> FrameType | None:
    """Return the frame outside of this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame
