from __future__ import annotations

import pytest
import torch

from genimg.training import step_rng as noise_module
from genimg.training.step_rng import Noise
from genimg.utils.rng import Stream, seed_of

CPU = torch.device("cpu")


def draws(noise, step, order):
    """Three numbers for each visit of a microbatch, by microbatch."""
    noise.begin(step)
    found = {}
    for number in order:
        with noise.of_microbatch(number):
            found.setdefault(number, []).append(torch.randn(3))
    return {number: torch.cat(parts) for number, parts in found.items()}


def test_a_single_microbatch_draws_from_the_steps_seed():
    drawn = draws(Noise(7, 1, CPU), 5, [0, 0])[0]
    torch.manual_seed(seed_of(7, Stream.STEP, 5))
    assert torch.equal(drawn, torch.randn(6))


def test_each_microbatch_has_a_stream_that_goes_on_whatever_the_others_draw():
    together = draws(Noise(7, 3, CPU), 5, [0, 1, 2, 0, 1, 2])
    for number in range(3):
        assert torch.equal(draws(Noise(7, 3, CPU), 5, [number, number])[number], together[number])
    assert len({tuple(values.tolist()) for values in together.values()}) == 3


def test_the_first_microbatch_draws_what_an_uncut_batch_draws():
    assert torch.equal(draws(Noise(7, 4, CPU), 5, [0])[0], draws(Noise(7, 1, CPU), 5, [0])[0])


@pytest.mark.parametrize(("seed", "step"), [(8, 5), (7, 6)])
def test_steps_and_seeds_have_noise_of_their_own(seed, step):
    one, other = draws(Noise(7, 2, CPU), 5, [0, 1]), draws(Noise(seed, 2, CPU), step, [0, 1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("own", [1, 2, 4])
def test_ranks_draw_what_one_rank_draws_with_all_their_microbatches(own, monkeypatch):
    alone = draws(Noise(3, 4, CPU), 9, range(4))
    for rank in range(4 // own):
        monkeypatch.setattr(noise_module, "rank", lambda rank=rank: rank)
        shared = draws(Noise(3, own, CPU), 9, range(own))
        for number in range(own):
            assert torch.equal(shared[number], alone[rank * own + number])


def test_a_step_does_not_depend_on_the_one_before():
    noise = Noise(7, 2, CPU)
    draws(noise, 4, [0, 1, 1])
    again = draws(noise, 5, [0, 1])
    fresh = draws(Noise(7, 2, CPU), 5, [0, 1])
    assert all(torch.equal(again[number], fresh[number]) for number in fresh)
