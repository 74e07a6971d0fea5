"""Distances from the target against numpy, and loops over pixels where a mask weighs them."""

import math

import numpy as np
import pytest
import torch

from genimg.errors import ConfigError
from genimg.losses.reconstruction import KINDS, ReconstructionLoss

EPSILON = 0.25  # large, so that a missing square of it would be seen
DISTANCES = {"l1": abs, "l2": lambda d: d * d, "charbonnier": lambda d: math.sqrt(d * d + EPSILON * EPSILON)}


def loss(kind: str = "l1", *, epsilon: float = EPSILON, known_weight: float = 1.0) -> ReconstructionLoss:
    return ReconstructionLoss(kind=kind, epsilon=epsilon if kind == "charbonnier" else None, known_weight=known_weight)


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def holes() -> torch.Tensor:
    """Of unlike sizes: 2 pixels of the first image, 12 of the second."""
    mask = torch.zeros(2, 1, 4, 5)
    mask[0, 0, 1, 2:4] = 1.0
    mask[1, 0, 1:, 1:] = 1.0
    return mask


OUTPUT, TARGET = images(1), images(2)


def by_hand(kind: str, mask: torch.Tensor, known_weight: float) -> float:
    """The mean over images, of one pixel after another, in Python's own numbers."""
    means = []
    for n in range(len(OUTPUT)):
        total, weights = 0.0, 0.0
        for c, y, x in np.ndindex(*OUTPUT.shape[1:]):
            weight = 1.0 if mask[n, 0, y, x] else known_weight
            total += weight * DISTANCES[kind](OUTPUT[n, c, y, x].item() - TARGET[n, c, y, x].item())
            weights += weight
        means.append(total / weights)
    return sum(means) / len(means)


def test_microbatches_of_unlike_holes_have_the_whole_batchs_mean():
    whole = loss(known_weight=0.0)(OUTPUT, TARGET, holes())
    parts = [loss(known_weight=0.0)(OUTPUT[i : i + 1], TARGET[i : i + 1], holes()[i : i + 1]) for i in range(2)]
    assert whole.item() == pytest.approx(sum(parts).item() / 2, rel=1e-6)


def test_every_kind_is_tested():
    assert set(DISTANCES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mask_it_is_numpys_mean(kind):
    d = OUTPUT.double().numpy() - TARGET.double().numpy()
    expected = {"l1": np.abs(d), "l2": d**2, "charbonnier": np.sqrt(d**2 + EPSILON**2)}[kind].mean()
    value = loss(kind)(OUTPUT, TARGET)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known_weight", [0.0, 1.0, 1 / 6, 3.0])
def test_a_mask_weighs_pixels(kind, known_weight):
    value = loss(kind, known_weight=known_weight)(OUTPUT, TARGET, holes())
    assert value.item() == pytest.approx(by_hand(kind, holes(), known_weight), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_1_are_the_plain_mean_and_of_0_that_of_the_holes(kind):
    plain = loss(kind)(OUTPUT, TARGET).item()
    assert loss(kind)(OUTPUT, TARGET, holes()).item() == pytest.approx(plain, rel=1e-6)
    alone = holes().expand_as(OUTPUT) > 0
    inside = sum(loss(kind)(OUTPUT[i][alone[i]], TARGET[i][alone[i]]).item() for i in range(2)) / 2
    assert loss(kind, known_weight=0.0)(OUTPUT, TARGET, holes()).item() == pytest.approx(inside, rel=1e-6)
    assert abs(inside / plain - 1) > 0.01


def test_one_to_six_for_the_holes_is_liu_et_als_sum_of_two_means():
    """Their equation 7 has 1 of L_valid and 6 of L_hole, both sums over the same number of pixels."""
    d, missing = (OUTPUT - TARGET).abs().double(), holes().double()
    valid, hole = (each.mean(dim=(1, 2, 3)) for each in ((1 - missing) * d, missing * d))
    expected = ((valid + 6 * hole) / (1 + 5 * missing.mean(dim=(1, 2, 3)))).mean()
    assert loss(known_weight=1 / 6)(OUTPUT, TARGET, holes()).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known_weight", [0.0, 1 / 6])
def test_the_gradient_is_that_of_the_weighted_mean(kind, known_weight):
    output, mask = OUTPUT.clone().requires_grad_(), holes()
    loss(kind, known_weight=known_weight)(output, TARGET, mask).backward()
    d = (OUTPUT - TARGET).double()
    slope = {"l1": d.sign(), "l2": 2 * d, "charbonnier": d / (d**2 + EPSILON**2).sqrt()}[kind]
    weight = torch.where(mask > 0, 1.0, known_weight).double()
    expected = weight * slope / (weight.sum(dim=(1, 2, 3), keepdim=True) * 3) / 2
    assert torch.allclose(output.grad.double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, holes()], ids=["whole", "masked"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("target", [TARGET, TARGET.bfloat16()], ids=["float32", "bf16"])
def test_bf16_outputs_are_measured_in_float32(kind, mask, autocast, target):
    output = OUTPUT.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(kind, known_weight=1.0 if mask is None else 0.25)(output, target, mask)
    assert value.dtype == torch.float32
    d = output.double() - target.double()
    each = {"l1": d.abs(), "l2": d**2, "charbonnier": (d**2 + EPSILON**2).sqrt()}[kind]
    weight = torch.ones(2, 1, 1, 1) if mask is None else torch.where(mask > 0, 1.0, 0.25)
    weight = weight.double().expand_as(each)
    expected = ((weight * each).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_charbonnier_of_no_difference_is_epsilon_with_gradient_0():
    output = TARGET.clone().requires_grad_()
    value = loss("charbonnier", epsilon=1e-3)(output, TARGET)
    value.backward()
    assert value.item() == pytest.approx(1e-3, rel=1e-5)
    assert not output.grad.any()


def test_masks_without_holes_ask_for_nothing_where_known_pixels_weigh_0():
    assert loss(known_weight=0.0)(OUTPUT, TARGET, torch.zeros(2, 1, 4, 5)).item() == 0.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "l3"}, "kind=l3 is unknown: choose one of l1, l2, charbonnier"),
        ({"kind": "charbonnier", "epsilon": 0.0}, r"epsilon=0\.0 must be above 0"),
        ({"kind": "charbonnier", "epsilon": -1e-3}, r"epsilon=-0\.001 must be above 0"),
        ({"known_weight": -0.5}, r"known_weight=-0\.5 must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        loss(**settings)


@pytest.mark.parametrize(("kind", "epsilon"), [("l1", 1e-3), ("l2", 1e-3), ("charbonnier", None)])
def test_an_epsilon_is_charbonniers_alone(kind, epsilon):
    with pytest.raises(ValueError, match=f"^epsilon=.* does not match kind={kind}: charbonnier needs a number"):
        ReconstructionLoss(kind=kind, epsilon=epsilon, known_weight=1.0)


def test_a_weight_of_known_pixels_needs_masks():
    with pytest.raises(ConfigError, match=r"^known_weight=0\.5 has no effect without masks: set it to 1"):
        loss(known_weight=0.5)(OUTPUT, TARGET)
