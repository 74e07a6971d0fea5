"""Streams of torch's random numbers: switch between them, and draw the same numbers again, also within CUDA graphs.

Most of torch's operations draw from default generators, so a stream is what these continue for a while. On the host, and on
MPS, this copies the generators' states. During the capture of a CUDA graph, a CUDA generator has no state that could be copied.
Its state is therefore exchanged for that of another generator, which the graph has registered.
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
        self._of_gpu = _default_generator(device).clone_state() if device.type == "cuda" else None
        self._seed = 0
        self._states: list[Tensor] = []  # of generators whose states are copied; empty at the beginning of the stream

    def restart(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self._seed, self._states = seed, []
        if self._of_gpu is not None:
            self._of_gpu.manual_seed(seed)

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Continue the stream within the block, and then what was continued before."""
        if self._of_gpu is None:
            with self._drawing_by_copies():
                yield
            return
        if _notes is not None and self._of_gpu not in _notes.streams:
            _notes.streams.append(self._of_gpu)
        with _continued(self._of_gpu, self._device):
            if torch.cuda.is_current_stream_capturing():  # numbers of the host would be the same in each replay
                yield
            else:
                with self._drawing_by_copies():
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
    """The current position in the current stream, from which numbers can be drawn again.

    Args:
        device: Device whose generator is used in addition to the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: list[Tensor] = []
        self._of_gpu: torch.Generator | None = None
        if device.type != "cuda":
            self._states = _copied_states(device)
        elif torch.cuda.is_current_stream_capturing():
            self._of_gpu = _generator_of_graph()
        else:
            self._states = _copied_states(device)
            current = _current_generator(device)
            self._of_gpu = current.clone_state()
            if _notes is not None:
                _notes.positions.append((current, current.get_offset()))

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Draw the numbers that follow the position within the block, and then go on as if these had not been drawn.

        Call it at most once.
        """
        with contextlib.ExitStack() as stack:
            if self._of_gpu is not None:
                stack.enter_context(_continued(self._of_gpu, self._device))
            if self._states:
                stack.callback(_restore, _copied_states(self._device), self._device)
                _restore(self._states, self._device)
            yield


@dataclass
class StepDraws:
    """What a step has used to draw numbers, from which graphs of such steps are made.

    Attributes:
        streams: CUDA generators of the streams, other than the default generator.
        positions: Generator and offset of each ``StreamPosition``, in order.
    """

    streams: list[torch.Generator] = field(default_factory=list)
    positions: list[tuple[torch.Generator, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is used within the block, which is not captured."""
        global _notes
        _notes = self
        try:
            yield
        finally:
            _notes = None


class GraphDraws:
    """The generators of a CUDA graph.

    Args:
        draws: What a step without a graph has used.

    Attributes:
        generators: Generators to register with the graph before its capture.
    """

    def __init__(self, draws: StepDraws) -> None:
        self._positions = [(generator, offset, generator.clone_state()) for generator, offset in draws.positions]
        self.generators = [*draws.streams, *(own for _, _, own in self._positions)]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Let each ``StreamPosition`` of the block, a capture, use one of the generators."""
        global _of_graph
        _of_graph = iter([own for _, _, own in self._positions])
        try:
            yield
        finally:
            _of_graph = iter(())

    def begin_replay(self) -> None:
        """Set the generators for a replay whose streams have been restarted."""
        for generator, offset, own in self._positions:
            own.manual_seed(generator.initial_seed()).set_offset(offset)


_notes: StepDraws | None = None
_of_graph: Iterator[torch.Generator] = iter(())
_continuing: list[torch.Generator] = []  # CUDA generators whose streams the default one continues, the last one now


def _generator_of_graph() -> torch.Generator:
    """Return the generator of the next position.

    Raises:
        RuntimeError: If the step without a graph had fewer positions.
    """
    generator = next(_of_graph, None)
    if generator is None:
        raise RuntimeError("the step draws random numbers again that the first such step did not draw again")
    return generator


@contextlib.contextmanager
def _continued(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    default = _default_generator(device)
    before = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    _continuing.append(generator)
    try:
        yield
    finally:
        _continuing.pop()
        default.graphsafe_set_state(before)


def _current_generator(device: torch.device) -> torch.Generator:
    return _continuing[-1] if _continuing else _default_generator(device)


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
