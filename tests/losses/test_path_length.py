import math

import pytest
import torch
from errors import raises
from torch import nn

from genimg.losses import path_length
from genimg.losses.path_length import PathLength
from genimg.networks.conditioning import Unconditional
from genimg.networks.stylegan2 import Generator


class LinearGenerator(nn.Module):
    """Styles are the latent times a factor, images linear in the styles: G(w) = sum_l w_l A_l."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.matrices = nn.Parameter(torch.randn(3, 4, 2, 5, 6))  # [L, W, C, H, W]
        self.latents = []

    def map_latents(self, latent, condition):
        self.latents.append((latent, condition))
        return (self.factor * latent)[:, None].expand(-1, 3, -1)

    def synthesize(self, styles):
        return torch.einsum("nlw,lwchv->nchv", styles, self.matrices)


LATENT = torch.linspace(-1, 1, 24).view(6, 4)
CONDITION = torch.arange(6)


def penalty_of(**changes):
    return PathLength(**{"weight": 2.0, "decay": 0.25, "batch_shrink": 1, "interval": 4} | changes)


def lengths_by_hand(generator, count, seed):
    """||J^T y|| with J known: A_l y for each layer, the root of the mean over layers of its squared norm."""
    torch.manual_seed(seed)
    noise = torch.randn(count, 2, 5, 6) / math.sqrt(30)
    products = [(generator.matrices.flatten(2) @ y.flatten()).square().sum(dim=1) for y in noise]  # each [L]
    return torch.stack([product.mean().sqrt() for product in products])


def seeded(penalty, generator, seed):
    torch.manual_seed(seed)
    return penalty(generator, LATENT, CONDITION)


def test_penalty_and_average_of_a_linear_generator_equal_hand_computation():
    generator, penalty = LinearGenerator(), penalty_of()
    average = 0.0
    for seed in (1, 2, 3):
        lengths = lengths_by_hand(generator, 6, seed).detach()
        average = 0.75 * average + 0.25 * lengths.mean().item()
        value, metrics = seeded(penalty, generator, seed)
        assert value.shape == ()
        assert value.item() == pytest.approx(2.0 * (lengths - average).square().mean().item(), rel=1e-5)
        assert metrics["path_length/mean"].item() == pytest.approx(lengths.mean().item(), rel=1e-5)
        assert metrics["path_length/average"].item() == pytest.approx(average, rel=1e-5)
        assert penalty.state_dict()["average"].item() == pytest.approx(average, rel=1e-5)


def test_the_gradient_is_that_of_the_formula_with_a_constant_average():
    generator, penalty = LinearGenerator(), penalty_of()
    value, _ = seeded(penalty, generator, 1)
    (actual,) = torch.autograd.grad(value, generator.matrices)
    formula = 2.0 * (lengths_by_hand(generator, 6, 1) - penalty.average.item()).square().mean()
    (expected,) = torch.autograd.grad(formula, generator.matrices)
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_lengths_of_orthogonal_maps_are_close_to_what_the_paper_expects():
    """With J^T J = s^2 I, E||J^T y||^2 = s^2 W for y ~ N(0, I), and here 1/30 of it for 30 pixels."""
    generator = LinearGenerator()
    rows, _ = torch.linalg.qr(torch.randn(60, 12))
    generator.matrices = nn.Parameter(3.0 * rows.t().reshape(3, 4, 2, 5, 6))
    lengths = torch.cat([lengths_by_hand(generator, 6, seed) for seed in range(300)])
    assert lengths.square().mean().item() == pytest.approx(9.0 * 4 / 30, rel=0.05)  # 1,800 chi-squared values
    means = [seeded(penalty_of(), generator, seed)[1]["path_length/mean"] for seed in range(300)]
    assert torch.stack(means).mean().item() == pytest.approx(lengths.mean().item(), rel=1e-4)


@pytest.mark.parametrize(("batch_shrink", "count"), [(1, 6), (2, 3), (4, 1), (100, 1)])
def test_a_part_of_the_batch_is_used(batch_shrink, count):
    generator = LinearGenerator()
    _, metrics = seeded(penalty_of(batch_shrink=batch_shrink), generator, 1)
    ((latent, condition),) = generator.latents
    assert torch.equal(latent, LATENT[:count])
    assert torch.equal(condition, CONDITION[:count])
    assert metrics["path_length/mean"].item() == pytest.approx(lengths_by_hand(generator, count, 1).mean().item(), rel=1e-5)


def test_the_average_is_that_of_all_processes(monkeypatch):
    generator, penalty = LinearGenerator(), penalty_of()
    monkeypatch.setattr(path_length, "sum_over_ranks", lambda tensor: tensor + 5.0)
    monkeypatch.setattr(path_length, "world_size", lambda: 2)
    value, metrics = seeded(penalty, generator, 1)
    lengths = lengths_by_hand(generator, 6, 1).detach()
    mean = (lengths.mean().item() + 5.0) / 2
    assert metrics["path_length/mean"].item() == pytest.approx(mean, rel=1e-5)
    assert value.item() == pytest.approx(2.0 * (lengths - 0.25 * mean).square().mean().item(), rel=1e-5)


def stylegan2():
    torch.manual_seed(0)
    return Generator(
        latent_dim=6,
        condition=Unconditional(),
        normalisation="modulation",
        image_size=16,
        channels=3,
        style_dim=5,
        num_mapping_layers=2,
        channel_base=64,
        channel_max=8,
        style_mixing=0.9,
        style_average_decay=0.9,
        conv_clamp=256.0,
    )


def test_stylegan2_learns_from_it_and_precision_does_not_change_it():
    generator = stylegan2()
    latent, condition = torch.randn(4, 6), torch.zeros(4, 0)
    penalty_of().check(generator)
    torch.manual_seed(1)
    expected, _ = penalty_of()(generator, latent, condition)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        actual, metrics = penalty_of()(generator, latent, condition)
    assert torch.equal(actual, expected)
    assert not any(metric.requires_grad for metric in metrics.values())
    actual.backward()
    without = {name for name, parameter in generator.named_parameters() if parameter.grad is None}
    # What is added behind the styles changes no derivative, but for the leaky ReLUs that it switches.
    assert without == {"blocks.0.to_image.bias", "blocks.1.to_image.bias", "blocks.2.to_image.bias"}
    assert generator.styles[0].weight.grad.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: penalty_of(weight=0.0), "weight=0.0"),
        (lambda: penalty_of(decay=0.0), "decay=0.0"),
        (lambda: penalty_of(decay=1.5), "decay=1.5"),
        (lambda: penalty_of(batch_shrink=0), "batch_shrink=0"),
        (lambda: penalty_of(interval=0), "interval=0"),
        (lambda: penalty_of().check(nn.Linear(2, 2)), "generator=torch.nn.modules.linear.Linear"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with raises(ValueError, message):
        make()
