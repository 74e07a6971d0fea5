import math

import pytest
import torch

from genimg.losses import adversarial as losses
from genimg.losses.adversarial import AdversarialLoss

REAL = torch.tensor([-2.5, -0.3, 0.0, 0.9, 1.0, 4.0], dtype=torch.float64)
FAKE = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 2.2], dtype=torch.float64)


def d(logits: torch.Tensor) -> torch.Tensor:
    """The probability that the discriminator gives to "real"."""
    return torch.sigmoid(logits)


DISCRIMINATOR_FORMULAS = {
    losses.cross_entropy_discriminator_loss: lambda x, g: -torch.log(d(x)).mean() - torch.log(1 - d(g)).mean(),
    losses.least_squares_discriminator_loss: lambda x, g: 0.5 * ((x - 1) ** 2).mean() + 0.5 * (g**2).mean(),
    losses.hinge_discriminator_loss: lambda x, g: (1 - x).clamp(min=0).mean() + (1 + g).clamp(min=0).mean(),
}
GENERATOR_FORMULAS = {
    losses.minimax_generator_loss: lambda g: torch.log(1 - d(g)).mean(),
    losses.nonsaturating_generator_loss: lambda g: -torch.log(d(g)).mean(),
    losses.least_squares_generator_loss: lambda g: 0.5 * ((g - 1) ** 2).mean(),
    losses.negated_generator_loss: lambda g: -g.mean(),
}


def name(function: object) -> str:
    return function.__name__


@pytest.mark.parametrize("loss", DISCRIMINATOR_FORMULAS, ids=name)
def test_discriminator_loss_equals_its_formula(loss):
    expected = DISCRIMINATOR_FORMULAS[loss](REAL, FAKE)
    assert loss(REAL, FAKE).item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss(FAKE, REAL).item() != pytest.approx(expected.item(), rel=1e-3)  # real comes before fake


@pytest.mark.parametrize("loss", GENERATOR_FORMULAS, ids=name)
def test_generator_loss_equals_its_formula(loss):
    assert loss(FAKE).item() == pytest.approx(GENERATOR_FORMULAS[loss](FAKE).item(), rel=1e-12)


@pytest.mark.parametrize("loss", DISCRIMINATOR_FORMULAS, ids=name)
def test_gradients_of_the_discriminator_loss_equal_those_of_its_formula(loss):
    real, fake = REAL.clone().requires_grad_(), (FAKE + 0.01).requires_grad_()
    expected = torch.autograd.grad(DISCRIMINATOR_FORMULAS[loss](real + 0.01, fake), (real, fake))
    actual = torch.autograd.grad(loss(real + 0.01, fake), (real, fake))
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", GENERATOR_FORMULAS, ids=name)
def test_gradients_of_the_generator_loss_equal_those_of_its_formula(loss):
    fake = FAKE.clone().requires_grad_()
    (expected,) = torch.autograd.grad(GENERATOR_FORMULAS[loss](fake), fake)
    (actual,) = torch.autograd.grad(loss(fake), fake)
    assert torch.allclose(actual, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [*DISCRIMINATOR_FORMULAS, *GENERATOR_FORMULAS], ids=name)
def test_loss_is_a_scalar_mean_for_logits_of_any_shape(loss):
    arguments = (REAL, FAKE) if loss in DISCRIMINATOR_FORMULAS else (FAKE,)
    expected = loss(*arguments)
    patches = loss(*(logits.reshape(2, 1, 3) for logits in arguments))
    repeated = loss(*(logits.repeat(5) for logits in arguments))
    assert patches.shape == ()
    assert patches.item() == pytest.approx(expected.item(), rel=1e-12)
    assert repeated.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [*DISCRIMINATOR_FORMULAS, *GENERATOR_FORMULAS], ids=name)
def test_extreme_float32_logits_stay_finite_with_finite_gradients(loss):
    logits = [torch.tensor([-1e4, 0.0, 1e4], requires_grad=True) for _ in range(2 if loss in DISCRIMINATOR_FORMULAS else 1)]
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


def test_a_pair_of_losses_is_built_by_name_only():
    pair = AdversarialLoss(discriminator=losses.hinge_discriminator_loss, generator=losses.negated_generator_loss)
    assert pair.discriminator(REAL, FAKE) == losses.hinge_discriminator_loss(REAL, FAKE)
    assert pair.generator(FAKE) == losses.negated_generator_loss(FAKE)
    with pytest.raises(TypeError):
        AdversarialLoss(losses.hinge_discriminator_loss, losses.negated_generator_loss)
