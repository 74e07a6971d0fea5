"""The shipped extractors rank degrees of quality, and see nothing wrong with real images. Real data for digits and photos."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.datasets import builtin
from genimg.data.datasets.shapes import ShapesDataset
from genimg.data.subsets import random_order
from genimg.evaluation.distances import expected_coverage, frechet_distance, kernel_distance, neighbor_rates
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.gaussian import GaussianStatistics

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "extractor_ranking.py"
COUNT = 300  # images a side

Pixels = NDArray[np.uint8]


def shapes(request: pytest.FixtureRequest) -> list[Pixels]:
    drawn = (ShapesDataset(seed=seed, num_images=COUNT, image_size=32, channels=3, num_objects=1) for seed in (0, 2))
    return [source.read_many(np.arange(COUNT)) for source in drawn]


def mnist(request: pytest.FixtureRequest) -> list[Pixels]:
    root = str(request.getfixturevalue("real_mnist_root"))
    source = builtin.mnist(root=root, split="test", image_size=28, channels=1, fit="stretch")
    order = random_order(len(source), seed=0)
    return [source.read_many(order[:COUNT]), source.read_many(order[COUNT : 2 * COUNT])]


def cifar10(request: pytest.FixtureRequest) -> list[Pixels]:
    root = str(request.getfixturevalue("real_cifar10_root") / "cifar10" / "train")
    source = builtin.folder(root=root, image_size=32, channels=3, fit="crop", labels="required")
    order = random_order(len(source), seed=0)
    return [source.read_many(order[:COUNT]), source.read_many(order[COUNT : 2 * COUNT])]


CASES: dict[str, Callable[[pytest.FixtureRequest], list[Pixels]]] = {
    "shapes_v2": shapes,
    "mnist_v2": mnist,
    "cifar10_v2": cifar10,
}


@pytest.fixture(scope="module")
def ranking() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extractor_ranking", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(
    scope="module",
    params=[
        "shapes_v2",
        *(pytest.param(name, marks=[pytest.mark.real_data, pytest.mark.exhaustive]) for name in ("mnist_v2", "cifar10_v2")),
    ],
)
def case(request: pytest.FixtureRequest) -> tuple[Classifier, Tensor, Pixels]:
    """An extractor, the features of real images, and others to degrade."""
    real, others = CASES[request.param](request)
    extractor = Classifier(classifier=request.param, sha256=None)
    return extractor, features(extractor, real), others


def features(extractor: Classifier, images: Pixels) -> Tensor:
    return extractor(torch.from_numpy(images))[0].double()


def test_distances_grow_with_every_degradation(case: tuple[Classifier, Tensor, Pixels], ranking: ModuleType) -> None:
    extractor, real, others = case
    statistics = GaussianStatistics.of(real)
    correlations: dict[str, list[float]] = {"fd": [], "kd": []}
    for degrade, strengths in ranking.DEGRADATIONS.values():
        found = [features(extractor, degrade(others, strength)) for strength in strengths]
        distances = [frechet_distance(statistics, GaussianStatistics.of(each)) for each in found]
        correlations["fd"].append(ranking.spearman(distances))
        correlations["kd"].append(
            ranking.spearman([kernel_distance(real, each, subsets=10, subset_size=200)[0] for each in found])
        )
    for name, values in correlations.items():
        assert np.mean(values) >= 0.95, f"{name}: {values}"
        assert min(values) > 0.89, f"{name}: {values}"


def test_real_images_are_no_further_than_chance(case: tuple[Classifier, Tensor, Pixels]) -> None:
    """Expected: density 1 and the coverage of Naeem et al.'s equation 8; a standard deviation is about 0.02 at 300 images."""
    extractor, real, others = case
    found = features(extractor, others)
    rates = neighbor_rates(real.float(), found.float(), neighbors=3, density_neighbors=5)
    assert rates.density == pytest.approx(1.0, abs=0.2)
    assert rates.coverage == pytest.approx(expected_coverage(COUNT, COUNT, 5), abs=0.07)
    assert rates.precision > 0.8
    assert rates.recall > 0.8
    distance, _ = kernel_distance(real, found, subsets=50, subset_size=250)
    assert abs(distance) < 0.02


def test_features_are_centred_and_of_unit_mean_square(case: tuple[Classifier, Tensor, Pixels]) -> None:
    _, real, _ = case
    assert real.mean(dim=0).abs().max() < 0.5
    assert real.square().mean().item() == pytest.approx(1.0, abs=0.1)
