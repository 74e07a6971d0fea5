import math

import numpy as np
import pytest
import torch
from errors import raises
from scipy import stats

from genimg.losses import adversarial as losses
from genimg.losses.adversarial import AdversarialLoss, AuxiliaryClassification

REAL = torch.tensor([-2.5, -0.3, 0.0, 0.9, 1.0, 4.0], dtype=torch.float64)
FAKE = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 2.2], dtype=torch.float64)


def d(logits: torch.Tensor) -> torch.Tensor:
    """The probability that the discriminator gives to "real"."""
    return torch.sigmoid(logits)


DISCRIMINATOR_FORMULAS = {
    losses.cross_entropy_discriminator_loss: lambda x, g: -torch.log(d(x)).mean() - torch.log(1 - d(g)).mean(),
    losses.least_squares_discriminator_loss: lambda x, g: 0.5 * ((x - 1) ** 2).mean() + 0.5 * (g**2).mean(),
    losses.hinge_discriminator_loss: lambda x, g: (1 - x).clamp(min=0).mean() + (1 + g).clamp(min=0).mean(),
    losses.wasserstein_discriminator_loss: lambda x, g: g.mean() - x.mean(),
    losses.relativistic_discriminator_loss: lambda x, g: -torch.log(d(x - g)).mean(),
    losses.relativistic_average_discriminator_loss: lambda x, g: (
        -torch.log(d(x - g.mean())).mean() - torch.log(1 - d(g - x.mean())).mean()
    ),
}
GENERATOR_FORMULAS = {
    losses.minimax_generator_loss: lambda g: torch.log(1 - d(g)).mean(),
    losses.nonsaturating_generator_loss: lambda g: -torch.log(d(g)).mean(),
    losses.least_squares_generator_loss: lambda g: 0.5 * ((g - 1) ** 2).mean(),
    losses.negated_generator_loss: lambda g: -g.mean(),
}
RELATIVISTIC_GENERATOR_FORMULAS = {  # of real and generated images
    losses.relativistic_generator_loss: lambda x, g: -torch.log(d(g - x)).mean(),
    losses.relativistic_average_generator_loss: lambda x, g: (
        -torch.log(1 - d(x - g.mean())).mean() - torch.log(d(g - x.mean())).mean()
    ),
}
OF_TWO_SIDES = DISCRIMINATOR_FORMULAS | RELATIVISTIC_GENERATOR_FORMULAS


def name(function: object) -> str:
    return function.__name__


@pytest.mark.parametrize("loss", OF_TWO_SIDES, ids=name)
def test_loss_of_both_sides_equals_its_formula(loss):
    expected = OF_TWO_SIDES[loss](REAL, FAKE)
    assert loss(REAL, FAKE).item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss(FAKE, REAL).item() != pytest.approx(expected.item(), rel=1e-3)  # real comes before fake


@pytest.mark.parametrize("loss", GENERATOR_FORMULAS, ids=name)
def test_generator_loss_equals_its_formula(loss):
    assert loss(FAKE).item() == pytest.approx(GENERATOR_FORMULAS[loss](FAKE).item(), rel=1e-12)


@pytest.mark.parametrize("loss", OF_TWO_SIDES, ids=name)
def test_gradients_of_a_loss_of_both_sides_equal_those_of_its_formula(loss):
    real, fake = REAL.clone().requires_grad_(), (FAKE + 0.01).requires_grad_()
    expected = torch.autograd.grad(OF_TWO_SIDES[loss](real + 0.01, fake), (real, fake))
    actual = torch.autograd.grad(loss(real + 0.01, fake), (real, fake))
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", GENERATOR_FORMULAS, ids=name)
def test_gradients_of_the_generator_loss_equal_those_of_its_formula(loss):
    fake = FAKE.clone().requires_grad_()
    (expected,) = torch.autograd.grad(GENERATOR_FORMULAS[loss](fake), fake)
    (actual,) = torch.autograd.grad(loss(fake), fake)
    assert torch.allclose(actual, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [*OF_TWO_SIDES, *GENERATOR_FORMULAS], ids=name)
def test_loss_is_a_scalar_mean_for_logits_of_any_shape(loss):
    arguments = (REAL, FAKE) if loss in OF_TWO_SIDES else (FAKE,)
    expected = loss(*arguments)
    patches = loss(*(logits.reshape(2, 1, 3) for logits in arguments))
    repeated = loss(*(logits.repeat(5) for logits in arguments))
    assert patches.shape == ()
    assert patches.item() == pytest.approx(expected.item(), rel=1e-12)
    assert repeated.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [*OF_TWO_SIDES, *GENERATOR_FORMULAS], ids=name)
def test_extreme_float32_logits_stay_finite_with_finite_gradients(loss):
    logits = [torch.tensor([-1e4, 0.0, 1e4], requires_grad=True) for _ in range(2 if loss in OF_TWO_SIDES else 1)]
    value = loss(*logits)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(each.grad).all() for each in logits)


def test_an_undecided_discriminator_has_the_loss_log_4():
    zeros = torch.zeros(3, dtype=torch.float64)
    assert losses.cross_entropy_discriminator_loss(zeros, zeros).item() == pytest.approx(math.log(4), rel=1e-12)


def test_the_optimal_discriminator_reaches_log_4_minus_twice_the_jensen_shannon_divergence():
    # Goodfellow et al. 2014, theorem 1, on two distributions over four points, as multisets of ten draws each.
    data, model = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 1, 2, 6])
    optimal = (data / model).double().log()
    loss = losses.cross_entropy_discriminator_loss(optimal.repeat_interleave(data), optimal.repeat_interleave(model))
    p, q = data.double() / 10, model.double() / 10
    middle = (p + q) / 2
    divergence = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
    assert loss.item() == pytest.approx(math.log(4) - 2 * divergence.item(), rel=1e-6)


def test_the_minimax_game_is_zero_sum_in_the_fakes():
    total = losses.cross_entropy_discriminator_loss(REAL, FAKE) + losses.minimax_generator_loss(FAKE)
    assert total.item() == pytest.approx(-torch.log(d(REAL)).mean().item(), rel=1e-12)


def test_only_the_nonsaturating_loss_has_a_gradient_when_the_discriminator_wins():
    logits = torch.tensor([-30.0], dtype=torch.float64, requires_grad=True)
    (saturated,) = torch.autograd.grad(losses.minimax_generator_loss(logits), logits)
    (nonsaturating,) = torch.autograd.grad(losses.nonsaturating_generator_loss(logits), logits)
    assert saturated.item() == pytest.approx(-math.exp(-30), rel=1e-6)
    assert nonsaturating.item() == pytest.approx(-1.0, rel=1e-6)


def test_the_hinge_loss_ignores_logits_beyond_the_margin():
    assert losses.hinge_discriminator_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -9.0])).item() == 0.0


def test_the_optimal_critic_reaches_minus_the_wasserstein_distance():
    """Of two samples on a line it rises where the data's distribution function is below the model's, and falls elsewhere."""
    data, model = REAL.numpy(), 2.0 * FAKE.numpy()
    corners = np.sort(np.concatenate([data, model]))
    rises = np.array([(data <= corner).mean() < (model <= corner).mean() for corner in corners[:-1]])
    assert 0 < rises.sum() < len(rises)
    heights = np.concatenate([[0.0], np.cumsum(np.where(rises, 1.0, -1.0) * np.diff(corners))])
    on_data, on_model = (torch.tensor(np.interp(side, corners, heights)) for side in (data, model))
    distance = stats.wasserstein_distance(data, model)
    assert losses.wasserstein_discriminator_loss(on_data, on_model).item() == pytest.approx(-distance, rel=1e-12)
    for slope in (1.0, -1.0, 0.3):  # other critics of slopes up to 1 are worse
        assert losses.wasserstein_discriminator_loss(slope * REAL, slope * 2.0 * FAKE).item() > -distance + 0.1


def test_only_differences_of_logits_count_where_real_and_generated_images_are_compared():
    for loss in (
        losses.wasserstein_discriminator_loss,
        losses.relativistic_discriminator_loss,
        losses.relativistic_average_discriminator_loss,
        *RELATIVISTIC_GENERATOR_FORMULAS,
    ):
        expected = loss(REAL, FAKE).item()
        assert loss(REAL + 5, FAKE + 5).item() == pytest.approx(expected, rel=1e-12)
        assert loss(REAL + 5, FAKE).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "undecided"),
    [
        (losses.relativistic_discriminator_loss, math.log(2)),
        (losses.relativistic_generator_loss, math.log(2)),
        (losses.relativistic_average_discriminator_loss, math.log(4)),
        (losses.relativistic_average_generator_loss, math.log(4)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_for_one_distribution_the_relativistic_losses_are_least_for_equal_logits(loss, undecided):
    zeros = torch.zeros(6, dtype=torch.float64)
    assert loss(zeros, zeros).item() == pytest.approx(undecided, rel=1e-12)
    # All pairs of one multiset of logits: softplus(t) + softplus(-t) is 2 log 2 at t = 0 and more elsewhere.
    logits = 0.01 * REAL
    pairs = loss(logits.repeat_interleave(6), logits.repeat(6)).item()
    assert pairs > undecided
    assert pairs == pytest.approx(undecided, rel=1e-3)


def test_a_decided_relativistic_discriminator_has_the_loss_0_and_its_generator_the_margin():
    real, fake = torch.full((4,), 30.0, dtype=torch.float64), torch.full((4,), -30.0, dtype=torch.float64)
    assert losses.relativistic_discriminator_loss(real, fake).item() == pytest.approx(0, abs=1e-20)
    assert losses.relativistic_generator_loss(real, fake).item() == pytest.approx(60, rel=1e-12)
    assert losses.relativistic_average_discriminator_loss(real, fake).item() == pytest.approx(0, abs=1e-20)
    assert losses.relativistic_average_generator_loss(real, fake).item() == pytest.approx(120, rel=1e-12)


def test_the_relativistic_generators_loss_is_the_discriminators_with_real_and_fake_exchanged():
    for of_discriminator, of_generator in (
        (losses.relativistic_discriminator_loss, losses.relativistic_generator_loss),
        (losses.relativistic_average_discriminator_loss, losses.relativistic_average_generator_loss),
    ):
        assert of_generator(REAL, FAKE).item() == pytest.approx(of_discriminator(FAKE, REAL).item(), rel=1e-12)
        # softplus(-t) - softplus(t) = -t: the two differ by the Wasserstein loss, which the average has twice.
        margin = of_discriminator(REAL, FAKE) - of_generator(REAL, FAKE)
        factor = 2 if "average" in name(of_discriminator) else 1
        assert margin.item() == pytest.approx(factor * losses.wasserstein_discriminator_loss(REAL, FAKE).item(), rel=1e-10)


def test_the_relativistic_loss_compares_pairs_and_the_average_one_does_not():
    turned = FAKE.roll(1)
    expected = losses.relativistic_discriminator_loss(REAL, FAKE).item()
    assert losses.relativistic_discriminator_loss(REAL, turned).item() != pytest.approx(expected, rel=1e-3)
    expected = losses.relativistic_average_discriminator_loss(REAL, FAKE).item()
    assert losses.relativistic_average_discriminator_loss(REAL, turned).item() == pytest.approx(expected, rel=1e-12)
    several = losses.relativistic_average_discriminator_loss(REAL, FAKE.repeat(3))  # sides of different lengths
    assert several.item() == pytest.approx(expected, rel=1e-12)


def test_a_pair_is_neither_relativistic_nor_unbounded_unless_it_says_so():
    pair = AdversarialLoss(discriminator=losses.hinge_discriminator_loss, generator=losses.negated_generator_loss)
    assert not pair.relativistic
    assert not pair.unbounded


@pytest.mark.parametrize("weight", ["real_weight", "fake_weight", "generator_weight"])
def test_weights_of_an_auxiliary_classifier_are_not_negative(weight):
    weights = {"real_weight": 1.0, "fake_weight": 0.5, "generator_weight": 0.25}
    built = AuxiliaryClassification(**weights | {weight: 0.0})
    assert {each: getattr(built, each) for each in weights} == weights | {weight: 0.0}
    with raises(ValueError, f"{weight}=-0.5"):
        AuxiliaryClassification(**weights | {weight: -0.5})


def test_a_pair_of_losses_is_built_by_name_only():
    pair = AdversarialLoss(discriminator=losses.hinge_discriminator_loss, generator=losses.negated_generator_loss)
    assert pair.discriminator(REAL, FAKE) == losses.hinge_discriminator_loss(REAL, FAKE)
    assert pair.generator(FAKE) == losses.negated_generator_loss(FAKE)
    with pytest.raises(TypeError):
        AdversarialLoss(losses.hinge_discriminator_loss, losses.negated_generator_loss)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discriminator": lambda real, fake: real - fake}, "returns"),
        ({"generator": lambda fake: None}, "NoneType"),
        ({"generator": lambda fake: 0.5}, "float"),
        ({"generator": lambda fake: torch.zeros(())}, "constant"),
        ({"discriminator": lambda real: real.mean()}, "function"),
        ({"relativistic": True}, "function"),
    ],
)
def test_functions_that_are_no_losses_are_refused(changes, words):
    pair = {"discriminator": losses.hinge_discriminator_loss, "generator": losses.negated_generator_loss}
    with raises(ValueError, word=words):
        AdversarialLoss(**(pair | changes))


def test_functions_are_tried_without_a_trace():
    drawn = []

    def noisy(fake):
        drawn.append(torch.rand(()))
        return (fake + drawn[-1]).mean()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.inference_mode():
        AdversarialLoss(discriminator=losses.hinge_discriminator_loss, generator=noisy)
    assert drawn
    assert torch.equal(torch.rand(3), expected)
    pair = {"discriminator": losses.hinge_discriminator_loss, "generator": lambda fake: fake.mean((1, 2, 3)).mean()}
    AdversarialLoss(**pair)  # for logits of another shape
    AdversarialLoss(**(pair | {"generator": torch.mean}))  # of compiled code, without a signature
