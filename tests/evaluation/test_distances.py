"""The distances against scipy, torch-fidelity, numpy's plain formulas and closed forms."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from genimg.evaluation import distances
from genimg.evaluation.distances import (
    expected_coverage,
    frechet_distance,
    kernel_distance,
    matrix_square_root,
    neighbor_distances,
    neighbor_rates,
)
from genimg.evaluation.gaussian import GaussianStatistics

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian(mean, covariance):
    return GaussianStatistics(100, torch.as_tensor(mean).double(), torch.as_tensor(covariance).double())


def random_features(seed, num_images, num_features=10):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    shift = torch.randn(num_features, generator=generator, dtype=torch.float64)
    return torch.randn(num_images, num_features, generator=generator, dtype=torch.float64) @ mixing + shift


def statistics_of_random_features(seed, num_images, num_features=10):
    return GaussianStatistics.of(random_features(seed, num_images, num_features))


def frechet_distance_of_scipy(real, fake):
    """Heusel et al. 2017, equation 6, with a general matrix root."""
    root = scipy.linalg.sqrtm(real.covariance.numpy() @ fake.covariance.numpy())
    difference = (real.mean - fake.mean).numpy()
    trace = np.trace(real.covariance.numpy() + fake.covariance.numpy() - 2.0 * np.real(root))
    return difference @ difference + trace


def frechet_distance_of_few_images(real, fake):
    """From the features themselves: with S = A'A / (N - 1) the trace of (S1 S2)^(1/2) is the nuclear norm of A1 A2'."""
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (real, fake))
    difference = real.mean(axis=0) - fake.mean(axis=0)
    trace_of_root = scipy.linalg.svdvals(a @ b.T).sum()
    return difference @ difference + (a**2).sum() + (b**2).sum() - 2.0 * trace_of_root


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


def test_frechet_distance_of_scaled_features_with_fewer_images_than_features():
    # X and c X have covariances S and c^2 S of rank 5, so that the distance is |(1 - c) m|^2 + (1 - c)^2 tr S.
    features = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.0
    real, fake = GaussianStatistics.of(features), GaussianStatistics.of(3.0 * features)
    assert torch.linalg.matrix_rank(real.covariance) == 5
    expected = 4.0 * (real.mean.square().sum() + real.covariance.trace()).item()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("num_real", "num_fake"), [(20, 30), (30, 20), (500, 20), (20, 500), (2, 2)])
def test_frechet_distance_with_fewer_images_than_features_is_that_of_singular_values(num_real, num_fake):
    # The roots of the 100 or so eigenvalues that are mere rounding (1e-16 of the largest) would add up to some 1e-6.
    real, fake = random_features(1, num_real, 120), random_features(2, num_fake, 120)
    found = frechet_distance(GaussianStatistics.of(real), GaussianStatistics.of(fake))
    assert found == pytest.approx(frechet_distance_of_few_images(real.numpy(), fake.numpy()), rel=1e-10)


def test_the_reference_of_singular_values_agrees_with_scipys_matrix_root():
    real, fake = random_features(1, 300), random_features(2, 200)
    expected = frechet_distance_of_scipy(GaussianStatistics.of(real), GaussianStatistics.of(fake))
    assert frechet_distance_of_few_images(real.numpy(), fake.numpy()) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_covariances_on_different_subspaces_is_the_sum_of_their_traces():
    real = gaussian([0.0, 0.0, 0.0], np.diag([4.0, 0.0, 0.0]))
    fake = gaussian([0.0, 0.0, 0.0], np.diag([0.0, 9.0, 1.0]))
    assert frechet_distance(real, fake) == pytest.approx(14.0, rel=1e-12)


@pytest.mark.parametrize("num_images", [6, 300])
def test_frechet_distance_of_equal_statistics_is_zero(num_images):
    statistics = statistics_of_random_features(1, num_images)
    scale = statistics.covariance.trace().item()
    assert 0.0 <= frechet_distance(statistics, statistics) <= 1e-12 * scale


@pytest.mark.parametrize("num_images", [6, 300])
def test_frechet_distance_is_symmetric(num_images):
    real, fake = statistics_of_random_features(1, num_images), statistics_of_random_features(2, num_images)
    assert frechet_distance(real, fake) == pytest.approx(frechet_distance(fake, real), rel=1e-10)


def test_frechet_distance_grows_with_the_square_of_a_shift():
    features = random_features(1, 50)
    shifts = [frechet_distance(GaussianStatistics.of(features), GaussianStatistics.of(features + s)) for s in (1.0, 3.0)]
    assert shifts == pytest.approx([10.0, 90.0], rel=1e-10)  # ten features


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


def two_sets(num_real=150, num_fake=120, num_features=16, seed=0):
    """Float32 features of unlike distributions, which overlap."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(num_real, num_features, generator=generator)
    fake = 1.2 * torch.randn(num_fake, num_features, generator=generator) + 0.3
    return real, fake


@pytest.mark.parametrize(("subsets", "subset_size"), [(1, 120), (7, 50), (20, 2), (5, 119)])
def test_kernel_distance_is_that_of_torch_fidelity(subsets, subset_size):
    real, fake = two_sets()
    expected = kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=2020, verbose=False
    )
    mean, deviation = kernel_distance(real, fake, subsets=subsets, subset_size=subset_size)
    # Float32 kernels: each near 1 with 6e-8 of rounding, and the distance is a difference of their means.
    assert mean == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-5, abs=1e-6)
    assert deviation == pytest.approx(expected[KEY_METRIC_KID_STD], rel=1e-5, abs=1e-6)


def squared_discrepancy(real, fake):
    """Bińkowski et al. 2018, equation 4, term by term."""

    def kernel(x, y):
        return (float(x @ y) / len(x) + 1.0) ** 3

    m, n = len(real), len(fake)
    within_real = sum(kernel(real[i], real[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_fake = sum(kernel(fake[i], fake[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    between = sum(kernel(x, y) for x in real for y in fake) / (m * n)
    return within_real + within_fake - 2.0 * between


@pytest.mark.parametrize("size", [2, 3, 25])
def test_kernel_distance_is_its_definition_where_the_subset_is_everything(size):
    real, fake = two_sets(size, size, num_features=5)
    mean, deviation = kernel_distance(real, fake, subsets=1, subset_size=size)
    assert mean == pytest.approx(squared_discrepancy(real.double().numpy(), fake.double().numpy()), rel=1e-5, abs=1e-6)
    assert deviation == 0.0


def test_kernel_distance_of_equal_distributions_is_unbiased():
    values = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        real, fake = torch.randn(2, 20, 8, generator=generator)
        values.append(kernel_distance(real, fake, subsets=1, subset_size=20)[0])
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3.0 * error
    assert 0.3 < np.mean(np.less(values, 0.0)) < 0.8  # an estimate that is never negative is biased
    biased = 2.0 * 7.0 / 20.0  # with the diagonals the mean is 2 (E k(x, x) - E k(x, y)) / n, and that is at least this
    assert biased > 20.0 * error  # so that the check above would see the bias


def test_kernel_distance_sees_a_shift():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 200, 8, generator=generator)
    small, large = (kernel_distance(real, fake + shift, subsets=1, subset_size=200)[0] for shift in (0.5, 1.0))
    assert 0.1 < small < large


def naive_rates(real, fake, neighbors, density_neighbors):
    """Kynkäänniemi et al. 2019, equations 1-3, and Naeem et al. 2020, equations 4 and 5, in float64."""
    real, fake = real.double().numpy(), fake.double().numpy()
    real_balls, fake_balls = np.sort(cdist(real, real), axis=1), np.sort(cdist(fake, fake), axis=1)
    between = cdist(real, fake)
    in_density_ball = between <= real_balls[:, density_neighbors, None]
    return {
        "precision": np.mean([(between[:, j] <= real_balls[:, neighbors]).any() for j in range(len(fake))]),
        "recall": np.mean([(between[i] <= fake_balls[:, neighbors]).any() for i in range(len(real))]),
        "density": in_density_ball.sum() / (density_neighbors * len(fake)),
        "coverage": np.mean([in_density_ball[i].any() for i in range(len(real))]),
    }


SETS = {
    "more real": two_sets(150, 120),
    "more generated": two_sets(60, 170, seed=1),
    "few features": two_sets(100, 100, num_features=2, seed=2),
    "far from the origin": tuple(side + 50.0 for side in two_sets(seed=3)),
}


@pytest.mark.parametrize("neighbors", [1, 3, 5])
@pytest.mark.parametrize(("real", "fake"), SETS.values(), ids=SETS)
def test_precision_and_recall_are_those_of_torch_fidelity(real, fake, neighbors):
    expected = prc_features_to_metric(fake.double(), real.double(), prc_neighborhood=neighbors, verbose=False)
    found = neighbor_rates(real, fake, neighbors=neighbors, density_neighbors=5)
    assert found.precision == pytest.approx(expected[KEY_METRIC_PRECISION], abs=1e-7)
    assert found.recall == pytest.approx(expected[KEY_METRIC_RECALL], abs=1e-7)
    assert 0.0 < found.precision < 1.0  # the case tells right from wrong
    assert found.recall > 0.0


@pytest.mark.parametrize(("neighbors", "density_neighbors"), [(3, 5), (5, 3), (1, 1), (2, 9)])
@pytest.mark.parametrize(("real", "fake"), SETS.values(), ids=SETS)
def test_the_four_rates_are_those_of_their_definitions(real, fake, neighbors, density_neighbors):
    found = neighbor_rates(real, fake, neighbors=neighbors, density_neighbors=density_neighbors)
    assert vars(found) == pytest.approx(naive_rates(real, fake, neighbors, density_neighbors), abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 64, 120, 149])
def test_the_block_of_rows_held_at_once_changes_nothing(monkeypatch, block):
    real, fake = two_sets()
    whole = neighbor_rates(real, fake, neighbors=3, density_neighbors=5)
    monkeypatch.setattr(distances, "_BLOCK", block)
    assert neighbor_rates(real, fake, neighbors=3, density_neighbors=5) == whole


@pytest.mark.parametrize("block", [4096, 7])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_distances_to_neighbours_are_those_of_scipy(monkeypatch, block, offset):
    monkeypatch.setattr(distances, "_BLOCK", block)
    features = two_sets()[0] + offset
    ordered = np.sort(cdist(features.double().numpy(), features.double().numpy()), axis=1)
    for k, found in zip((5, 1, 3), neighbor_distances(features, (5, 1, 3)), strict=True):
        np.testing.assert_allclose(found, ordered[:, k], rtol=1e-5)


def test_radii_at_hand_give_the_same_rates_and_are_used():
    real, fake = two_sets()
    radii = neighbor_distances(real, (3, 5))
    rates = neighbor_rates(real, fake, neighbors=3, density_neighbors=5)
    assert neighbor_rates(real, fake, neighbors=3, density_neighbors=5, real_radii=radii) == rates
    none = [torch.zeros_like(radius) for radius in radii]
    given = neighbor_rates(real, fake, neighbors=3, density_neighbors=5, real_radii=none)
    assert (given.precision, given.recall, given.density, given.coverage) == (0.0, rates.recall, 0.0, 0.0)


@pytest.mark.parametrize(("num_real", "num_fake", "k"), [(2, 1, 1), (3, 2, 1), (3, 2, 2), (4, 3, 2)])
def test_expected_coverage_is_the_share_of_orders_in_which_a_generated_image_is_among_the_nearest(num_real, num_fake, k):
    """By counting: seen from a real image, the others and the generated ones come in an order of which none is likelier."""
    orders = list(itertools.permutations([0] * (num_real - 1) + [1] * num_fake))
    # It is covered if a generated one is nearer than the k-th other real one.
    covered = [1 in order[: [i for i, kind in enumerate(order) if kind == 0][k - 1]] for order in orders]
    assert expected_coverage(num_real, num_fake, k) == pytest.approx(np.mean(covered), rel=1e-12)


def test_expected_coverage_of_equally_many_images_tends_to_31_of_32():
    assert expected_coverage(10**7, 10**7, 5) == pytest.approx(31 / 32, abs=1e-6)
    assert expected_coverage(10_000, 5000, 5) == pytest.approx(1 - (2 / 3) ** 5, abs=1e-3)  # 0.868
    assert expected_coverage(10_000, 500, 5) == pytest.approx(1 - (20 / 21) ** 5, abs=1e-3)  # 0.217


def test_far_away_images_share_nothing_with_the_real_ones():
    real, fake = two_sets()
    rates = neighbor_rates(real, fake + 1000.0, neighbors=3, density_neighbors=5)
    assert vars(rates) == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}


def test_identical_images_have_all_rates_full():
    real, _ = two_sets()
    rates = neighbor_rates(real, real.clone(), neighbors=3, density_neighbors=5)
    assert (rates.precision, rates.recall, rates.coverage) == (1.0, 1.0, 1.0)
    assert 1.0 <= rates.density <= 6 / 5  # each ball holds its centre and 5 neighbours, of which the last lies on its edge


def test_points_on_a_line_have_the_rates_one_counts_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii of k = 1: 1, 1, 2, 4; of k = 2: 3, 2, 3, 6
    fake = torch.tensor([[-1.5], [4.5], [5.5]])  # radii of k = 1: 6, 1, 1
    rates = neighbor_rates(real, fake, neighbors=1, density_neighbors=2)
    assert rates.precision == pytest.approx(2 / 3)  # 4.5 is near 3 and 7, 5.5 is near 7, -1.5 is near nothing
    assert rates.recall == pytest.approx(3 / 4)  # 0, 1 and 3 are within 6 of -1.5, and 7 is within 1 of nothing
    assert rates.density == pytest.approx(5 / 6)  # of 2 x 3: -1.5 is in the ball of 0, 4.5 and 5.5 in those of 3 and 7
    assert rates.coverage == pytest.approx(3 / 4)  # the ball of 1, from -1 to 3, is empty


def test_dropped_modes_cost_recall_and_coverage_but_not_precision():
    generator = torch.Generator().manual_seed(0)
    modes = 20.0 * torch.eye(4).repeat_interleave(50, dim=0)
    real = modes + torch.randn(200, 4, generator=generator)
    every_mode = modes + torch.randn(200, 4, generator=generator)
    one_mode = 20.0 * torch.eye(4)[:1].expand(200, -1) + torch.randn(200, 4, generator=generator)
    all_rates, dropped = (neighbor_rates(real, fake, neighbors=3, density_neighbors=5) for fake in (every_mode, one_mode))
    assert dropped.precision == pytest.approx(all_rates.precision, abs=0.1)
    assert dropped.density == pytest.approx(all_rates.density, abs=0.3)
    assert min(all_rates.precision, all_rates.recall, all_rates.coverage) > 0.7
    assert dropped.recall <= 0.25  # a quarter of the real images is of that mode
    assert dropped.coverage <= 0.25
    assert dropped.coverage > 0.2


def test_images_between_the_modes_cost_precision_and_density_but_not_coverage():
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(150, 6, generator=generator)
    good = torch.randn(150, 6, generator=generator)
    strays = 100.0 + 30.0 * torch.randn(150, 6, generator=generator)
    clean, spoilt = (neighbor_rates(real, fake, neighbors=3, density_neighbors=5) for fake in (good, torch.cat([good, strays])))
    assert spoilt.precision == pytest.approx(clean.precision / 2)
    assert spoilt.density == pytest.approx(clean.density / 2)
    assert spoilt.coverage == clean.coverage > 0.7


def test_fewer_images_than_features_give_the_same_distance_through_their_own_small_matrix():
    generator = torch.Generator().manual_seed(8)
    real = GaussianStatistics.of(torch.randn(90, 40, generator=generator) * torch.linspace(0.1, 2.0, 40))
    features = torch.randn(17, 40, generator=generator) + 0.3
    fake = GaussianStatistics.of(features)
    by_root = frechet_distance(real, fake)
    assert frechet_distance(real, fake, fake_features=features) == pytest.approx(by_root, rel=1e-10)
    root = scipy.linalg.sqrtm(real.covariance.numpy() @ fake.covariance.numpy())
    traces = np.trace(real.covariance.numpy() + fake.covariance.numpy() - 2.0 * np.real(root))
    expected = (real.mean - fake.mean).square().sum().item() + traces
    assert by_root == pytest.approx(expected, rel=1e-5)  # sqrtm of a singular matrix keeps fewer digits
