"""Running sums against the same numbers computed at once, by numpy and by torch-fidelity."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from genimg.evaluation.statistics import FeatureSums, InceptionScoreSums


def correlated_features(num_images, num_features=12, offset=0.0):
    generator = torch.Generator().manual_seed(num_images)
    mixing = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    return torch.randn(num_images, num_features, generator=generator, dtype=torch.float64) @ mixing + offset


def statistics_in_batches(features, batch_size):
    sums = FeatureSums()
    for batch in features.split(batch_size):
        sums.add(batch)
    return sums.result()


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
@pytest.mark.parametrize("num_images", [5, 200])  # fewer and more than features
def test_mean_and_covariance_are_those_of_numpy_at_every_batch_size(num_images, batch_size):
    features = correlated_features(num_images)
    result = statistics_in_batches(features, batch_size)
    assert result.num_images == num_images
    np.testing.assert_allclose(result.mean, features.numpy().mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_large_common_offset_costs_no_digits(batch_size):
    features = correlated_features(200, offset=2.0**20)  # squared it is 2^40: a naive sum would keep 12 bits after the point
    result = statistics_in_batches(features, batch_size)
    np.testing.assert_allclose(result.mean, features.numpy().mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_float32_features_are_summed_in_float64():
    features = correlated_features(500, offset=100.0).float()
    result = statistics_in_batches(features, 50)
    assert result.mean.dtype == result.covariance.dtype == torch.float64
    expected = np.cov(features.numpy().astype(np.float64), rowvar=False)
    np.testing.assert_allclose(result.covariance, expected, rtol=1e-10, atol=1e-10)


def test_adding_does_not_change_the_features():
    features = correlated_features(10)
    before = features.clone()
    statistics_in_batches(features, 5)
    assert torch.equal(features, before)


@pytest.mark.parametrize("num_images", [0, 1])
def test_too_few_images_for_a_covariance_are_refused(num_images):
    sums = FeatureSums()
    if num_images:
        sums.add(torch.zeros(num_images, 3))
    with pytest.raises(ValueError, match=rf"{num_images} images are too few for a covariance"):
        sums.result()


def inception_score(logits, splits, batch_size):
    sums = InceptionScoreSums(len(logits), splits)
    for batch in logits.split(batch_size):
        sums.add(batch)
    return sums.result()


@pytest.mark.parametrize("batch_size", [1, 32, 1000])
@pytest.mark.parametrize(("num_images", "splits"), [(250, 10), (253, 10), (40, 1), (10, 10)])
def test_inception_score_is_that_of_torch_fidelity(num_images, splits, batch_size):
    logits = 3.0 * torch.randn(num_images, 20, generator=torch.Generator().manual_seed(splits))
    expected = isc_features_to_metric(logits, splits=splits)
    score, deviation = inception_score(logits, splits, batch_size)
    assert score == pytest.approx(expected[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert deviation == pytest.approx(expected[KEY_METRIC_ISC_STD], rel=1e-9, abs=1e-12)


def test_inception_score_is_one_for_images_that_all_look_alike():
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0)).expand(60, -1)
    assert inception_score(logits, 3, 20) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_inception_score_is_the_number_of_classes_for_certain_and_even_predictions():
    logits = 1000.0 * torch.eye(8).repeat(5, 1)  # the other probabilities underflow to 0, and 0 log 0 counts as 0
    assert inception_score(logits, 1, 16) == pytest.approx((8.0, 0.0), rel=1e-12, abs=1e-12)


def test_inception_score_of_two_classes_has_its_closed_form():
    p = 0.9
    logits = torch.tensor([[p, 1.0 - p], [1.0 - p, p]], dtype=torch.float64).log()
    expected = math.exp(p * math.log(2.0 * p) + (1.0 - p) * math.log(2.0 * (1.0 - p)))
    assert inception_score(logits, 1, 1)[0] == pytest.approx(expected, rel=1e-12)


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(ValueError, match=r"9 images are too few for an Inception Score over 10 splits"):
        InceptionScoreSums(9, 10)
