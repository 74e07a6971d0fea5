"""Training steps as CUDA graphs: all kernels of a step are launched at once, so the host no longer limits small networks.

A graph repeats the operations with which it was captured. Whatever changes from step to step is therefore an input of the
graph: the batch is copied into buffers that stay in place, numbers are kept on the device (training/step_numbers.py), and the
generators from which the graph takes random numbers are set before each step. Where Python decides by the progress of the
training, each combination of answers has its own graph.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from genimg.errors import first_line, is_memory_full
from genimg.types import Batch, Progress
from genimg.utils.random_streams import GraphDraws, StepDraws

log = logging.getLogger(__name__)

Work = Callable[[Batch, Progress], Sequence[str]]
"""Everything that a step does on the device. Returns the names of its metrics."""


@dataclass
class Questions:
    """What a step asked about the progress of the training.

    Attributes:
        answers: Answers of ``due`` and ``reached``, by method and argument.
        reads_number: Whether the step read a number.
    """

    answers: dict[tuple[str, int], bool] = field(default_factory=dict)
    reads_number: bool = False


class WatchedProgress(Progress):
    """A Progress that records what it is asked."""

    _progress: Progress
    _questions: Questions

    def __init__(self, progress: Progress, questions: Questions) -> None:
        for name, value in (("_progress", progress), ("_questions", questions), ("batch_size", progress.batch_size)):
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def images(self) -> int:
        self._questions.reads_number = True
        return self._progress.images

    def due(self, interval: int) -> bool:
        return self._asked("due", interval)

    def reached(self, images: int) -> bool:
        return self._asked("reached", images)

    def _asked(self, question: str, number: int) -> bool:
        answer = self._questions.answers[question, number] = _answer(self._progress, question, number)
        return answer


def _answer(progress: Progress, question: str, number: int) -> bool:
    return progress.due(number) if question == "due" else progress.reached(number)


@dataclass
class _Kind:
    """Steps that run the same operations, because their questions about the progress have the same answers.

    Attributes:
        answers: Questions that such a step asks, with their answers.
        zeros: Which scheduled numbers are 0.
        names: Names of the step's metrics.
        draws: What the first step drew its random numbers from.
        graph: The captured step; None before the capture, or if there is none.
        graph_draws: Generators of the graph.
        is_eager: Whether it cannot be captured.
    """

    answers: dict[tuple[str, int], bool]
    zeros: tuple[bool, ...]
    names: Sequence[str]
    draws: StepDraws
    graph: torch.cuda.CUDAGraph | None = None
    graph_draws: GraphDraws | None = None
    is_eager: bool = False

    def includes(self, progress: Progress, zeros: tuple[bool, ...]) -> bool:
        return zeros == self.zeros and all(_answer(progress, *asked) == answer for asked, answer in self.answers.items())


class StepGraphs:
    """Runs training steps as CUDA graphs.

    The first step of a kind runs normally, which also creates what is created once, such as the optimizers' state. The second
    is captured. All graphs share one stream, on which the caller must run everything else, too, and one pool of memory.

    Args:
        work: See ``Work``.
        device: CUDA device.
        abandon: Function that forgets what a step has begun, such as messages, after a capture that failed in its midst.

    Attributes:
        reasons: Why steps could not be captured.
    """

    def __init__(self, work: Work, device: torch.device, *, abandon: Callable[[], None]) -> None:
        self._work = work
        self._abandon = abandon
        self.stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._kinds: list[_Kind] = []
        self._inputs: Batch = {}
        self._captured: list[torch.cuda.CUDAGraph] = []
        self.reasons: set[str] = set()

    def run(self, batch: Batch, progress: Progress, zeros: tuple[bool, ...]) -> Sequence[str]:
        """Run a step and return the names of its metrics.

        Args:
            batch: Batch of the step, the same shapes in every step.
            progress: Progress of the training.
            zeros: Which scheduled numbers are 0 in this step.
        """
        batch = self._in_place(batch)
        kind = next((each for each in self._kinds if each.includes(progress, zeros)), None)
        if kind is not None and kind.graph is None and not kind.is_eager:
            self._capture(kind, batch, progress)
        if kind is not None and kind.graph is not None:
            assert kind.graph_draws is not None
            kind.graph_draws.begin_replay()
            kind.graph.replay()
            return kind.names
        questions, draws = Questions(), StepDraws()
        with draws.recorded():
            names = self._work(batch, WatchedProgress(progress, questions))
        if kind is None:
            kind = _Kind(questions.answers, zeros, names, draws)
            self._kinds.append(kind)
            if questions.reads_number:
                self._refuse(kind, "the method computes with the number of images seen")
        return names

    def close(self) -> None:
        """Destroy the graphs. Messages that they contain would otherwise block the end of the process group."""
        for graph in self._captured:
            graph.reset()
        self._captured, self._kinds = [], []

    def _in_place(self, batch: Batch) -> Batch:
        """Copy a batch to where the graphs read it."""
        if not self._inputs:
            self._inputs = {key: value.clone() for key, value in batch.items()}
        else:
            torch._foreach_copy_(list(self._inputs.values()), [batch[key] for key in self._inputs])
        return dict(self._inputs)

    def _capture(self, kind: _Kind, batch: Batch, progress: Progress) -> None:
        graph = torch.cuda.CUDAGraph()
        self._captured.append(graph)  # also if it is refused: destroying it would free memory that other graphs use
        before, on_host = _host_states(), torch.default_generator.get_state()
        draws = GraphDraws(kind.draws)
        for generator in draws.generators:
            graph.register_generator_state(generator)
        reason = ""
        try:
            # Threads that pin memory or write files may use CUDA during the capture.
            mode = "thread_local"
            with draws.used(), torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode=mode):
                self._work(batch, WatchedProgress(progress, Questions()))
        except RuntimeError as error:  # an operation that cannot be captured, such as one that waits for the device
            if is_memory_full(error) and all(each.graph is None for each in self._kinds):
                raise  # at the start of a training; later, a step without a graph is better than none
            cause = error.__context__ or error  # leaving the capture reports that it has failed
            reason = first_line(cause)
        if not reason and before != _host_states():
            reason = "the step draws random numbers on the host"
        if reason:
            self._abandon()
            torch.default_generator.set_state(on_host)
            self._refuse(kind, reason)
        else:
            kind.graph, kind.graph_draws = graph, draws

    def _refuse(self, kind: _Kind, reason: str) -> None:
        kind.is_eager = True
        if reason not in self.reasons:
            self.reasons.add(reason)
            log.warning("some steps do not run as CUDA graphs: %s", reason)


def _host_states() -> tuple[Any, ...]:
    """Return comparable states of all generators on the host."""
    of_numpy = np.random.get_state(legacy=False)  # of the generator that np.random.rand uses
    return torch.default_generator.get_state().numpy().tobytes(), random.getstate(), str(of_numpy)


@contextlib.contextmanager
def on_stream_of(graphs: StepGraphs, device: torch.device) -> Iterator[None]:
    """Run the block on the stream of the graphs, after all earlier work and before all later work on the current stream.

    The graphs are closed at its end.
    """
    around = torch.cuda.current_stream(device)
    graphs.stream.wait_stream(around)
    try:
        with torch.cuda.stream(graphs.stream):
            yield
    finally:
        graphs.close()
        around.wait_stream(graphs.stream)
