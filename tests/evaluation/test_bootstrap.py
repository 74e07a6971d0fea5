"""Intervals against what is known of a mean: its standard error, and how often it is met."""

import math

import numpy as np
import pytest
import torch

from genimg.evaluation.bootstrap import intervals
from genimg.evaluation.compare import compare
from genimg.evaluation.feature_stats import Collector, FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.metrics import FrechetDistance, InceptionScore, KernelDistance, Metric

CPU = torch.device("cpu")
REAL = FeatureStats(GaussianStatistics.of(torch.randn(500, 2, generator=torch.Generator().manual_seed(99))))


pytestmark = pytest.mark.usefixtures("one_thread")


class MeanFeature(Metric):
    """The mean of the first feature, and a second number that is its spread."""

    short_name = "mean"
    higher_is_better = True
    can_be_resampled = True

    def compute(self, real, fake, device):
        return {"mean": fake.moments.mean[0].item(), "mean_std": fake.moments.covariance[0, 0].sqrt().item()}


class FixedMeanFeature(MeanFeature):
    can_be_resampled = False


def name(short_name, count):
    metric = short_name.removesuffix("_std")
    return f"{metric}100_test{short_name.removeprefix(metric)}"


def summary_of(features):
    return FeatureStats(GaussianStatistics.of(features), features=features)


def standard_normal(num_images, seed, num_features=2):
    return torch.randn(num_images, num_features, generator=torch.Generator().manual_seed(seed))


def measure(features, metrics=None, *, resamples, seed=0, real=REAL):
    metrics = [MeanFeature()] if metrics is None else metrics
    fake = features if isinstance(features, FeatureStats) else summary_of(features)
    values = compare(real, fake, metrics, name)
    return values, intervals(metrics, real, fake, name, values, resamples, seed)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_mean_is_that_of_its_standard_error(seed):
    features = standard_normal(200, seed)
    values, bounds = measure(features, resamples=3000, seed=seed)
    low, high = bounds["mean100_test"]
    half = 1.96 * features[:, 0].double().std(correction=0).item() / math.sqrt(200)
    # A percentile of 3000 resamples has an error of about 5 % of the standard error, which is 2.5 % of the half width.
    assert low == pytest.approx(values["mean100_test"] - half, abs=0.1 * half)
    assert high == pytest.approx(values["mean100_test"] + half, abs=0.1 * half)


def test_intervals_shrink_with_the_root_of_the_number_of_images():
    widths = []
    for num_images in (50, 800):
        low, high = measure(standard_normal(num_images, 5), resamples=1000)[1]["mean100_test"]
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.25)


def test_about_95_of_100_intervals_hold_the_truth():
    truth, experiments = 2.0, 120
    met = 0
    for seed in range(experiments):
        low, high = measure(truth + standard_normal(60, 1000 + seed), resamples=120, seed=seed)[1]["mean100_test"]
        met += low <= truth <= high
    # 95 % +- 3 standard errors of 2 %; intervals of half or of twice the width would meet it in 67 % and 99.99 %.
    assert 0.88 <= met / experiments < 1.0


def test_an_interval_of_the_frechet_distance_lies_about_the_value():
    # A resample has fewer distinct images and so a larger distance: without the correction the interval would lie above.
    features = standard_normal(100, 7, num_features=20)
    real = summary_of(standard_normal(100, 8, num_features=20))
    fake = summary_of(features)
    generator = torch.Generator().manual_seed(0)
    resampled = [
        compare(real, fake.resampled(torch.randint(100, (100,), generator=generator)), [FrechetDistance()], name)
        for _ in range(400)
    ]
    values, bounds = measure(fake, [FrechetDistance()], resamples=400, real=real)
    value, (low, high) = values["fd100_test"], bounds["fd100_test"]
    assert low < value < high
    assert min(distances["fd100_test"] for distances in resampled) > value
    spread = torch.tensor([distances["fd100_test"] for distances in resampled]).std().item()
    # Percentiles of 400 resamples give the width with an error of about 7 %, the spread has one of about 4 %.
    assert high - low == pytest.approx(2.0 * 1.96 * spread, rel=0.25)


def test_intervals_depend_on_the_seed_alone():
    features = standard_normal(50, 1)
    first = measure(features, resamples=100, seed=3)[1]
    torch.manual_seed(12345)
    assert measure(features, resamples=100, seed=3)[1] == first
    assert measure(features, resamples=100, seed=4)[1] != first


def test_the_training_keeps_its_random_numbers():
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    measure(standard_normal(50, 1), resamples=10)
    assert torch.equal(torch.randn(3), expected)


def test_a_spread_has_no_interval():
    values, bounds = measure(standard_normal(50, 1), resamples=10)
    assert values.keys() == {"mean100_test", "mean100_test_std"}
    assert bounds.keys() == {"mean100_test"}


def test_a_metric_that_cannot_be_resampled_has_no_interval():
    metrics = [FixedMeanFeature()]
    assert measure(standard_normal(50, 1), metrics, resamples=10)[1] == {}


def test_only_the_metrics_that_can_be_resampled_have_intervals():
    generator = torch.Generator().manual_seed(2)
    collector = Collector(40, splits=(2,), kept=np.arange(40), keep_logits=True)
    collector.add(torch.randn(40, 2, generator=generator), torch.randn(40, 3, generator=generator), None)
    real = summary_of(standard_normal(40, 3))
    metrics = [FrechetDistance(), KernelDistance(subsets=3, subset_size=10), InceptionScore(splits=2)]
    values, bounds = measure(collector.result(), metrics, resamples=30, real=real)
    assert values.keys() == {"fd100_test", "kd100_test", "kd100_test_std", "is100_test", "is100_test_std"}
    assert bounds.keys() == {"fd100_test", "is100_test"}
    for key, (low, high) in bounds.items():
        assert low < values[key] < high


def test_no_resamples_give_no_intervals():
    assert measure(standard_normal(50, 1), resamples=0)[1] == {}


def test_a_set_without_spread_has_an_interval_without_width():
    value, bounds = measure(torch.full((20, 2), 3.0), resamples=10)
    assert bounds["mean100_test"] == pytest.approx((3.0, 3.0), rel=1e-12)
    assert value["mean100_test"] == 3.0
