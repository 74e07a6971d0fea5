"""Bridges: the noise of the papers, the posterior of I2SB, and what the network predicts."""

import itertools

import pytest
import torch

from genimg.diffusion.bridges import BrownianBridge, SchrodingerBridge
from genimg.diffusion.paths import StraightLine
from genimg.diffusion.predictions import ON_BRIDGES, prediction_of, require_fitting_prediction
from genimg.diffusion.samplers import Trajectory, _posterior_std, ancestral
from genimg.diffusion.times import LogNormalSigma, Uniform

BROWNIAN, I2SB = BrownianBridge(variance=2.0), SchrodingerBridge(beta_min=0.1, beta_max=0.3)
BRIDGES = pytest.mark.parametrize("path", [BROWNIAN, I2SB], ids=["brownian", "i2sb"])


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def i2sb_cumulated(count=100_000):
    """a^2 at equally spaced times: sums of the betas of the paper's code, whose root is linear, then mirrored."""
    rate = torch.linspace(0.1**0.5, 0.3**0.5, count, dtype=torch.float64)[: count // 2] ** 2
    return torch.cat([times(0.0), torch.cat([rate, rate.flip(0)]).cumsum(0) / count])


def test_i2sb_has_the_means_and_variances_of_the_paper():
    """Equation 11: mean (b^2 x + a^2 y) / (a^2 + b^2), variance a^2 b^2 / (a^2 + b^2), cumulated from either end."""
    a2 = i2sb_cumulated()
    b2 = a2[-1] - a2
    t = torch.linspace(0, 1, len(a2), dtype=torch.float64)
    torch.testing.assert_close(I2SB.scale(t), b2 / (a2 + b2), rtol=0, atol=1e-5)
    torch.testing.assert_close(I2SB.share(t), a2 / (a2 + b2), rtol=0, atol=1e-5)
    torch.testing.assert_close(I2SB.sigma(t).square(), a2 * b2 / (a2 + b2), rtol=0, atol=1e-6)
    assert I2SB.variance == pytest.approx(a2[-1].item(), rel=1e-4)


def test_bbdm_has_the_variance_of_the_paper():
    """Equation 6: 2 s (m - m^2) with s = 1, at most 0.5."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(BROWNIAN.sigma(t).square(), 2 * (t - t**2))
    torch.testing.assert_close(BROWNIAN.scale(t), 1 - t)


def test_the_posterior_of_a_step_is_that_of_i2sb():
    """Equation 4 of I2SB: with known image, x_u given x_t has variance a_u^2 (a_t^2 - a_u^2) / a_t^2."""
    a2, grid = i2sb_cumulated(), [0.9, 0.7, 0.4, 0.1, 0.0]
    run = Trajectory(I2SB, grid, lambda *_: None, lambda _: None, like=times(0.0))
    for step, (t, u) in enumerate(itertools.pairwise(grid)):
        at_t, at_u = (a2[round(each * (len(a2) - 1))] for each in (t, u))
        expected = at_u * (at_t - at_u) / at_t
        assert _posterior_std(run, step).square().item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-12)


@BRIDGES
def test_a_step_to_a_known_image_has_the_bridge_s_distribution(path):
    """From x_t of an image and its source, two ancestral steps with the true image give the mean and variance of x_u."""
    image, count, grid = 0.7, 200_000, [0.8, 0.5, 0.3]
    generator = torch.Generator().manual_seed(0)

    def normal(_):
        return torch.randn(count, dtype=torch.float64, generator=generator)

    run = Trajectory(path, grid, lambda state, *_: torch.full_like(state, image), normal, like=times(0.0))
    state = run.scales[0] * image + run.sigmas[0] * normal(0)
    state = ancestral(run, state, variance="small")
    # The last step adds no noise, as it usually ends in the image.
    kept = run.sigmas[2].square() - _posterior_std(run, 1).square()
    assert state.mean().item() == pytest.approx((run.scales[2] * image).item(), abs=5e-3)
    assert state.var().item() == pytest.approx(kept.item(), rel=0.02)


@BRIDGES
@pytest.mark.parametrize("kind", ON_BRIDGES)
def test_the_target_gives_the_image_back_at_every_time(path, kind):
    prediction = prediction_of(kind, torch.tensor(0.5), path)
    image, noise = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in times(0.001, 0.5, 0.999, 1.0):
        scale, sigma = path.scale(t), path.sigma(t)
        target = prediction.target(image, noise, scale, sigma)
        assert torch.isfinite(target).all()
        estimate = prediction.skip(scale, sigma) * (scale * image + sigma * noise) + prediction.factor(scale, sigma) * target
        torch.testing.assert_close(estimate, image, rtol=1e-9, atol=1e-9)


@BRIDGES
def test_targets_are_those_of_the_papers(path):
    """I2SB: (x_t - x) / a; BBDM: m (y - x) + s e; here with the source y at 0."""
    image, noise, t = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64), times(0.4)
    scale, sigma, share = path.scale(t), path.sigma(t), path.share(t)
    state = scale * image + sigma * noise
    difference = prediction_of("difference", torch.tensor(0.5), path).target(image, noise, scale, sigma)
    torch.testing.assert_close(difference, share * (0.0 - image) + sigma * noise)
    scaled = prediction_of("i2sb", torch.tensor(0.5), path).target(image, noise, scale, sigma)
    torch.testing.assert_close(scaled, (state - image) / (path.variance * share).sqrt())


@BRIDGES
def test_times_and_grids(path):
    assert path.grid(4, "uniform") == [1.0, 0.75, 0.5, 0.25, 0.0]
    drawn = Uniform().at(torch.arange(1000) * 7919, path)
    assert 0.0 < drawn.min() < 0.05 < 0.95 < drawn.max() <= 1.0
    assert path.scale(times(0.0, 1.0)).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert path.sigma(times(0.0, 1.0)).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    with pytest.raises(ValueError, match="uniform times"):
        LogNormalSigma(mean=0.0, std=1.0).check(path)


@pytest.mark.parametrize(("make", "name"), [
    (lambda: BrownianBridge(variance=0.0), "variance"),
    (lambda: SchrodingerBridge(beta_min=0.3, beta_max=0.1), "beta_min"),
    (lambda: require_fitting_prediction("edm", I2SB), "prediction"),
    (lambda: require_fitting_prediction("i2sb", StraightLine(shift=1.0)), "prediction"),
], ids=["variance", "betas", "edm on a bridge", "i2sb on a line"])  # fmt: skip
def test_what_does_not_fit_is_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        make()
