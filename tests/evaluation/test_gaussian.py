"""Running sums against the same numbers computed at once, by numpy and by torch-fidelity.

Ranks: tests/utils/test_distributed.py.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from errors import raises
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from genimg.errors import DataError
from genimg.evaluation import gaussian
from genimg.evaluation.gaussian import FeatureSums, GaussianStatistics, InceptionScoreSums

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_statistics_of_features_at_hand_are_those_of_numpy():
    features = correlated_features(50, offset=3.0)
    result = GaussianStatistics.of(features.float())
    single = features.float().numpy().astype(np.float64)
    assert result.num_images == 50
    assert result.mean.dtype == result.covariance.dtype == torch.float64
    np.testing.assert_allclose(result.mean, single.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(single, rowvar=False), rtol=1e-11, atol=1e-11)


def test_statistics_of_one_feature_vector_are_refused():
    with raises(DataError, word="covariance"):
        GaussianStatistics.of(torch.zeros(1, 3))


def test_the_covariance_is_symmetric_and_positive_semidefinite():
    covariance = statistics_in_batches(correlated_features(5), 2).covariance  # of rank 4 among 12
    assert torch.equal(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12 * covariance.trace()


def test_a_result_can_be_asked_for_between_batches_and_again():
    features = correlated_features(30)
    sums = FeatureSums()
    sums.add(features[:10])
    early = sums.result()
    np.testing.assert_allclose(early.covariance, np.cov(features[:10].numpy(), rowvar=False), rtol=1e-11, atol=1e-11)
    sums.add(features[10:])
    for result in (sums.result(), sums.result()):
        assert result.num_images == 30
        np.testing.assert_allclose(result.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-11, atol=1e-11)


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
    with raises(DataError, word="covariance"):
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


@pytest.mark.parametrize("cuts", [(0, 17, 40), (0, 1, 39, 40), (0, 10, 20, 30, 40)], ids=str)
def test_ranks_that_begin_at_their_first_image_give_the_score_of_all_images(monkeypatch, cuts):
    logits = 3.0 * torch.randn(40, 7, generator=torch.Generator().manual_seed(5))
    expected = isc_features_to_metric(logits, splits=4)
    ranks = []
    for first, stop in itertools.pairwise(cuts):
        ranks.append(InceptionScoreSums(40, 4, first))
        for batch in logits[first:stop].split(6):
            ranks[-1].add(batch)

    # One rank after the other says what it would have summed with the rest; then the last one gets the sums.
    asked = []
    monkeypatch.setattr(gaussian, "sum_over_ranks", lambda tensor: asked[-1].append(tensor.clone()) or tensor)
    for sums in ranks:
        asked.append([])
        sums.result()
    totals = [sum(tensors) for tensors in zip(*asked, strict=True)]
    monkeypatch.setattr(gaussian, "sum_over_ranks", lambda tensor: totals.pop(0))
    score, deviation = ranks[-1].result()

    assert score == pytest.approx(expected[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert deviation == pytest.approx(expected[KEY_METRIC_ISC_STD], rel=1e-9)


def test_fewer_images_than_splits_are_refused():
    with raises(ValueError, word="Score"):
        InceptionScoreSums(9, 10)
