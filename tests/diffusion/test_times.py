import math

import pytest
import torch

from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.utils.rng import mixed_keys

LINEAR = VariancePreserving(num_times=1000, schedule="linear", beta_min=1e-4, beta_max=0.02)
EDM = VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0)
LINE = StraightLine(shift=1.0)


def keys(count):
    return mixed_keys(torch.arange(count), 1)


def test_times_have_their_distributions():
    uniform = Uniform().at(keys(50_000), LINEAR)
    assert {uniform.min().item(), uniform.max().item()} == {1.0, 1000.0}
    assert uniform.mean().item() == pytest.approx(500.5, abs=5 * 1000 / math.sqrt(12 * 50_000))
    assert Uniform().at(keys(50_000), LINE).mean().item() == pytest.approx(0.5, abs=0.01)
    logs = LogNormalSigma(mean=-1.2, std=1.2).at(keys(50_000), EDM).log()
    assert (logs.mean().item(), logs.std().item()) == pytest.approx((-1.2, 1.2), abs=0.02)
    logits = torch.logit(LogNormalSigma(mean=0.0, std=1.0).at(keys(50_000), LINE))
    assert (logits.mean().item(), logits.std().item()) == pytest.approx((0.0, 1.0), abs=0.02)


def test_a_time_is_a_function_of_its_key_alone():
    times = LogNormalSigma(mean=-1.2, std=1.2)
    torch.testing.assert_close(times.at(keys(8), EDM)[3:5], times.at(keys(8)[3:5], EDM), rtol=0, atol=0)


@pytest.mark.parametrize(("times", "path"), [(Uniform(), EDM), (LogNormalSigma(mean=0.0, std=1.0), LINEAR)])
def test_times_that_a_path_does_not_have_are_refused(times, path):
    with pytest.raises(ValueError, match="choose"):
        times.check(path)


@pytest.mark.parametrize(("times", "path"), [
    (Uniform(), LINEAR), (Uniform(), LINE), (LogNormalSigma(mean=-1.2, std=1.2), EDM),
    (LogNormalSigma(mean=0.5, std=1.0), LINE),
], ids=["vp", "line", "edm", "logit"])  # fmt: skip
def test_quantiles_are_those_of_random_times(times, path):
    drawn = times.at(keys(50_000), path).double()
    for quantile in (0.1, 0.5, 0.9):
        assert (drawn <= times.quantile(quantile, path)).double().mean().item() == pytest.approx(quantile, abs=0.01)


def test_a_deviation_must_be_positive():
    with pytest.raises(ValueError, match=r"^std="):
        LogNormalSigma(mean=0.0, std=0.0)
