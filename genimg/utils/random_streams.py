"""Streams of torch's random numbers that can be switched and repeated, also in CUDA graphs.

Most of torch's operations draw from default generators. A stream temporarily replaces their state. On the host and on MPS, the
states are copied. A CUDA generator instead exchanges its state for that of another generator, because this can be captured in a
CUDA graph that has registered the other generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


class RandomStream:
    """A stream of random numbers of the CPU and a device.

    Args:
        device: Device whose generator is used in addition to the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = _default_generator(device).clone_state() if device.type == "cuda" else None
        self._seed = 0
        self._states: list[Tensor] = []  # copied states; empty at the beginning of the stream

    def restart(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self._seed, self._states = seed, []
        if self._generator is not None:
            self._generator.manual_seed(seed)

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this stream in the block; continue the previous one after it."""
        with contextlib.ExitStack() as stack:
            if self._generator is not None:
                if _record is not None and self._generator not in _record.streams:
                    _record.streams.append(self._generator)
                stack.enter_context(_continued(self._generator, self._generator, self._device))
            if not _is_capturing(self._device):  # numbers of the host would be the same in each replay
                stack.enter_context(self._drawing_by_copies())
            yield

    @contextlib.contextmanager
    def _drawing_by_copies(self) -> Iterator[None]:
        before = _copied_states(self._device)
        if self._states:
            _restore(self._states, self._device)
        else:
            torch.default_generator.manual_seed(self._seed)
            if self._device.type == "mps":
                torch.mps.manual_seed(self._seed)
        try:
            yield
        finally:
            self._states = _copied_states(self._device)
            _restore(before, self._device)


class StreamPosition:
    """The current position in the current stream, from which numbers can be drawn once more.

    Args:
        device: Device whose generator is used in addition to the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator: torch.Generator | None = None
        self._root: torch.Generator | None = None
        self._states: list[Tensor] = []
        if _is_capturing(device):
            self._generator = self._root = _generator_of_graph()
            return
        self._states = _copied_states(device)
        if device.type == "cuda":
            current, self._root = _continuing[-1] if _continuing else (_default_generator(device),) * 2
            self._generator = current.clone_state()
            if _record is not None:
                _record.positions.append((self._root, current.get_offset()))

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Draw the numbers that follow the position in the block; continue after it as if they had not been drawn.

        Call it once at most.
        """
        with contextlib.ExitStack() as stack:
            if self._generator is not None and self._root is not None:
                stack.enter_context(_continued(self._generator, self._root, self._device))
            if self._states:
                stack.callback(_restore, _copied_states(self._device), self._device)
                _restore(self._states, self._device)
            yield


@dataclass
class StepDraws:
    """The CUDA generators and the positions that a step used.

    Attributes:
        streams: Generators of the streams, other than the default generator.
        positions: Generator of the stream and offset of each ``StreamPosition``, in order.
    """

    streams: list[torch.Generator] = field(default_factory=list)
    positions: list[tuple[torch.Generator, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what is used in the block, which is not captured."""
        global _record
        before, _record = _record, self
        try:
            yield
        finally:
            _record = before


class GraphDraws:
    """The generators of a CUDA graph.

    Args:
        draws: What a step without a graph used.

    Attributes:
        generators: Generators to register with the graph before its capture.
    """

    def __init__(self, draws: StepDraws) -> None:
        self._positions = [(generator, offset, generator.clone_state()) for generator, offset in draws.positions]
        self.generators = [*draws.streams, *(own for _, _, own in self._positions)]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Let each ``StreamPosition`` of the block, a capture, use one of the generators.

        Raises:
            RuntimeError: If the block has another number of positions than the step without a graph.
        """
        global _graph_generators
        before, _graph_generators = _graph_generators, iter([own for _, _, own in self._positions])
        try:
            yield
            if next(_graph_generators, None) is not None:
                raise RuntimeError(_DIFFERENT)
        finally:
            _graph_generators = before

    def begin_replay(self) -> None:
        """Set the generators for a replay whose streams have been restarted."""
        for generator, offset, own in self._positions:
            own.manual_seed(generator.initial_seed()).set_offset(offset)


_DIFFERENT = "the step repeats other random numbers than the first such step"
_record: StepDraws | None = None
_graph_generators: Iterator[torch.Generator] = iter(())
_continuing: list[tuple[torch.Generator, torch.Generator]] = []
"""Which generators replace the state of the default CUDA generator, the last one now, each with that of its whole stream."""


def _generator_of_graph() -> torch.Generator:
    """Return the generator of the next position.

    Raises:
        RuntimeError: If the step without a graph had fewer positions.
    """
    generator = next(_graph_generators, None)
    if generator is None:
        raise RuntimeError(_DIFFERENT)
    return generator


@contextlib.contextmanager
def _continued(generator: torch.Generator, root: torch.Generator, device: torch.device) -> Iterator[None]:
    default = _default_generator(device)
    before = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    _continuing.append((generator, root))
    try:
        yield
    finally:
        _continuing.pop()
        default.graphsafe_set_state(before)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _default_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()
    generators: tuple[torch.Generator, ...] = torch.cuda.default_generators
    return generators[torch.cuda.current_device() if device.index is None else device.index]


def _copied_states(device: torch.device) -> list[Tensor]:
    """Return the states of the CPU's and of an MPS device's generator."""
    return [torch.get_rng_state(), *([torch.mps.get_rng_state()] if device.type == "mps" else [])]


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "mps":
        torch.mps.set_rng_state(states[1])
