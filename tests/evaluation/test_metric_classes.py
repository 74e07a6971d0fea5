"""Each metric: its names, its values against definitions and other programs, and what it refuses."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from errors import raises
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from genimg.data.subsets import fixed_subset
from genimg.evaluation.compare import compare
from genimg.evaluation.distances import expected_coverage
from genimg.evaluation.feature_stats import Collector, FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.memorisation import Memorisation
from genimg.evaluation.metrics import (
    ClassCoverage,
    ConditionalAccuracy,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Metric,
    PrecisionRecall,
    SpatialFrechetDistance,
)

CPU = torch.device("cpu")
DIMENSIONS = 5


def name(short_name, count=9):
    metric = short_name.removesuffix("_std")
    return f"{metric}{count}_x{short_name.removeprefix(metric)}"


def computed(metric, real, fake):
    """The values by full name, in which 9 stands for the number of generated images."""
    return compare(real, fake, [metric], lambda short, count: name(short, 9 if count == fake.num_images else count), CPU)


def features_of(count, seed, shift=0.0):
    return torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def summary_of(features, kept=True):
    return FeatureStats(GaussianStatistics.of(features), features=features.float() if kept else None)


def of_classes(predictions, labels=None):
    """A summary of images whose classes are known and whose features are not looked at."""
    predictions = torch.tensor(predictions)
    labels = None if labels is None else torch.tensor(labels)
    moments = GaussianStatistics.of(features_of(max(2, len(predictions)), 0))
    return FeatureStats(moments, predictions=predictions, labels=labels)


FLAGS = [
    # metric, short name, higher is better, needs features, needs logits, splits, can be resampled
    (FrechetDistance(), "fd", False, False, False, None, True),
    (InceptionScore(splits=7), "is", True, False, True, 7, True),
    (KernelDistance(subsets=3, subset_size=4), "kd", False, True, False, None, False),
    (PrecisionRecall(neighbors=3, density_neighbors=5), "precision", True, True, False, None, False),
    (ClassCoverage(least_share=0.1), "class_coverage", True, False, True, None, False),
    (ConditionalAccuracy(), "accuracy", True, False, True, None, True),
    (Memorisation(quantile=0.05), "memorised", False, True, False, None, False),
    (SpatialFrechetDistance(), "sfd", False, False, False, None, False),
]


@pytest.mark.parametrize("row", FLAGS, ids=lambda row: row[1])
def test_a_metric_says_what_it_needs_and_which_way_is_better(row):
    metric, *flags = row
    found = [metric.short_name, metric.higher_is_better, metric.needs_features, metric.needs_logits, metric.splits]
    assert [*found, metric.can_be_resampled] == flags


def test_every_metric_is_in_the_table_above():
    shipped = {kind for kind in Metric.__subclasses__() if kind.__module__.startswith("genimg.")}
    assert {type(row[0]) for row in FLAGS} == shipped


@pytest.mark.parametrize("row", FLAGS, ids=lambda row: row[1])
def test_the_first_value_has_the_short_name(row):
    generator = torch.Generator().manual_seed(0)
    real, fake = (Collector(30, splits=(7,), kept=np.arange(30), spatial=True) for _ in range(2))
    for side in (real, fake):
        logits, spatial = torch.randn(30, 4, generator=generator), torch.randn(30, 3, generator=generator)
        side.add(torch.randn(30, DIMENSIONS, generator=generator), logits, torch.zeros(30, dtype=torch.int64), spatial)
    known = real.result()
    known.training, known.held_out = known, fake.result()
    values = computed(row[0], known, fake.result())
    assert next(iter(values)) == name(row[1])
    assert all(type(value) is float for value in values.values())


def test_frechet_distance_equals_that_of_scipys_matrix_root():
    real, fake = features_of(300, 0), features_of(200, 1, shift=0.3) * 1.5
    (value,) = computed(FrechetDistance(), summary_of(real, False), summary_of(fake, False)).values()
    covariances = [np.cov(side.numpy(), rowvar=False) for side in (real, fake)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = (real.mean(dim=0) - fake.mean(dim=0)).numpy()
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2.0 * np.real(root))
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_equals_torch_fidelitys(splits):
    logits = 3.0 * torch.randn(57, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    collector = Collector(57, splits=(splits,))
    for part in logits.split(10):
        collector.add(torch.zeros(len(part), 2), part, None)
    made = collector.result()
    values = computed(InceptionScore(splits=splits), summary_of(features_of(9, 0)), made)
    expected = isc_features_to_metric(logits, splits=splits)
    assert list(values) == ["is9_x", "is9_x_std"]
    assert values["is9_x"] == pytest.approx(expected[KEY_METRIC_ISC_MEAN], rel=1e-10)
    assert values["is9_x_std"] == pytest.approx(expected[KEY_METRIC_ISC_STD], rel=1e-8, abs=1e-12)
    assert 1.0 < values["is9_x"] < 8.0


def test_kernel_distance_equals_torch_fidelitys():
    real, fake = features_of(80, 0).float(), features_of(60, 1, shift=0.2).float()
    values = computed(KernelDistance(subsets=6, subset_size=40), summary_of(real), summary_of(fake))
    expected = kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=6, kid_subset_size=40, verbose=False, rng_seed=2020
    )
    assert list(values) == ["kd9_x", "kd9_x_std"]
    assert values["kd9_x"] == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-4)
    assert values["kd9_x_std"] == pytest.approx(expected[KEY_METRIC_KID_STD], rel=1e-4)


def unbiased_mmd(x, y):
    """Bińkowski et al. 2018, equation 4, term by term."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1.0) ** 3

    n, m = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2.0 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("subset_size", [20, 1000])
def test_kernel_distance_of_fewer_images_than_a_subset_takes_all_once_and_has_no_deviation(subset_size):
    real, fake = features_of(20, 0), features_of(20, 1, shift=0.5)
    values = computed(KernelDistance(subsets=50, subset_size=subset_size), summary_of(real), summary_of(fake))
    assert list(values) == ["kd9_x"]
    assert values["kd9_x"] == pytest.approx(unbiased_mmd(real.numpy(), fake.numpy()), rel=1e-4)


def test_kernel_distance_of_unequal_sets_smaller_than_a_subset_takes_subsets_of_the_smaller_ones_size():
    real, fake = features_of(50, 0), features_of(20, 1, shift=0.5)
    values = computed(KernelDistance(subsets=5, subset_size=1000), summary_of(real), summary_of(fake))
    expected = kid_features_to_metric(fake, real, kid_subsets=5, kid_subset_size=20, verbose=False, rng_seed=2020)
    assert values["kd9_x"] == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-4)
    assert "kd9_x_std" not in values  # one side is drawn whole each time


def rates_by_definition(real, fake, k, density_k):
    """Kynkäänniemi et al. 2019, equations 1-3; Naeem et al. 2020, equations 4-5."""

    def distance(a, b):
        return np.sqrt(((a - b) ** 2).sum())

    def radii(points, count):
        return [sorted(distance(a, b) for j, b in enumerate(points) if j != i)[count - 1] for i, a in enumerate(points)]

    real_radii, fake_radii, wide = radii(real, k), radii(fake, k), radii(real, density_k)
    return {
        "precision": np.mean([any(distance(y, x) <= r for x, r in zip(real, real_radii, strict=True)) for y in fake]),
        "recall": np.mean([any(distance(x, y) <= r for y, r in zip(fake, fake_radii, strict=True)) for x in real]),
        "density": sum(distance(y, x) <= r for y in fake for x, r in zip(real, wide, strict=True)) / (density_k * len(fake)),
        "coverage": np.mean([any(distance(y, x) <= r for y in fake) for x, r in zip(real, wide, strict=True)]),
    }


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (4, 2), (1, 1)])
def test_precision_recall_density_and_coverage_are_those_of_the_definitions(k, density_k):
    real, fake = features_of(30, 0).float(), features_of(30, 1, shift=0.7).float()
    metric = PrecisionRecall(neighbors=k, density_neighbors=density_k)
    values = computed(metric, summary_of(real), summary_of(fake))
    expected = rates_by_definition(real.numpy(), fake.numpy(), k, density_k)
    assert list(values) == ["precision9_x", "recall9_x", "density9_x", "coverage9_x"]
    assert values == pytest.approx({name(key): value for key, value in expected.items()}, abs=1e-12)
    assert 0.0 < values["precision9_x"] < 1.0


@pytest.mark.parametrize(("num_real", "num_fake"), [(40, 30), (30, 40)])
def test_neighbours_are_those_among_equally_many_random_images(num_real, num_fake):
    """As in Kynkäänniemi et al. 2019 and prdc; the name has their number where it is not that of the generated images."""
    real, fake = features_of(num_real, 0).float(), features_of(num_fake, 1, shift=0.7).float()
    values = computed(PrecisionRecall(neighbors=3, density_neighbors=5), summary_of(real), summary_of(fake))
    chosen = fixed_subset(30, 40)
    x, y = (side if len(side) == 30 else side[chosen] for side in (real, fake))
    expected = rates_by_definition(x.numpy(), y.numpy(), 3, 5)
    full = name if num_fake == 30 else lambda metric: name(metric, 30)
    assert values == pytest.approx({full(key): value for key, value in expected.items()}, abs=1e-12)


@pytest.mark.parametrize(("num_real", "num_fake"), [(500, 500), (3000, 500), (500, 3000), (2000, 2000), (3000, 2000)])
def test_a_perfect_model_has_the_expected_density_and_coverage_at_every_count(num_real, num_fake):
    """Against all real images coverage would be 0.55 at 500 of 3,000, and above 0.99 the other way."""
    metric, count = PrecisionRecall(neighbors=3, density_neighbors=5), min(num_real, num_fake)
    rows = []
    for seed in (0, 10, 20):
        real, fake = summary_of(features_of(num_real, seed)), summary_of(features_of(num_fake, seed + 1))
        values = metric.compute(real, fake, CPU)
        rows.append([values[key] for key in ("precision", "recall", "density", "coverage")])
    precision, recall, density, coverage = np.mean(rows, axis=0)
    assert density == pytest.approx(1.0, abs=0.03)  # a real image's ball holds k of N others, and so a generated one k / N of
    assert coverage == pytest.approx(expected_coverage(count, count, 5), abs=0.01)  # the time
    assert expected_coverage(count, count, 5) == pytest.approx(1 - 1 / 2**5, abs=0.001)
    assert precision == pytest.approx(recall, abs=0.02)


@pytest.mark.parametrize(("num_real", "num_fake"), [(5, 30), (30, 5), (2, 2)])
def test_neighbours_need_more_images_than_neighbours(num_real, num_fake):
    real, fake = summary_of(features_of(num_real, 0)), summary_of(features_of(num_fake, 1))
    with pytest.raises(ValueError, match=rf"more than 5 images .* {num_real} real and {num_fake} generated"):
        computed(PrecisionRecall(neighbors=3, density_neighbors=5), real, fake)
    with pytest.raises(ValueError, match="more than 5 images"):
        computed(PrecisionRecall(neighbors=5, density_neighbors=3), real, fake)


def test_as_many_images_as_are_needed_are_enough():
    values = computed(
        PrecisionRecall(neighbors=3, density_neighbors=5), summary_of(features_of(6, 0)), summary_of(features_of(6, 1))
    )
    assert values["density9_x"] > 0.0


@pytest.mark.parametrize(
    "metric", [KernelDistance(subsets=2, subset_size=5), PrecisionRecall(neighbors=1, density_neighbors=1)]
)
@pytest.mark.parametrize("lacking", ["real", "fake"])
def test_summaries_without_features_are_refused(metric, lacking):
    real, fake = (summary_of(features_of(20, 0), kept=side != lacking) for side in ("real", "fake"))
    with pytest.raises(ValueError, match="no features of individual images"):
        computed(metric, real, fake)


def test_coverage_of_all_classes_is_full_and_of_equal_shares_has_no_divergence():
    values = computed(ClassCoverage(least_share=0.5), of_classes([0, 1, 1, 2, 2, 2] * 2), of_classes([2, 1, 2, 0, 1, 2]))
    assert values == {"class_coverage9_x": 1.0, "class_kl9_x": pytest.approx(0.0, abs=1e-12)}


def test_a_class_that_is_never_made_is_not_covered():
    real = of_classes([0] * 25 + [1] * 25 + [2] * 25 + [3] * 25)
    values = computed(ClassCoverage(least_share=0.0), real, of_classes([0] * 30 + [2] * 40 + [3] * 30))
    assert values["class_coverage9_x"] == 0.75
    expected = scipy.stats.entropy([0.3, 0.0, 0.4, 0.3], [0.25] * 4)
    assert values["class_kl9_x"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("made", "covered"), [(9, 0.5), (10, 1.0), (11, 1.0)])
def test_a_class_is_met_from_its_least_share_on(made, covered):
    real = of_classes([0] * 500 + [1] * 500)  # 0.2 of a share of 0.5 is 0.1: 10 of 100 images
    fake = of_classes([0] * (100 - made) + [1] * made)
    assert computed(ClassCoverage(least_share=0.2), real, fake)["class_coverage9_x"] == covered


def test_the_divergence_of_classes_is_scipys_relative_entropy_where_no_class_is_missing():
    generator = np.random.default_rng(0)
    real, fake = generator.choice(6, 700, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]), generator.choice(6, 400)
    values = computed(ClassCoverage(least_share=0.1), of_classes(real.tolist()), of_classes(fake.tolist()))
    p, q = (np.bincount(side, minlength=6) / len(side) for side in (real, fake))
    assert p.min() > 0
    assert values["class_kl9_x"] == pytest.approx(scipy.stats.entropy(q, p), rel=1e-12)
    assert values["class_kl9_x"] > 0.05


@pytest.mark.parametrize("new", [3, 1])
def test_a_class_that_only_generated_images_have_counts_as_half_a_real_image(new):
    present = [c for c in range(4) if c != new]
    real, fake = of_classes(present * 10), of_classes([*present * 3, new])
    values = computed(ClassCoverage(least_share=0.1), real, fake)
    q, p = np.full(4, 0.3), np.full(4, 1 / 3)
    q[new], p[new] = 0.1, 0.5 / 30
    assert values["class_coverage9_x"] == 1.0
    assert values["class_kl9_x"] == pytest.approx((q * np.log(q / p)).sum(), rel=1e-12)


def test_statistics_of_another_program_have_no_classes_to_cover():
    nothing = summary_of(features_of(9, 0))
    some = of_classes([0, 1, 1])
    metric = ClassCoverage(least_share=0.1)
    assert computed(metric, nothing, some) == {}
    assert computed(metric, some, nothing) == {}


def test_accuracy_is_the_share_of_images_seen_as_they_were_made():
    fake = of_classes([0, 1, 2, 2, 1, 0, 0, 0], labels=[0, 1, 2, 1, 1, 0, 3, 2])
    assert computed(ConditionalAccuracy(), of_classes([0, 1]), fake) == {"accuracy9_x": 5 / 8}


def test_accuracy_is_absent_without_labels_or_classes():
    real = of_classes([0, 1], labels=[0, 1])
    assert computed(ConditionalAccuracy(), real, of_classes([0, 1, 1])) == {}
    unclassified = FeatureStats(GaussianStatistics.of(features_of(3, 0)), labels=torch.tensor([0, 1, 1]))
    assert computed(ConditionalAccuracy(), real, unclassified) == {}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: InceptionScore(splits=0), "splits=0"),
        (lambda: KernelDistance(subsets=0, subset_size=10), "subsets=0"),
        (lambda: KernelDistance(subsets=5, subset_size=1), "subset_size=1"),
        (lambda: PrecisionRecall(neighbors=0, density_neighbors=5), "neighbors=0"),
        (lambda: PrecisionRecall(neighbors=3, density_neighbors=0), "density_neighbors"),
        (lambda: ClassCoverage(least_share=-0.1), "least_share=-0.1"),
        (lambda: ClassCoverage(least_share=1.1), "least_share=1.1"),
        (lambda: ClassCoverage(least_share=float("nan")), "least_share=nan"),
    ],
)
def test_settings_out_of_range_are_refused(build, words):
    with raises(ValueError, word=words):
        build()


def test_settings_at_the_ends_of_their_ranges_are_taken():
    assert InceptionScore(splits=1).splits == 1
    assert KernelDistance(subsets=1, subset_size=2).subset_size == 2
    assert PrecisionRecall(neighbors=1, density_neighbors=1).neighbors == 1
    assert [ClassCoverage(least_share=share).least_share for share in (0.0, 1.0)] == [0.0, 1.0]
