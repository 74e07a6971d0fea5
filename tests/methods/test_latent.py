import math

import numpy as np
import pytest
import torch
from errors import raises
from scipy import stats

from genimg.errors import ConfigError
from genimg.methods.latent import Latent, Normal, Truncated, Uniform, interpolate, truncate
from genimg.utils.rng import normal_latents

CPU = torch.device("cpu")
LIMITS = [0.05, 0.5, 1.0, 2.0, 5.0]
DISTRIBUTIONS = {
    "normal": (Normal(dim=4), stats.norm()),
    "uniform": (Uniform(dim=4), stats.uniform(-1, 2)),
    **{f"truncated_{limit}": (Truncated(dim=4, limit=limit), stats.truncnorm(-limit, limit)) for limit in LIMITS},
}


def drawn(latent: Latent, way: str) -> torch.Tensor:
    """[5000, 4], by either way of drawing."""
    if way == "by_index":
        return latent.at_indices(range(5000), 11)
    torch.manual_seed(11)
    return latent.random(5000, CPU)


@pytest.mark.parametrize("way", ["random", "by_index"])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_components_are_independent_and_have_the_distribution(kind, way):
    latent, expected = DISTRIBUTIONS[kind]
    values = drawn(latent, way)
    assert values.shape == (5000, latent.dim)
    assert values.dtype == torch.float32
    flat = values.double().numpy().ravel()
    assert stats.kstest(flat, expected.cdf).pvalue > 0.01
    mean, variance, kurtosis = (float(moment) for moment in expected.stats("mvk"))
    error = math.sqrt(variance / flat.size)
    assert flat.mean() == pytest.approx(mean, abs=4 * error)  # 4 standard errors, here and below
    assert flat.var() == pytest.approx(variance, rel=4 * math.sqrt((kurtosis + 2) / flat.size))
    correlations = np.corrcoef(values.double().numpy(), rowvar=False)
    assert np.abs(correlations - np.eye(4)).max() < 4 / math.sqrt(5000)


@pytest.mark.parametrize("limit", LIMITS)
def test_truncated_latents_stay_within_the_limit_and_come_near_it(limit):
    values = drawn(Truncated(dim=4, limit=limit), "random").abs().max().item()
    assert values == pytest.approx(min(limit, 3.9), rel=0.1)
    assert values <= limit * (1 + 1e-7)  # float32


def test_latents_are_functions_of_normal_numbers():
    normal = torch.linspace(-4, 4, 101, dtype=torch.float64)
    assert torch.equal(Normal(dim=1).from_normal(normal), normal)
    uniform = torch.tensor(2 * stats.norm.cdf(normal.numpy()) - 1)
    assert torch.allclose(Uniform(dim=1).from_normal(normal), uniform, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_latents_by_index_depend_on_seed_and_index_alone(kind):
    latent, _ = DISTRIBUTIONS[kind]
    torch.manual_seed(0)
    expected_next = torch.rand(3)
    torch.manual_seed(0)
    whole = latent.at_indices(range(10), 3)
    assert torch.equal(torch.rand(3), expected_next)  # the global stream is left alone
    assert torch.equal(latent.at_indices([7, 2, 7], 3), whole[[7, 2, 7]])
    assert torch.equal(latent.at_indices(range(5, 10), 3), whole[5:])
    assert torch.equal(whole, latent.from_normal(normal_latents(3, range(10), 4)))
    assert len({tuple(row) for row in whole.tolist()}) == 10
    other = latent.at_indices(range(10), 4)
    assert not (other == whole).any()


def test_random_latents_come_from_the_devices_stream():
    for latent, _ in DISTRIBUTIONS.values():
        torch.manual_seed(5)
        first, second = latent.random(3, CPU), latent.random(3, CPU)
        torch.manual_seed(5)
        assert torch.equal(latent.random(3, CPU), first)
        assert not (first == second).any()
        assert first.device == CPU


# Truncation.


@pytest.mark.parametrize("limit", [*LIMITS, 8.0])
def test_truncation_is_the_quantile_function_of_the_truncated_distribution(limit):
    normal = torch.linspace(-5, 0, 101, dtype=torch.float64)  # where scipy's distribution functions keep their digits
    lower = torch.tensor(stats.truncnorm.ppf(stats.norm.cdf(normal.numpy()), -limit, limit))
    assert torch.allclose(truncate(normal, limit), lower, rtol=1e-6, atol=1e-9)
    assert torch.allclose(truncate(-normal, limit), -lower, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [1e-3, *LIMITS, 8.0, 40.0])
def test_truncation_keeps_the_order_and_is_finite(limit, dtype):
    values = truncate(torch.linspace(-8, 8, 20001, dtype=dtype), limit)
    assert values.dtype == dtype
    assert torch.isfinite(values).all()
    assert (values.diff() >= 0).all()
    inner = values[7500:12501]  # within 2 standard deviations
    assert (inner.diff() > 0).all()
    assert values.abs().max().item() == pytest.approx(min(limit, 8.0), rel=0.02)
    assert torch.allclose(values, -values.flip(0), rtol=1e-6, atol=1e-6 * limit)


@pytest.mark.parametrize("limit", [*LIMITS, 10.0, 40.0])
def test_normal_numbers_that_cannot_occur_still_give_latents_within_the_limit(limit):
    values = truncate(torch.tensor([-40.0, -9.0, 9.0, 40.0], dtype=torch.float64), limit)
    assert torch.isfinite(values).all()
    assert values.abs().max() <= limit
    assert values[0] == -values[3]
    assert values[3].item() == pytest.approx(limit, rel=1e-6)


def test_truncation_far_out_changes_nothing_and_close_by_gives_uniform_numbers():
    normal = torch.linspace(-4, 4, 101, dtype=torch.float64)
    assert torch.allclose(truncate(normal, 8.0), normal, rtol=0, atol=1e-9)
    uniform = torch.tensor(2 * stats.norm.cdf(normal.numpy()) - 1)
    assert torch.allclose(truncate(normal, 1e-3) / 1e-3, uniform, rtol=0, atol=1e-6)


@pytest.mark.parametrize("latent", [Normal(dim=2), Uniform(dim=2), Truncated(dim=2, limit=2.0)])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_truncation_that_leaves_nothing_is_refused(latent, limit):
    with raises(ConfigError, f"truncation={limit:g}"):
        latent.truncated(torch.zeros(3, 2), limit)


# Interpolation.


def latents(seed: int, dim: int = 16, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


WEIGHTS = torch.linspace(0, 1, 9)


def slerp_by_hand(start: np.ndarray, end: np.ndarray, t: float) -> np.ndarray:
    angle = math.acos(float(start @ end) / math.sqrt(float(start @ start) * float(end @ end)))
    return math.sin((1 - t) * angle) / math.sin(angle) * start + math.sin(t * angle) / math.sin(angle) * end


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ways_begin_and_end_at_the_latents(spherical, dtype):
    start, end = latents(1, dtype=dtype), latents(2, dtype=dtype)
    way = interpolate(start, end, WEIGHTS, spherical=spherical)
    assert way.shape == (9, 16)
    assert way.dtype == dtype
    assert torch.allclose(way[0], start, rtol=1e-6, atol=1e-6)
    assert torch.allclose(way[-1], end, rtol=1e-6, atol=1e-6)
    back = interpolate(end, start, WEIGHTS, spherical=spherical)
    assert torch.allclose(back.flip(0), way, rtol=1e-5, atol=1e-6)


def test_the_straight_way_equals_hand_computation():
    start, end = latents(1), latents(2)
    way = interpolate(start, end, WEIGHTS, spherical=False)
    for t, point in zip(WEIGHTS.tolist(), way, strict=True):
        expected = [a + t * (b - a) for a, b in zip(start.tolist(), end.tolist(), strict=True)]
        assert point.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_spherical_way_equals_a_slerp_by_hand(dtype, tolerance):
    for seed in range(10):
        start, end = latents(seed, dtype=dtype), 1.5 * latents(seed + 100, dtype=dtype)
        way = interpolate(start, end, WEIGHTS, spherical=True)
        for t, point in zip(WEIGHTS.tolist(), way, strict=True):
            expected = slerp_by_hand(start.double().numpy(), end.double().numpy(), t)
            assert np.allclose(point.double().numpy(), expected, rtol=0, atol=tolerance)


def test_on_a_sphere_the_way_stays_on_it_at_equal_angles():
    start, end = (4.0 * each / each.norm() for each in (latents(3), latents(4)))
    way = interpolate(start, end, WEIGHTS, spherical=True)
    assert torch.allclose(way.norm(dim=1), torch.full((9,), 4.0, dtype=torch.float64), rtol=1e-12, atol=0)
    angles = torch.arccos((way[:-1] * way[1:]).sum(dim=1) / 16)
    assert torch.allclose(angles, torch.arccos(start @ end / 16) / 8, rtol=1e-9, atol=0)
    straight = interpolate(start, end, WEIGHTS, spherical=False)
    assert straight[4].norm() < 3.6  # what the spherical way avoids


def test_the_quarter_of_a_circle():
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    way = interpolate(start, end, torch.tensor([0.0, 1 / 3, 0.5, 1.0]), spherical=True)
    expected = torch.tensor([[2, 0], [math.sqrt(3), 1], [math.sqrt(2), math.sqrt(2)], [0, 2]])
    assert torch.allclose(way, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_between_parallel_latents_every_way_is_straight(factor, dtype):
    start = latents(5, dtype=dtype)
    end = factor * start
    way = interpolate(start, end, WEIGHTS, spherical=True)
    expected = torch.stack([(1 - t) * start + t * end for t in WEIGHTS.tolist()])
    assert torch.allclose(way, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("angle", [0.002, 0.05, 3.1])
def test_a_small_angle_and_one_near_half_a_circle_are_still_those_of_a_circle(angle):
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    end = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    way = interpolate(start, end, WEIGHTS, spherical=True)
    expected = [[math.cos(t * angle), math.sin(t * angle)] for t in WEIGHTS.tolist()]
    assert torch.allclose(way, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1e-7, 1e-5, 1e-3])
def test_between_near_latents_the_ways_agree(distance, dtype):
    start = latents(5, dtype=dtype)
    end = start + distance * latents(6, dtype=dtype)
    spherical, straight = (interpolate(start, end, WEIGHTS, spherical=each) for each in (True, False))
    assert torch.allclose(spherical, straight, rtol=0, atol=2e-6)


# What is refused.


@pytest.mark.parametrize("dim", [0, -3])
@pytest.mark.parametrize("make", [Normal, Uniform, lambda dim: Truncated(dim=dim, limit=1.0)])
def test_a_latent_without_components_is_refused(make, dim):
    with raises(ValueError, f"dim={dim}"):
        make(dim=dim)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_without_numbers_within_is_refused(limit):
    with raises(ValueError, f"limit={limit}"):
        Truncated(dim=4, limit=limit)


def test_a_latent_needs_a_distribution():
    with raises(TypeError, word="abstract"):
        Latent(dim=4)
