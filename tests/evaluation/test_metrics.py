"""The Fréchet distance against scipy's matrix root and against closed forms."""

import numpy as np
import pytest
import scipy.linalg
import torch

from genimg.evaluation.metrics import frechet_distance, matrix_square_root
from genimg.evaluation.statistics import FeatureSums, GaussianStatistics


def gaussian(mean, covariance):
    return GaussianStatistics(100, torch.as_tensor(mean).double(), torch.as_tensor(covariance).double())


def statistics_of_random_features(seed, num_images, num_features=10):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    shift = torch.randn(num_features, generator=generator, dtype=torch.float64)
    sums = FeatureSums()
    sums.add(torch.randn(num_images, num_features, generator=generator, dtype=torch.float64) @ mixing + shift)
    return sums.result()


def frechet_distance_of_scipy(real, fake):
    """Heusel et al. 2017, equation 6, with a general matrix root."""
    root = scipy.linalg.sqrtm(real.covariance.numpy() @ fake.covariance.numpy())
    difference = (real.mean - fake.mean).numpy()
    trace = np.trace(real.covariance.numpy() + fake.covariance.numpy() - 2.0 * np.real(root))
    return difference @ difference + trace


@pytest.mark.parametrize("seed", range(4))
def test_frechet_distance_equals_that_of_scipys_matrix_root(seed):
    real, fake = statistics_of_random_features(seed, 300), statistics_of_random_features(seed + 50, 200)
    assert frechet_distance(real, fake) == pytest.approx(frechet_distance_of_scipy(real, fake), rel=1e-9)


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form():
    means = np.array([[0.0, 1.0, -2.0], [3.0, 1.0, 0.5]])
    deviations = np.array([[1.0, 0.5, 2.0], [0.25, 0.5, 3.0]])
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    real, fake = (gaussian(mean, np.diag(deviation**2)) for mean, deviation in zip(means, deviations, strict=True))
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_commuting_covariances_has_its_closed_form():
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    first = torch.tensor([4.0, 1.0, 0.25, 9.0, 0.0, 1e-6], dtype=torch.float64)
    second = torch.tensor([1.0, 1.0, 4.0, 0.0, 16.0, 1e-4], dtype=torch.float64)
    real = gaussian(torch.zeros(6), rotation @ first.diag() @ rotation.T)
    fake = gaussian(torch.full((6,), 0.5), rotation @ second.diag() @ rotation.T)
    expected = 6 * 0.25 + (first.sqrt() - second.sqrt()).square().sum().item()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_fewer_images_than_features():
    # X and c X have covariances S and c^2 S of rank 5, so that the distance is |(1 - c) m|^2 + (1 - c)^2 tr S.
    features = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.0
    sums, scaled_sums = FeatureSums(), FeatureSums()
    sums.add(features)
    scaled_sums.add(3.0 * features)
    real, fake = sums.result(), scaled_sums.result()
    assert torch.linalg.matrix_rank(real.covariance) == 5
    expected = 4.0 * (real.mean.square().sum() + real.covariance.trace()).item()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_covariances_on_different_subspaces_is_the_sum_of_their_traces():
    real = gaussian([0.0, 0.0, 0.0], np.diag([4.0, 0.0, 0.0]))
    fake = gaussian([0.0, 0.0, 0.0], np.diag([0.0, 9.0, 1.0]))
    assert frechet_distance(real, fake) == pytest.approx(14.0, rel=1e-12)


@pytest.mark.parametrize("num_images", [6, 300])
def test_frechet_distance_of_equal_statistics_is_zero(num_images):
    statistics = statistics_of_random_features(1, num_images)
    scale = statistics.covariance.trace().item()
    assert 0.0 <= frechet_distance(statistics, statistics) <= 1e-6 * scale


@pytest.mark.parametrize("num_images", [6, 300])
def test_frechet_distance_is_symmetric(num_images):
    real, fake = statistics_of_random_features(1, num_images), statistics_of_random_features(2, num_images)
    assert frechet_distance(real, fake) == pytest.approx(frechet_distance(fake, real), rel=1e-6)


def test_a_root_at_hand_gives_the_same_number():
    real, fake = statistics_of_random_features(1, 300), statistics_of_random_features(2, 300)
    assert frechet_distance(real, fake, matrix_square_root(real.covariance)) == frechet_distance(real, fake)


def test_the_square_root_is_symmetric_and_its_square_is_the_matrix():
    covariance = statistics_of_random_features(3, 300).covariance
    root = matrix_square_root(covariance)
    torch.testing.assert_close(root @ root, covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(root, root.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(root, scipy.linalg.sqrtm(covariance.numpy()), rtol=1e-8, atol=1e-8)


def test_the_square_root_of_a_singular_matrix_is_finite():
    covariance = statistics_of_random_features(3, 4).covariance
    root = matrix_square_root(covariance)
    torch.testing.assert_close(root @ root, covariance, rtol=1e-9, atol=1e-9)
