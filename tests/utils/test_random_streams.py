"""Streams of random numbers on the CPU. Those of CUDA graphs are tested on a pretended GPU (test_pretended_gpu.py)."""

import contextlib

import pytest
import torch
from torch import Tensor

from genimg.utils import random_streams
from genimg.utils.random_streams import GraphDraws, RandomStream, StepDraws, StreamPosition

CPU = torch.device("cpu")


def numbers_of(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_a_stream_has_the_numbers_of_its_seed_and_goes_on_after_other_draws() -> None:
    one, other = RandomStream(CPU), RandomStream(CPU)
    one.restart(1)
    other.restart(2)
    parts = []
    for stream, count in ((one, 3), (other, 4), (one, 2)):
        with stream.drawing():
            parts.append(torch.rand(count))
    assert torch.equal(torch.cat([parts[0], parts[2]]), numbers_of(1, 5))
    assert torch.equal(parts[1], numbers_of(2, 4))
    one.restart(1)
    with one.drawing():
        assert torch.equal(torch.rand(3), parts[0])


def test_numbers_outside_of_a_stream_are_as_without_it() -> None:
    stream = RandomStream(CPU)
    stream.restart(1)
    torch.manual_seed(7)
    first = torch.rand(2)
    with contextlib.suppress(KeyError), stream.drawing():
        torch.rand(5)
        raise KeyError
    assert torch.equal(torch.cat([first, torch.rand(3)]), numbers_of(7, 5))


def test_numbers_are_drawn_again_from_a_position_without_changing_later_ones() -> None:
    torch.manual_seed(7)
    torch.rand(2)
    position = StreamPosition(CPU)
    after = torch.rand(3)
    with position.repeated():
        assert torch.equal(torch.rand(3), after)
        torch.rand(9)
    assert torch.equal(torch.cat([after, torch.rand(2)]), numbers_of(7, 7)[2:])


def test_a_position_within_a_stream_belongs_to_it() -> None:
    stream = RandomStream(CPU)
    stream.restart(1)
    with stream.drawing():
        position = StreamPosition(CPU)
        drawn = torch.rand(3)
    torch.rand(5)
    with stream.drawing(), position.repeated():
        assert torch.equal(torch.rand(3), drawn)
    with stream.drawing():
        assert torch.equal(torch.rand(2), numbers_of(1, 5)[3:])


def test_a_graph_begins_its_own_generators_at_the_positions_of_the_step_that_it_repeats() -> None:
    class Generator:  # those of the CPU have no offsets
        def __init__(self, seed: int) -> None:
            self.seed, self.offset = seed, 0

        def initial_seed(self) -> int:
            return self.seed

        def manual_seed(self, seed: int) -> "Generator":
            self.seed, self.offset = seed, 0
            return self

        def set_offset(self, offset: int) -> None:
            self.offset = offset

        def clone_state(self) -> "Generator":
            return Generator(self.seed)

    stream, default = Generator(5), Generator(6)
    draws = GraphDraws(StepDraws([stream], [(stream, 8), (default, 0), (stream, 12)]))
    first, *copies = draws.generators
    assert first is stream
    stream.manual_seed(50)
    default.manual_seed(60)
    draws.begin_replay()
    assert [(copy.seed, copy.offset) for copy in copies] == [(50, 8), (60, 0), (50, 12)]


def test_a_capture_has_as_many_positions_as_the_first_step() -> None:
    with pytest.raises(RuntimeError), GraphDraws(StepDraws()).used():
        random_streams._generator_of_graph()
    one = StepDraws(positions=[(torch.Generator(), 0)])
    with pytest.raises(RuntimeError), GraphDraws(one).used():
        pass
    with GraphDraws(one).used():
        random_streams._generator_of_graph()
