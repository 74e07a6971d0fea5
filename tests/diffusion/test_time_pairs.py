import math

import pytest
import torch

from genimg.diffusion.time_pairs import LogitNormalPairs

KEYS = torch.arange(40_000) * 7919 + 13


def pairs(**changes):
    settings = {"mean": -0.6, "std": 1.6, "earlier_mean": -4.0, "earlier_std": 1.6, "ordering": "limit", "share": 0.75}
    return LogitNormalPairs(**(settings | changes))


def test_the_later_time_has_the_given_distribution_when_the_earlier_one_is_limited():
    later, earlier = pairs(share=1.0).at(KEYS)
    assert torch.logit(later).mean().item() == pytest.approx(-0.6, abs=0.03)
    assert torch.logit(later).std().item() == pytest.approx(1.6, abs=0.03)
    assert (earlier <= later).all()
    # P(r >= t) of two normal logits: Phi(-3.4 / (1.6 sqrt 2)).
    expected = 0.5 * math.erfc(3.4 / (1.6 * math.sqrt(2)) / math.sqrt(2))
    assert (earlier == later).float().mean().item() == pytest.approx(expected, abs=0.005)
    below = earlier < later
    assert torch.logit(earlier[below]).mean().item() < -4.0


def test_swapped_times_are_the_larger_and_the_smaller_of_two():
    later, earlier = pairs(mean=-2.0, std=2.0, earlier_mean=-2.0, earlier_std=2.0, ordering="swap", share=1.0).at(KEYS)
    assert (earlier < later).float().mean().item() > 0.999
    # The mean of the larger of two normal numbers is mean + std / sqrt(pi).
    assert torch.logit(later).mean().item() == pytest.approx(-2.0 + 2.0 / math.sqrt(math.pi), abs=0.04)
    assert torch.logit(earlier).mean().item() == pytest.approx(-2.0 - 2.0 / math.sqrt(math.pi), abs=0.04)


def test_a_share_of_the_samples_has_two_times():
    later, earlier = pairs(ordering="swap", share=0.25).at(KEYS)
    assert (earlier < later).float().mean().item() == pytest.approx(0.25, abs=0.01)
    later, earlier = pairs(share=0.0).at(KEYS)
    assert torch.equal(later, earlier)


def test_times_are_functions_of_the_key_alone():
    whole, part = pairs().at(KEYS), pairs().at(KEYS[100:120])
    torch.testing.assert_close(whole.later[100:120], part.later)
    torch.testing.assert_close(whole.earlier[100:120], part.earlier)


@pytest.mark.parametrize(("changes", "name"), [
    ({"std": 0.0}, "std=0"), ({"earlier_std": -1.0}, "earlier_std=-1"), ({"ordering": "sort"}, "ordering=sort"),
    ({"share": 1.5}, "share=1.5"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        pairs(**changes)
