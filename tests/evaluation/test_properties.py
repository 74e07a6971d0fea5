"""What any user expects of the metrics, on real images where they are beside the checkout and on drawn ones everywhere."""

import dataclasses

import numpy as np
import pytest
import scipy.ndimage
import torch

from genimg.data.datasets.builtin import ArrayDataset, folder, mnist
from genimg.data.datasets.shapes import shapes
from genimg.data.loader import ImageLoader
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.metrics import ClassCoverage, FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall

CPU = torch.device("cpu")
COUNT = 800


@dataclasses.dataclass
class Case:
    """Two disjoint sets of real images with their extractor; labels of the second."""

    extractor: Classifier
    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray


def read(source, indices):
    return np.stack([source.read(int(i)) for i in indices])


@pytest.fixture(scope="module")
def drawn_shapes():
    source = shapes(seed=5, num_images=2 * COUNT, image_size=32, channels=3, num_objects=1, labels="color_shape")
    labels = source.labels[COUNT:]
    return Case(
        Classifier(classifier="shapes_v2", sha256=None),
        read(source, range(COUNT)),
        read(source, range(COUNT, 2 * COUNT)),
        labels,
    )


@pytest.fixture(scope="module")
def real_mnist(real_mnist_root):
    source = mnist(root=str(real_mnist_root), split="test", image_size=28, channels=1, fit="stretch")
    order = np.random.default_rng(0).permutation(len(source))
    first, second = order[:COUNT], order[COUNT : 2 * COUNT]
    return Case(
        Classifier(classifier="mnist_v2", sha256=None), read(source, first), read(source, second), source.labels[second]
    )


@pytest.fixture(scope="module")
def real_cifar10(real_cifar10_root):
    root = real_cifar10_root / "cifar10" / "train"
    source = folder(root=str(root), image_size=32, channels=3, fit="crop", labels="required")
    order = np.random.default_rng(0).permutation(len(source))
    first, second = order[:500], order[500:1000]
    return Case(
        Classifier(classifier="cifar10_v2", sha256=None), read(source, first), read(source, second), source.labels[second]
    )


@pytest.fixture(
    params=[
        "drawn_shapes",
        pytest.param("real_mnist", marks=[pytest.mark.real_data, pytest.mark.exhaustive]),
        pytest.param("real_cifar10", marks=[pytest.mark.real_data, pytest.mark.exhaustive]),
    ]
)
def case(request, tmp_path):
    found = request.getfixturevalue(request.param)
    found.cache = str(tmp_path / "cache")
    return found


def measure(case, real, fake, batch_size=128):
    """Values by their short names, without the count and the extractor."""
    metrics = {
        "frechet_distance": FrechetDistance(),
        "inception_score": InceptionScore(splits=2),
        "kernel_distance": KernelDistance(subsets=20, subset_size=200),
        "precision_recall": PrecisionRecall(neighbors=3, density_neighbors=5),
        "class_coverage": ClassCoverage(least_share=0.1),
    }
    evaluator = Evaluator(
        extractor=case.extractor, metrics=metrics, num_images=len(fake), num_real=None, batch_size=batch_size,
        seed=0, bootstrap=0, reconstructions=0,
        cache_dir=case.cache,
    )  # fmt: skip
    sides = (
        DatasetImages(
            ImageLoader(
                ArrayDataset("images", images), storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU
            )
        )
        for images in (real, fake)
    )
    values = evaluator.compare(*sides, CPU).values
    ending = f"{len(fake)}_{case.extractor.name}"
    return {name.replace(ending, ""): value for name, value in values.items()}


def blurred(images, sigma):
    return np.stack([scipy.ndimage.gaussian_filter(image.astype(np.float64), (0, sigma, sigma)) for image in images]).astype(
        np.uint8
    )


def noisy(images, deviation):
    noise = np.random.default_rng(1).normal(0.0, deviation, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def test_a_set_is_at_no_distance_from_itself(case):
    values = measure(case, case.first, case.first)
    assert values["fd"] == pytest.approx(0.0, abs=1e-6)
    assert values["precision"] == values["recall"] == values["coverage"] == values["class_coverage"] == 1.0
    assert values["class_kl"] == pytest.approx(0.0, abs=1e-12)
    assert abs(values["kd"]) < 0.05  # other subsets of the same images


def test_the_distances_are_symmetric_and_recall_is_precision_from_the_other_side(case):
    there, back = measure(case, case.first, case.second), measure(case, case.second, case.first)
    assert there["fd"] == pytest.approx(back["fd"], rel=1e-6)
    assert there["precision"] == pytest.approx(back["recall"], abs=1e-9)
    assert there["recall"] == pytest.approx(back["precision"], abs=1e-9)
    assert there["kd"] == pytest.approx(back["kd"], abs=3 * (there["kd_std"] + back["kd_std"]) / 20**0.5)


def test_neither_order_nor_batch_size_matters(case):
    once = measure(case, case.first, case.second, batch_size=128)
    again = measure(case, case.first[::-1].copy(), np.random.default_rng(3).permutation(case.second), batch_size=77)
    for name in ("fd", "precision", "recall", "density", "coverage", "class_coverage", "class_kl"):
        assert again[name] == pytest.approx(once[name], rel=1e-4, abs=2e-3), name
    assert measure(case, case.first, case.second, batch_size=13) == pytest.approx(once, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("spoil", "amounts"), [(blurred, (0.6, 1.2, 2.4)), (noisy, (16, 48, 96))], ids=["blur", "noise"])
def test_the_distances_grow_with_blur_and_noise_and_coverage_falls(case, spoil, amounts):
    measured = [measure(case, case.first, images) for images in (case.second, *(spoil(case.second, a) for a in amounts))]
    frechet, kernel = [values["fd"] for values in measured], [values["kd"] for values in measured]
    assert frechet == sorted(frechet)
    assert frechet[-1] > 3 * frechet[0]
    assert kernel == sorted(kernel)
    # Not precision: blurred photos, all alike, can lie deeper among the real ones.
    assert measured[-1]["coverage"] < measured[0]["coverage"]
    assert measured[-1]["recall"] < measured[0]["recall"]


def test_the_distance_grows_and_recall_falls_as_classes_are_dropped(case):
    classes = np.unique(case.labels)
    kept = (len(classes), (len(classes) + 1) // 2, 1)
    measured = [measure(case, case.first, case.second[np.isin(case.labels, classes[:count])]) for count in kept]
    distances = [values["fd"] for values in measured]
    assert distances == sorted(distances)
    recalls = [values["recall"] for values in measured]
    assert recalls == sorted(recalls, reverse=True)
    coverage = [values["class_coverage"] for values in measured]
    assert coverage == sorted(coverage, reverse=True)
    assert coverage[0] > 0.95
    assert measured[-1]["class_kl"] > measured[1]["class_kl"] > measured[0]["class_kl"]
    scores = [values["is"] for values in measured]
    assert scores == sorted(scores, reverse=True)


def test_a_small_evaluation_warns_in_words(case, caplog):
    measure(case, case.first, case.second[:100])
    assert "100 generated images are too few for 128 features" in caplog.text
