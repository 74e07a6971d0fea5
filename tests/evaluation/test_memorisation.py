"""Copies of training images are counted; fresh images are none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from scipy.spatial.distance import cdist

from genimg.data.datasets.builtin import ArrayDataset, mnist
from genimg.data.subsets import random_order
from genimg.errors import DataError
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.memorisation import Memorisation, closeness, fresh_deviation, memorised_share

CPU = torch.device("cpu")
DIMENSIONS = 8


def features_of(count: int, seed: int) -> torch.Tensor:
    """Of two clusters of unlike spread, as classes have them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, DIMENSIONS, generator=generator)
    tight = torch.rand(count, 1, generator=generator) < 0.4
    return torch.where(tight, 0.1 * values + 5.0, values)


def copies_of(training: torch.Tensor, count: int, seed: int, noise: float) -> torch.Tensor:
    """With noise, in units of the distance to the nearest neighbour."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(training), (count,), generator=generator)
    direction = torch.randn(count, DIMENSIONS, generator=generator)
    scales = closeness(training[rows] + 1e-4 * direction, training).scale
    return training[rows] + noise * scales[:, None] * direction / direction.norm(dim=1, keepdim=True)


def memorised(training: torch.Tensor, held_out: torch.Tensor, generated: torch.Tensor, quantile: float = 0.05) -> float:
    real, fake = (FeatureStats(GaussianStatistics.of(side), features=side) for side in (training, generated))
    real.training, real.held_out = real, FeatureStats(GaussianStatistics.of(held_out), features=held_out)
    values = Memorisation(quantile=quantile).compute(real, fake, CPU)
    assert list(values) == ["memorised"]
    return values["memorised"]


@pytest.mark.parametrize("quantile", [0.05, 0.25])
@pytest.mark.parametrize(("num_training", "count"), [(300, 1000), (3000, 1000), (3000, 400)])
def test_fresh_images_are_no_copies(num_training: int, count: int, quantile: float) -> None:
    training, found = features_of(num_training, 0), []
    for seed in range(1, 13):
        found.append(memorised(training, features_of(800, seed), features_of(count, 100 + seed), quantile))
    deviation = fresh_deviation(quantile, count, 800)
    assert np.mean(found) == pytest.approx(0.0, abs=4 * deviation / math.sqrt(12))
    assert np.std(found) == pytest.approx(deviation, rel=0.6)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_copies_are_all_found_near_or_exact(noise: float) -> None:
    training, held_out = features_of(2000, 0), features_of(1000, 1)
    assert memorised(training, held_out, copies_of(training, 500, 2, noise)) >= 0.99


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_copies_among_fresh_images_is_what_is_measured(share: float) -> None:
    training, held_out = features_of(2000, 0), features_of(2000, 1)
    count = round(2000 * share)
    generated = torch.cat([copies_of(training, count, 2, 0.0), features_of(2000 - count, 3)])
    assert memorised(training, held_out, generated) == pytest.approx(share, abs=4 * fresh_deviation(0.05, 2000, 2000))


def test_images_far_from_all_real_ones_are_no_copies() -> None:
    training, held_out = features_of(2000, 0), features_of(1000, 1)
    assert memorised(training, held_out, features_of(500, 2) + 100.0) == pytest.approx(-0.05 / 0.95, abs=1e-3)


def test_a_copy_of_an_image_that_is_there_twice_is_a_copy() -> None:
    training = features_of(500, 0).repeat(2, 1)
    assert memorised(training, features_of(500, 1), training[:200]) == 1.0


def test_closeness_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genimg.evaluation.memorisation._BLOCK", 7)
    training, queries = features_of(60, 0), features_of(40, 1)
    found = closeness(queries, training)
    away, within = cdist(queries.double(), training.double()), cdist(training.double(), training.double())
    np.fill_diagonal(within, np.inf)
    assert found.index.tolist() == away.argmin(axis=1).tolist()
    np.testing.assert_allclose(found.distance, away.min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.scale, within.min(axis=1)[away.argmin(axis=1)], rtol=1e-5)
    assert closeness(training[:5], training).distance.tolist() == [0.0] * 5


def test_the_bound_is_the_quantile_of_the_held_out_ratios() -> None:
    training, held_out = features_of(500, 0), features_of(200, 1)
    known = closeness(held_out, training)
    for quantile in (0.05, 0.5):
        bound = np.sort(known.ratio.numpy())[round(200 * quantile) - 1]
        found = closeness(features_of(300, 2), training)
        share = (found.ratio.numpy() <= bound).mean()
        assert memorised_share(found, known, quantile) == pytest.approx((share - quantile) / (1 - quantile), abs=1e-9)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, float("nan")])
def test_a_quantile_that_is_none_is_refused(quantile: float) -> None:
    with raises(ValueError, "quantile"):
        Memorisation(quantile=quantile)


def test_a_single_training_image_is_refused() -> None:
    with raises(DataError, word="training"):
        closeness(features_of(3, 0), features_of(1, 1))


@pytest.mark.real_data
def test_digits_with_a_little_noise_are_copies_and_fresh_digits_are_none(real_mnist_root: Path) -> None:
    settings = {"root": str(real_mnist_root), "image_size": 28, "channels": 1, "fit": "stretch"}
    source = mnist(split="train", **settings)
    assert isinstance(source, ArrayDataset)
    extractor, order = Classifier(classifier="mnist_v2", sha256=None), random_order(60_000, seed=0)

    def of(images: np.ndarray) -> torch.Tensor:
        return extractor(torch.from_numpy(np.ascontiguousarray(images)))[0]

    training, held_out, fresh = (source.images[part] for part in np.split(order[:1200], [500, 850]))
    noise = np.random.default_rng(0).normal(0.0, 2.0, (350, 1, 28, 28))
    copies = np.clip(np.round(training[:350] + noise), 0, 255).astype(np.uint8)
    features, calibration = of(training), of(held_out)
    assert memorised(features, calibration, of(copies)) > 0.98
    assert memorised(features, calibration, of(fresh)) == pytest.approx(0.0, abs=3.5 * fresh_deviation(0.05, 350, 350))
