"""CUDA graphs on the pretended GPU: a capture records operations, and a replay computes them on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pretended_gpu.device import OFFSETS_PER_DRAW, HostCall, PretendedGPU, host_view, map_nested, poison, tensors_in

_UNDECLARED_WRITES = {"aten::native_batch_norm": {"running_mean", "running_var"}}  # the schema does not name them

_MESSAGES = "c10d"  # namespace of messages between processes, whose schemas name nothing that they write


class Recording:
    """The operations of one captured graph.

    As on a GPU, nothing is computed or changed during the capture; results hold NaN, or 0 in integers, until the first replay.
    Random numbers are a function of the generator's seed and offset at the replay, which then moves the offset on.

    Args:
        generator: Generator from which operations draw if they are not given one.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._calls: list[tuple[HostCall, list[Tensor | None], int]] = []
        self._drawn: dict[torch.Generator, int] = {}  # offsets of the whole graph
        self.generators = {generator}

    def add(self, call: HostCall, originals: dict[int, Tensor], to_gpu: Callable[[Any], Any]) -> Any:
        """Implement ``device.Recorder``."""
        offset = 0
        if call.generator is not None:
            if call.generator not in self.generators:
                raise RuntimeError(f"{call.func}: register_generator_state was not called with the generator")
            offset = self._drawn.get(call.generator, 0)
            self._drawn[call.generator] = offset + OFFSETS_PER_DRAW
        rehearsal = _without_effects(call, originals)
        result = map_nested(to_gpu, rehearsal())
        written = {id(tensor) for tensor in originals.values()}
        outputs: list[Tensor | None] = []
        for tensor in tensors_in([result]):
            output = None if id(tensor) in written else host_view(tensor)
            outputs.append(output)
            if output is not None and tensor.is_floating_point():
                poison(tensor)
            elif output is not None:
                output.zero_()  # integers may be indices, which the capture checks
        self._calls.append((_with_constants(call, originals), outputs, offset))
        return result

    def replay(self) -> None:
        """Compute the recorded operations."""
        starts = {generator: (generator.initial_seed(), generator.get_offset()) for generator in self._drawn}
        for call, outputs, offset in self._calls:
            seed, start = (0, 0) if call.generator is None else starts[call.generator]
            for into, value in zip(outputs, tensors_in([_completed(call, seed, start + offset)]), strict=True):
                if into is not None:
                    into.copy_(value)
        for generator, drawn in self._drawn.items():
            generator.set_offset(starts[generator][1] + drawn)


@contextmanager
def computing_graphs(gpu: PretendedGPU) -> Iterator[None]:
    """Make ``torch.cuda.CUDAGraph`` compute on the pretended GPU within the block."""

    class Graph(torch.cuda.CUDAGraph):
        """A CUDA graph whose replays compute."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self._recording = Recording(gpu.default_generator.continued)

        def capture_begin(self, *args: Any, **kwargs: Any) -> None:
            super().capture_begin(*args, **kwargs)
            gpu.recorder = self._recording

        def capture_end(self) -> None:
            gpu.recorder = None
            super().capture_end()

        def register_generator_state(self, generator: torch.Generator) -> None:
            self._recording.generators.add(generator)

        def replay(self) -> None:
            gpu.operations[gpu.phase]["a graph's replay"] += 1
            self._recording.replay()

    with mock.patch.object(torch.cuda, "CUDAGraph", Graph):
        yield


def _completed(call: HostCall, seed: int, offset: int) -> Any:
    """Return the result of an operation, for which a message between processes waits."""
    result = call(seed, offset)
    if call.func.namespace == _MESSAGES:
        result[1].wait()
    return result


def _with_constants(call: HostCall, originals: dict[int, Tensor]) -> HostCall:
    """Return the operation with copies of the numbers in CPU tensors, which a graph holds as arguments of its kernels."""

    def constant(value: Any) -> Any:
        is_number = isinstance(value, Tensor) and value.ndim == 0 and id(value) not in originals and not value.is_pinned()
        return value.clone() if is_number else value

    kwargs = {name: map_nested(constant, value) for name, value in call.kwargs.items()}
    return replace(call, args=map_nested(constant, call.args), kwargs=kwargs)


def _without_effects(call: HostCall, originals: dict[int, Tensor]) -> HostCall:
    """Return the operation on copies of the operands that it writes into, and add these copies to ``originals``."""
    schema = call.func._schema
    written = {each.name for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write}
    written |= _UNDECLARED_WRITES.get(schema.name, set())
    if call.func.namespace == _MESSAGES:  # all ranks rehearse
        written = {each.name for each in schema.arguments}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        copy = value.clone()
        originals[id(copy)] = originals.get(id(value), value)
        return copy

    def harmless(name: str, value: Any) -> Any:
        return map_nested(copied, value) if name in written else value

    args = [harmless(argument.name, value) for argument, value in zip(schema.arguments, call.args, strict=False)]
    return replace(call, args=args, kwargs={name: harmless(name, value) for name, value in call.kwargs.items()})
