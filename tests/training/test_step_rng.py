from __future__ import annotations

import pytest
import torch

from genimg.training import update as update_module
from genimg.training.update import StepRNG
from genimg.utils.rng import Stream, seed_of

CPU = torch.device("cpu")


def draws(rng, step, order):
    """Three numbers for each visit of a microbatch, by microbatch."""
    rng.begin(step)
    found = {}
    for number in order:
        with rng.of_microbatch(number):
            found.setdefault(number, []).append(torch.randn(3))
    return {number: torch.cat(parts) for number, parts in found.items()}


def test_a_single_microbatch_draws_from_the_steps_seed():
    drawn = draws(StepRNG(7, 1, CPU), 5, [0, 0])[0]
    torch.manual_seed(seed_of(7, Stream.STEP, 5))
    assert torch.equal(drawn, torch.randn(6))


def test_each_microbatch_has_a_stream_that_goes_on_whatever_the_others_draw():
    together = draws(StepRNG(7, 3, CPU), 5, [0, 1, 2, 0, 1, 2])
    for number in range(3):
        assert torch.equal(draws(StepRNG(7, 3, CPU), 5, [number, number])[number], together[number])
    assert len({tuple(values.tolist()) for values in together.values()}) == 3


def test_the_first_microbatch_draws_what_an_uncut_batch_draws():
    assert torch.equal(draws(StepRNG(7, 4, CPU), 5, [0])[0], draws(StepRNG(7, 1, CPU), 5, [0])[0])


@pytest.mark.parametrize(("seed", "step"), [(8, 5), (7, 6)])
def test_steps_and_seeds_have_noise_of_their_own(seed, step):
    one, other = draws(StepRNG(7, 2, CPU), 5, [0, 1]), draws(StepRNG(seed, 2, CPU), step, [0, 1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("own", [1, 2, 4])
def test_ranks_draw_what_one_rank_draws_with_all_their_microbatches(own, monkeypatch):
    alone = draws(StepRNG(3, 4, CPU), 9, range(4))
    for rank in range(4 // own):
        monkeypatch.setattr(update_module, "rank", lambda rank=rank: rank)
        shared = draws(StepRNG(3, own, CPU), 9, range(own))
        for number in range(own):
            assert torch.equal(shared[number], alone[rank * own + number])


def test_a_step_does_not_depend_on_the_one_before():
    rng = StepRNG(7, 2, CPU)
    draws(rng, 4, [0, 1, 1])
    again = draws(rng, 5, [0, 1])
    fresh = draws(StepRNG(7, 2, CPU), 5, [0, 1])
    assert all(torch.equal(again[number], fresh[number]) for number in fresh)
