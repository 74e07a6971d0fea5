"""The numbers of torch_fidelity.calculate_metrics, on the same images and weights."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from genimg.data.datasets.shapes import shapes
from genimg.data.loader import ImageLoader
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.extractors.inception import Inception
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.metrics import FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall

CPU = torch.device("cpu")


class Uint8Images(Dataset):
    """What torch-fidelity takes."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return torch.from_numpy(self.source.read(index))


class Registered(FeatureExtractorBase):
    """The shipped classifier of shapes, as torch-fidelity wants its extractors."""

    def __init__(self, name, features_list, **settings):
        super().__init__(name, features_list)
        self.extractor = Classifier(classifier="shapes_v2", sha256=None)

    @staticmethod
    def get_provided_features_list():
        return "128", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "128"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        found = dict(zip(("128", "logits"), self.extractor(images), strict=True))
        return tuple(found[name] for name in self.features_list)


def images(seed, count):
    return shapes(seed=seed, num_images=count, image_size=32, channels=3, num_objects=1)


def darkened(read):
    return lambda index: (read(index) * 0.96).astype(np.uint8)


def ours(extractor, real, fake, *, splits, subset_size, tmp_path):
    metrics = {
        "frechet_distance": FrechetDistance(),
        "inception_score": InceptionScore(splits=splits),
        "kernel_distance": KernelDistance(subsets=20, subset_size=subset_size),
        "precision_recall": PrecisionRecall(neighbors=3, density_neighbors=5),
    }
    evaluator = Evaluator(
        extractor=extractor, metrics=metrics, num_images=len(fake), num_real=None, batch_size=32, seed=0,
        bootstrap=0, reconstructions=0, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    sides = (
        ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU)
        for source in (real, fake)
    )
    return evaluator.compare(*(DatasetImages(side) for side in sides), CPU).values


def theirs(name, real, fake, *, splits, subset_size, **settings):
    """torch-fidelity's first input is the generated one."""
    return calculate_metrics(
        input1=Uint8Images(fake), input2=Uint8Images(real), feature_extractor=name, isc=True, fid=True, kid=True, prc=True,
        isc_splits=splits, kid_subsets=20, kid_subset_size=subset_size, prc_neighborhood=3, cuda=False, batch_size=50,
        save_cpu_ram=True, cache=False, verbose=False, **settings,
    )  # fmt: skip


def check(found, expected, suffix, count, deviation=1e-4):
    names = {key: f"{key}{count}_{suffix}" for key in ("fd", "is", "kd", "precision", "recall")}
    assert found[names["fd"]] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found[names["is"]] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found[f"{names['is']}_std"] == pytest.approx(expected["inception_score_std"], abs=1e-6)
    assert found[names["kd"]] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found[f"{names['kd']}_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=deviation)
    assert found[names["precision"]] == pytest.approx(expected["precision"], abs=1e-4)
    assert found[names["recall"]] == pytest.approx(expected["recall"], abs=1e-4)


def test_all_metrics_agree_with_torch_fidelity_on_the_shipped_classifier(tmp_path, monkeypatch):
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "genimg-shapes", Registered)
    real, fake = images(1, 600), images(2, 600)
    monkeypatch.setattr(fake, "read", darkened(fake.read))
    found = ours(Classifier(classifier="shapes_v2", sha256=None), real, fake, splits=7, subset_size=200, tmp_path=tmp_path)
    expected = theirs("genimg-shapes", real, fake, splits=7, subset_size=200)
    check(found, expected, "shapes_v2", 600)
    assert 0.0 < expected["precision"] < 1.0  # a case that could be got wrong
    assert 0.0 < expected["recall"] < 1.0


@pytest.mark.exhaustive
def test_all_metrics_agree_with_torch_fidelity_on_inception(tmp_path, monkeypatch, inception_weights):
    """On 2048 features of fewer images: the covariances are singular."""
    real, fake = images(1, 20), images(2, 20)
    monkeypatch.setattr(fake, "read", darkened(fake.read))
    settings = {"splits": 4, "subset_size": 10}
    found = ours(Inception(weights=str(inception_weights), sha256=None), real, fake, **settings, tmp_path=tmp_path)
    expected = theirs("inception-v3-compat", real, fake, **settings, feature_extractor_weights_path=str(inception_weights))
    # Of subsets of 10 images; the two round their features differently, by how much depends on the processor.
    check(found, expected, "inception_unknown", 20, deviation=1e-3)
