import math

import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.losses.likelihoods import Gaussian
from genimg.losses.mmd import MMDLoss, unbiased_mmd


def normal(count: int, dim: int, seed: int, *, shift: float = 0.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype) + shift


def by_loops(x: list[list[float]], y: list[list[float]]) -> float:
    """Algorithm 2 of Tolstikhin et al. 2018 without lambda, pair by pair, with the kernels of the authors' code."""

    def kernel(one: list[float], other: list[float]) -> float:
        distance = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        constants = [2 * len(one) * scale for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
        return sum(constant / (constant + distance) for constant in constants)

    n, m, total = len(x), len(y), 0.0
    total += sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    total += sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return total - 2 / (n * m) * sum(kernel(a, b) for a in x for b in y)


@pytest.mark.parametrize(("n", "m", "dim", "shift"), [(2, 2, 1, 0.0), (7, 5, 3, 0.4), (6, 6, 8, 2.0)])
def test_it_is_the_papers_sum_over_pairs(n, m, dim, shift):
    x, y = normal(n, dim, 0), normal(m, dim, 1, shift=shift)
    expected = by_loops(x.tolist(), y.tolist())
    assert unbiased_mmd(x, y).item() == pytest.approx(expected, rel=1e-12)
    assert unbiased_mmd(x.float(), y.float()).item() == pytest.approx(expected, rel=1e-4)


def test_it_is_unbiased():
    """Between equal distributions its mean is 0, to five standard errors."""
    values = torch.stack([unbiased_mmd(normal(4, 3, 2 * trial), normal(4, 3, 2 * trial + 1)) for trial in range(1000)])
    error = values.std().item() / 1000**0.5
    assert abs(values.mean().item()) < 5 * error < 0.2
    assert (values < 0).any()


def test_it_is_about_as_large_from_few_samples_as_from_many():
    small = torch.stack([unbiased_mmd(normal(5, 2, 2 * i), normal(5, 2, 2 * i + 1, shift=1.0)) for i in range(500)])
    large = unbiased_mmd(normal(500, 2, 0), normal(500, 2, 1, shift=1.0))
    assert small.mean().item() == pytest.approx(large.item(), abs=5 * small.std().item() / 500**0.5 + 0.1)


def test_its_gradient_is_that_of_finite_differences():
    y = normal(4, 2, 1, shift=0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: unbiased_mmd(normal(5, 2, 0), value), (y,))


def test_the_gradient_exists_where_samples_coincide():
    latent = torch.zeros(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(unbiased_mmd(normal(4, 3, 0, dtype=torch.float32), latent), latent)
    assert gradient.isfinite().all()


def test_autocast_does_not_reach_it():
    x, y = normal(6, 3, 0, dtype=torch.float32), normal(6, 3, 1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = unbiased_mmd(x, y)
    assert torch.equal(inside, unbiased_mmd(x, y))


class Doubling(nn.Module):
    """Decodes a latent [N, 4] as an image of 2x2 pixels."""

    def forward(self, latent, condition):
        return 2 * latent.unflatten(1, (1, 2, 2))


def test_the_loss_is_the_squared_error_and_lambda_times_the_mmd():
    loss = MMDLoss(likelihood=Gaussian(scale=0.5**0.5, learnt=False), mmd_weight=7.0)
    latent, image = normal(5, 4, 0, dtype=torch.float32), torch.rand(5, 1, 2, 2) * 2 - 1
    torch.manual_seed(3)
    total, parts = loss(image, latent, Doubling(), torch.empty(5, 0))
    torch.manual_seed(3)
    mmd = by_loops(torch.randn(5, 4).tolist(), latent.tolist())
    squared = ((2 * latent.view(5, 1, 2, 2)).tanh() - image).square().sum().item() / 5
    assert parts["squared_error"].item() == pytest.approx(squared, rel=1e-5)
    assert parts["reconstruction_nats"].item() == pytest.approx(squared + 4 * 0.5 * math.log(math.pi), rel=1e-5)
    assert parts["mmd"].item() == pytest.approx(mmd, rel=1e-4)
    assert total.item() == pytest.approx(parts["reconstruction_nats"].item() + 7 * mmd, rel=1e-4)


def test_a_single_image_is_refused():
    with raises(ConfigError, word="microbatch"):
        unbiased_mmd(torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_none_is_refused(weight):
    with raises(ValueError, "mmd_weight", word="above"):
        MMDLoss(likelihood=Gaussian(scale=1.0, learnt=False), mmd_weight=weight)
