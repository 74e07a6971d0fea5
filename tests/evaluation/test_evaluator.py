"""The evaluator: what its values depend on and what they do not, and its cache of real statistics."""

import os
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from errors import raises
from torch import nn
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from genimg.data.datasets.builtin import ArrayDataset, ImageDataset, digest
from genimg.data.loader import ImageLoader
from genimg.data.subsets import random_subset, subset_of
from genimg.errors import ConfigError, DataError
from genimg.evaluation.distances import neighbor_rates
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import EvaluationInterruptedError
from genimg.evaluation.feature_stats import kept_positions
from genimg.evaluation.image_sets import DatasetImages, NonFiniteImagesError
from genimg.evaluation.memorisation import Memorisation, closeness, memorised_share
from genimg.evaluation.metrics import (
    ConditionalAccuracy,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    SpatialFrechetDistance,
)
from genimg.evaluation.names import short_count
from genimg.evaluation.stats_cache import SavedStatistics
from genimg.methods.base import Method
from genimg.methods.options import NoOptions
from genimg.utils.environment import versions
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import normal_latents

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (1, 4, 4)
NUM_FEATURES, NUM_CLASSES = 6, 5
CLASSES = ("a", "b", "c", "d", "e")


class LinearExtractor(Extractor):
    """A fixed random projection of the pixels; keeps the images it was given."""

    def __init__(self, name="linear", weights_sha256="abc", num_features=NUM_FEATURES, has_logits=True, class_names=()):
        super().__init__(
            name=name,
            network=nn.Identity(),
            weights_sha256=weights_sha256,
            resize="none",
            channels="as they are",
            has_logits=has_logits,
            class_names=class_names,
        )
        self.seen = []
        self.precisions = set()
        self.num_features = num_features
        generator = torch.Generator().manual_seed(0)
        self.projection = torch.randn(16, num_features + NUM_CLASSES, generator=generator, dtype=torch.float64)

    def extract(self, images):
        assert images.dtype == torch.uint8
        self.seen.append(images)
        self.precisions.add(torch.get_float32_matmul_precision())
        projected = images.flatten(1).double() / 64.0 @ self.projection
        return projected[:, : self.num_features], projected[:, self.num_features :] if self.has_logits else None


class Painter(Method):
    """Draws each latent as pixels; ``scale`` is what training would change."""

    sampling_options = NoOptions()

    def before_sampling(self):
        pass

    def check_options(self, options):
        pass

    def __init__(self, scale=0.5, broken=()):
        super().__init__()
        self.scale = scale
        self.broken = broken

    def parameter_groups(self):
        return {}

    def step(self, batch, progress, update):
        return {}

    def draw(self, indices, seed):
        return {"latent": normal_latents(seed, indices, 16), "index": torch.tensor(list(indices))}

    def sample(self, batch, options=None):
        images = (batch["latent"] * self.scale).clamp(-1.0, 1.0).view(-1, *SHAPE)
        broken = torch.isin(batch["index"], torch.tensor(self.broken, dtype=torch.int64))
        return torch.where(broken[:, None, None, None], torch.nan, images)

    def check(self, image):
        pass

    def preview(self, batch, drawn):
        return {}


class LabelledPainter(Painter):
    """Is told a class, and paints as before."""

    def draw(self, indices, seed):
        return super().draw(indices, seed) | {"label": torch.tensor(list(indices)) % NUM_CLASSES}


class Autoencoder(Painter):
    """Reconstructs each image a little darker."""

    def __init__(self, darker=0.0):
        super().__init__()
        self.darker = darker

    def encode(self, batch):
        raise NotImplementedError

    def reconstruct(self, batch):
        return (batch["image"] - self.darker).clamp(-1.0, 1.0)


class CountingDataset(ImageDataset):
    """Random images that remember which of them were read, and can be forbidden to be read."""

    def __init__(self, num_images=23, seed=0, class_names=()):
        self.name = "counting"
        self.shape = SHAPE
        self.class_names = class_names
        self.pixels = np.random.default_rng(seed).integers(0, 256, (num_images, *SHAPE), dtype=np.uint8)
        self.fingerprint = digest("counting", num_images, seed)
        self.read_indices = []
        self.forbidden = False

    def __len__(self):
        return len(self.pixels)

    def read(self, index):
        assert not self.forbidden, "the real images were read again"
        self.read_indices.append(index)
        return self.pixels[index]


def data_of(source):
    return ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU)


def dataset(num_images, seed):
    """Images in memory, as another program's samples are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_images, *SHAPE), dtype=np.uint8)
    return DatasetImages(data_of(ArrayDataset(f"array {seed}", pixels)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


def make_evaluator(extractor=None, **changes):
    settings = {
        "metrics": {"frechet_distance": FrechetDistance(), "inception_score": InceptionScore(splits=3)},
        "num_images": 37,
        "num_real": None,
        "batch_size": 8,
        "seed": 0,
        "bootstrap": 0,
        "reconstructions": 0,
        "cache_dir": None,
    }
    return Evaluator(extractor=extractor or LinearExtractor(), **{**settings, **changes})


def levels(method, count, seed=0):
    """The method's images as they would be saved."""
    made = method.sample(method.draw(range(count), seed))
    return (made * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def frechet_distance_of_scipy(real, fake):
    """Heusel et al. 2017, equation 6, of features [N, D], with a general matrix root."""
    covariances = [np.cov(features.numpy(), rowvar=False) for features in (real, fake)]
    difference = (real.mean(dim=0) - fake.mean(dim=0)).numpy()
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return difference @ difference + np.trace(covariances[0] + covariances[1] - 2.0 * np.real(root))


def kernel_distance_of_torch_fidelity(real, fake, subsets, size):
    result = kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=subsets, kid_subset_size=size, verbose=False, rng_seed=2020
    )
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


def test_the_values_are_those_of_the_definitions():
    source, extractor = CountingDataset(), LinearExtractor()
    metrics = {
        "frechet_distance": FrechetDistance(),
        "inception_score": InceptionScore(splits=3),
        "kernel_distance": KernelDistance(subsets=4, subset_size=20),
    }
    values = make_evaluator(metrics=metrics).evaluate(Painter(), data_of(source), CPU).values
    fake, logits = extractor(levels(Painter(), 37))
    real, _ = extractor(torch.from_numpy(source.pixels))
    score = isc_features_to_metric(logits, splits=3)
    kernel = kernel_distance_of_torch_fidelity(real, fake, 4, 20)
    assert list(values) == ["fd37_linear", "is37_linear", "is37_linear_std", "kd37_linear", "kd37_linear_std"]
    assert values["fd37_linear"] == pytest.approx(frechet_distance_of_scipy(real, fake), rel=1e-8)
    assert values["is37_linear"] == pytest.approx(score[KEY_METRIC_ISC_MEAN], rel=1e-8)
    assert values["is37_linear_std"] == pytest.approx(score[KEY_METRIC_ISC_STD], rel=1e-8)
    assert values["kd37_linear"] == pytest.approx(kernel[0], rel=1e-4)  # kept features are float32
    assert values["kd37_linear_std"] == pytest.approx(kernel[1], rel=1e-3)


def test_the_first_metric_is_the_primary_one_and_its_name_counts_the_images():
    assert make_evaluator(num_images=5000).primary == "fd5k_linear"
    assert make_evaluator(num_images=1500).primary == "fd1500_linear"
    score_first = {"inception_score": InceptionScore(splits=3), "frechet_distance": FrechetDistance()}
    assert make_evaluator(metrics=score_first).primary == "is37_linear"
    evaluation = make_evaluator(metrics=score_first).evaluate(Painter(), data_of(CountingDataset()), CPU)
    assert next(iter(evaluation.values)) == "is37_linear"


@pytest.mark.parametrize(("count", "text"), [(2, "2"), (999, "999"), (1000, "1k"), (1001, "1001"), (50_000, "50k")])
def test_counts_are_short_where_they_are_round(count, text):
    assert short_count(count) == text


def test_a_better_value_is_lower_for_distances_and_higher_for_scores():
    assert not make_evaluator().higher_is_better
    assert make_evaluator(metrics={"inception_score": InceptionScore(splits=3)}).higher_is_better


def test_the_batch_size_changes_neither_the_images_nor_the_values():
    images, values = [], []
    for i, batch_size in enumerate([1, 8, 37, 1000]):
        extractor = LinearExtractor(weights_sha256=str(i))  # its own cache entry
        values.append(
            make_evaluator(extractor, batch_size=batch_size).evaluate(Painter(), data_of(CountingDataset()), CPU).values
        )
        images.append(torch.cat(extractor.seen))
        assert len(images[-1]) == 23 + 37  # real, then generated
        assert max(map(len, extractor.seen)) <= batch_size
    assert all(torch.equal(other, images[0]) for other in images[1:])
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=1e-6)


def test_an_evaluation_depends_on_nothing_that_happened_before():
    evaluator, data = make_evaluator(bootstrap=5), data_of(CountingDataset())
    first = evaluator.evaluate(Painter(), data, CPU)
    evaluator.evaluate(Painter(scale=0.1), data, CPU)
    torch.manual_seed(12345)
    torch.randn(7)
    again = evaluator.evaluate(Painter(), data, CPU)
    assert again.values == first.values
    assert again.intervals == first.intervals


def test_an_evaluation_leaves_the_trainings_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    make_evaluator(bootstrap=3, metrics={"kernel_distance": KernelDistance(subsets=2, subset_size=10)}).evaluate(
        Painter(), data_of(CountingDataset()), CPU
    )
    make_evaluator(bootstrap=3).evaluate(Painter(), data_of(CountingDataset()), CPU)
    assert torch.equal(torch.randn(3), expected)
    assert np.random.get_state()[1].tolist() == state


def test_features_are_made_in_full_float32_and_the_trainings_precision_comes_back():
    extractor = LinearExtractor()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        make_evaluator(extractor).evaluate(Painter(), data_of(CountingDataset()), CPU)
        assert extractor.precisions == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(NonFiniteImagesError):
            make_evaluator(extractor).evaluate(Painter(broken=(0,)), data_of(CountingDataset()), CPU)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_another_seed_generates_other_images():
    extractor = LinearExtractor()
    for seed in (0, 1):
        make_evaluator(extractor, seed=seed, batch_size=37).evaluate(Painter(), data_of(CountingDataset()), CPU)
    assert not torch.equal(extractor.seen[1], extractor.seen[2])  # after the real ones, which are then cached


@pytest.mark.parametrize(
    ("num_real", "expected"),
    [(None, range(23)), (100, range(23)), (5, random_subset(5, 23, seed=0)), (2, random_subset(2, 23, seed=0))],
)
def test_real_images_are_chosen_at_random(num_real, expected):
    source = CountingDataset()
    evaluation = make_evaluator(num_real=num_real).evaluate(Painter(), data_of(source), CPU)
    assert sorted(source.read_indices) == list(expected)
    assert evaluation.provenance["real"]["num_images"] == len(list(expected))
    assert ("selection" in evaluation.provenance["real"]) == (len(list(expected)) < 23)


def test_the_number_of_generated_images_can_be_another_for_one_evaluation():
    evaluator, source = make_evaluator(), CountingDataset()
    evaluation = evaluator.evaluate(Painter(), data_of(source), CPU, num_images=50)
    extractor = LinearExtractor()
    expected = frechet_distance_of_scipy(extractor(torch.from_numpy(source.pixels))[0], extractor(levels(Painter(), 50))[0])
    assert list(evaluation.values) == ["fd50_linear", "is50_linear", "is50_linear_std"]
    assert evaluation.values["fd50_linear"] == pytest.approx(expected, rel=1e-8)
    assert evaluation.provenance["generated"]["num_images"] == 50
    assert evaluator.primary == "fd37_linear"


def test_a_second_evaluation_does_not_read_the_real_images_again(cache):
    source = CountingDataset()
    evaluator = make_evaluator()
    first = evaluator.evaluate(Painter(), data_of(source), CPU).values
    assert len(list(cache.iterdir())) == 1
    source.forbidden = True
    assert evaluator.evaluate(Painter(), data_of(source), CPU).values == first
    assert make_evaluator().evaluate(Painter(), data_of(source), CPU).values == first  # as in another process


@pytest.mark.parametrize("count", [30, 60, 90])
def test_features_kept_in_the_cache_serve_evaluations_of_several_sizes(cache, count):
    source = CountingDataset(num_images=60)
    metrics = {
        "kernel_distance": KernelDistance(subsets=3, subset_size=15),
        "precision_recall": PrecisionRecall(neighbors=3, density_neighbors=5),
    }
    make_evaluator(metrics=metrics).evaluate(Painter(), data_of(source), CPU)
    source.forbidden = True
    values = make_evaluator(metrics=metrics, num_images=count).evaluate(Painter(), data_of(source), CPU).values
    assert len(list(cache.iterdir())) == 1

    extractor = LinearExtractor()
    real = extractor(torch.from_numpy(source.pixels))[0]
    expected = kernel_distance_of_torch_fidelity(real, extractor(levels(Painter(), count))[0], 3, 15)
    assert values[f"kd{count}_linear"] == pytest.approx(expected[0], rel=1e-4)
    assert values[f"kd{count}_linear_std"] == pytest.approx(expected[1], rel=1e-3)


def test_of_many_real_images_the_features_of_some_are_kept_and_always_the_same_ones(monkeypatch):
    monkeypatch.setattr("genimg.evaluation.real_stats._KEPT_REAL", 20)
    source, extractor = CountingDataset(num_images=60), LinearExtractor()
    metrics = {"frechet_distance": FrechetDistance(), "kernel_distance": KernelDistance(subsets=3, subset_size=10)}
    evaluation = make_evaluator(metrics=metrics, num_images=15).evaluate(Painter(), data_of(source), CPU)
    real, fake = extractor(torch.from_numpy(source.pixels))[0], extractor(levels(Painter(), 15))[0]
    assert sorted(source.read_indices) == list(range(60))
    assert evaluation.values["fd15_linear"] == pytest.approx(frechet_distance_of_scipy(real, fake), rel=1e-8)
    kept = kept_positions(60, 20)
    expected = kernel_distance_of_torch_fidelity(real[torch.from_numpy(kept)], fake, 3, 10)
    assert evaluation.values["kd15_linear"] == pytest.approx(expected[0], rel=1e-4)
    assert evaluation.provenance["real"]["num_images"] == 60
    assert evaluation.provenance["real"]["num_kept"] == 20


def test_the_cache_is_where_the_config_says(tmp_path, cache):
    make_evaluator(cache_dir=str(tmp_path / "elsewhere")).evaluate(Painter(), data_of(CountingDataset()), CPU)
    assert len(list((tmp_path / "elsewhere" / "statistics").iterdir())) == 1
    assert not cache.exists()


OTHER_STATISTICS = {
    "another dataset": (lambda: CountingDataset(seed=1), {}, LinearExtractor),
    "fewer real images": (CountingDataset, {"num_real": 11}, LinearExtractor),
    "another extractor": (CountingDataset, {}, lambda: LinearExtractor(name="other")),
    "other weights": (CountingDataset, {}, lambda: LinearExtractor(weights_sha256="def")),
}


@pytest.mark.parametrize(("make_source", "changes", "make_extractor"), OTHER_STATISTICS.values(), ids=OTHER_STATISTICS)
def test_what_determines_the_real_statistics_has_a_cache_file_of_its_own(cache, make_source, changes, make_extractor):
    make_evaluator().evaluate(Painter(), data_of(CountingDataset()), CPU)
    make_evaluator(make_extractor(), **changes).evaluate(Painter(), data_of(make_source()), CPU)
    assert len(list(cache.iterdir())) == 2


def test_features_of_single_images_join_the_same_cache_file_and_serve_whoever_needs_fewer(cache, monkeypatch):
    monkeypatch.setattr("genimg.evaluation.real_stats._KEPT_REAL", 5)
    kernel = {"frechet_distance": FrechetDistance(), "kernel_distance": KernelDistance(subsets=3, subset_size=4)}
    source = CountingDataset()
    few = make_evaluator(metrics=kernel, num_images=8).evaluate(Painter(), data_of(source), CPU)
    many = make_evaluator(metrics=kernel, num_images=20).evaluate(Painter(), data_of(source), CPU)
    assert (few.provenance["real"]["num_kept"], many.provenance["real"]["num_kept"]) == (8, 20)
    assert len(list(cache.iterdir())) == 1
    source.forbidden = True
    assert make_evaluator(metrics=kernel, num_images=8).evaluate(Painter(), data_of(source), CPU).values == few.values
    make_evaluator(bootstrap=2).evaluate(Painter(), data_of(source), CPU)
    assert len(list(cache.iterdir())) == 1


OTHER_METRICS = {"inception_score": InceptionScore(splits=2), "frechet_distance": FrechetDistance()}


@pytest.mark.parametrize(
    "changes",
    [{"num_images": 40}, {"seed": 3}, {"metrics": OTHER_METRICS}, {"batch_size": 5}, {"num_real": 23}],
    ids=["num_images", "seed", "metrics", "batch_size", "num_real"],
)
def test_what_does_not_determine_the_real_statistics_shares_a_cache_file(cache, changes):
    source = CountingDataset()
    make_evaluator().evaluate(Painter(), data_of(source), CPU)
    source.forbidden = True
    make_evaluator(**changes).evaluate(Painter(), data_of(source), CPU)
    assert len(list(cache.iterdir())) == 1


def test_one_evaluator_compares_each_dataset_with_its_own_statistics():
    evaluator = make_evaluator()
    evaluator.evaluate(Painter(), data_of(CountingDataset(seed=0)), CPU)
    found = evaluator.evaluate(Painter(), data_of(CountingDataset(seed=1)), CPU).values
    expected = make_evaluator().evaluate(Painter(), data_of(CountingDataset(seed=1)), CPU).values
    assert found == expected


def damage_by_truncation(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_by_random_bytes(path):
    path.write_bytes(np.random.default_rng(2).bytes(500))


def damage_by_other_content(path):
    torch.save({"mean": torch.zeros(NUM_FEATURES)}, path)


def damage_by_age(path):
    torch.save(torch.load(path, weights_only=True) | {"format": 1}, path)


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_random_bytes, damage_by_other_content, damage_by_age])
def test_a_damaged_cache_file_is_computed_again_and_replaced(cache, caplog, damage):
    first = make_evaluator().evaluate(Painter(), data_of(CountingDataset()), CPU).values
    (path,) = cache.iterdir()
    damage(path)
    source = CountingDataset()
    assert make_evaluator().evaluate(Painter(), data_of(source), CPU).values == first
    assert str(path) in caplog.text
    assert sorted(source.read_indices) == list(range(23))
    source.forbidden = True
    assert make_evaluator().evaluate(Painter(), data_of(source), CPU).values == first


def test_a_cache_that_cannot_be_written_is_a_warning_that_names_the_way_out(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "file"))
    values = make_evaluator().evaluate(Painter(), data_of(CountingDataset()), CPU).values
    assert values["fd37_linear"] > 0.0
    assert "set GENIMG_CACHE to a writable directory" in caplog.text


@pytest.mark.parametrize("answers_before", [0, 1, 4])  # 3 batches of real images, then 5 of generated ones
def test_should_stop_interrupts_within_a_batch_and_the_next_evaluation_is_whole(answers_before):
    extractor = LinearExtractor()
    evaluator = make_evaluator(extractor)
    data = data_of(CountingDataset())
    asked = []

    def should_stop():
        asked.append(True)
        return len(asked) > answers_before

    with pytest.raises(EvaluationInterruptedError):
        evaluator.evaluate(Painter(), data, CPU, should_stop)
    assert len(extractor.seen) == answers_before
    expected = make_evaluator(LinearExtractor(weights_sha256="fresh")).evaluate(Painter(), data, CPU).values
    assert evaluator.evaluate(Painter(), data, CPU).values == pytest.approx(expected, rel=1e-12)


def test_an_interrupted_pass_over_the_real_images_leaves_no_cache(cache):
    with pytest.raises(EvaluationInterruptedError):
        make_evaluator().evaluate(Painter(), data_of(CountingDataset()), CPU, lambda: True)
    assert not cache.exists()


def test_should_stop_interrupts_the_reconstructions_too():
    evaluator, real = make_evaluator(reconstructions=20), DatasetImages(data_of(CountingDataset()))
    result = evaluator.compare(real, evaluator.generated(Painter(), CPU, ()), CPU)
    with pytest.raises(EvaluationInterruptedError):
        evaluator.with_input_metrics(result, Autoencoder(), real, "train", CPU, lambda: True)


def test_provenance_says_what_the_values_depend_on():
    source = CountingDataset()
    provenance = make_evaluator(seed=4, num_real=11).evaluate(Painter(), data_of(source), CPU).provenance
    assert provenance == {
        "extractor": {
            "name": "linear",
            "weights_sha256": "abc",
            "resize": "none",
            "channels": "as they are",
            "num_features": NUM_FEATURES,
        },
        "generated": {
            "source": "model",
            "image_shape": "1x4x4",
            "weights": "raw",
            "mode": "eval",
            "seed": 4,
            "augmentation": "none",
            "num_images": 37,
        },
        "real": {
            "source": "counting",
            "fingerprint": source.fingerprint,
            "image_shape": "1x4x4",
            "augmentation": "none",
            "num_images": 11,
            "selection": "random, stratified by class",
            "num_kept": 0,
        },
        "metrics": {"frechet_distance": {}, "inception_score": {"splits": 3}},
        "bootstrap": 0,
        "precision": "features float32 without TF32, statistics float64",
        "device": "cpu",
        "versions": versions(),
    }


def test_provenance_does_not_depend_on_whether_the_cache_was_used():
    source = CountingDataset()
    fresh, cached = (make_evaluator().evaluate(Painter(), data_of(source), CPU).provenance for _ in range(2))
    assert fresh == cached


def test_a_dataset_is_compared_with_a_dataset():
    real, fake, extractor = dataset(23, 0), dataset(31, 1), LinearExtractor()
    evaluation = make_evaluator().compare(real, fake, CPU)
    features = [extractor(side.data.images(np.arange(len(side))))[0] for side in (real, fake)]
    assert evaluation.values["fd31_linear"] == pytest.approx(frechet_distance_of_scipy(*features), rel=1e-8)
    assert evaluation.provenance["generated"] == {**fake.describe(), "num_images": 31}
    assert evaluation.provenance["real"] == {**real.describe(), "num_images": 23, "num_kept": 0}
    assert evaluation.values["fd31_linear"] > 0.01
    assert make_evaluator().compare(real, real, CPU).values["fd23_linear"] == pytest.approx(0.0, abs=1e-6)


def test_saved_statistics_stand_for_the_images_they_were_made_of(tmp_path):
    metrics = {
        "frechet_distance": FrechetDistance(),
        "kernel_distance": KernelDistance(subsets=3, subset_size=10),
        "inception_score": InceptionScore(splits=2),
    }
    source = CountingDataset()
    real, fake, path = DatasetImages(data_of(source)), dataset(31, 1), tmp_path / "deep" / "real.pt"
    direct = make_evaluator(metrics=metrics).compare(real, fake, CPU, save_statistics=path)
    source.forbidden = True
    saved = make_evaluator(metrics=metrics).compare(SavedStatistics.read(path), fake, CPU)
    assert saved.values == direct.values
    assert saved.provenance == direct.provenance
    assert saved.warnings == direct.warnings


def test_statistics_of_a_set_are_those_that_a_comparison_would_save(tmp_path):
    evaluator = make_evaluator(metrics={"kernel_distance": KernelDistance(subsets=3, subset_size=10)}, num_real=15)
    real, fake = dataset(23, 0), dataset(31, 1)
    statistics = evaluator.statistics(real, CPU)
    assert statistics.images == {**real.describe(), "num_images": 15, "selection": "random, stratified by class"}
    assert statistics.extractor == evaluator.extractor.describe()
    assert statistics.summary.num_images == 15
    assert evaluator.compare(statistics, fake, CPU).values == evaluator.compare(real, fake, CPU).values


def test_statistics_of_another_number_of_features_are_refused():
    statistics = make_evaluator(LinearExtractor(num_features=7)).statistics(dataset(23, 0), CPU)
    with raises(DataError, word="has"):
        make_evaluator().compare(statistics, dataset(31, 1), CPU)


@pytest.mark.parametrize(("num_real", "num_fake", "side"), [(1, 5, "real"), (5, 1, "generated")])
def test_fewer_than_two_images_are_refused_before_any_is_looked_at(num_real, num_fake, side):
    extractor = LinearExtractor()
    with raises(DataError, word="images"):
        make_evaluator(extractor, metrics={"fd": FrechetDistance()}).compare(dataset(num_real, 0), dataset(num_fake, 1), CPU)
    assert extractor.seen == []


def test_two_images_on_each_side_are_enough_for_a_frechet_distance():
    values = make_evaluator(metrics={"fd": FrechetDistance()}).compare(dataset(2, 0), dataset(2, 1), CPU).values
    assert values["fd2_linear"] > 0.0


def test_images_of_a_broken_model_are_refused_by_their_number():
    with raises(NonFiniteImagesError, word="first"):
        make_evaluator().evaluate(Painter(broken=(22, 19, 30)), data_of(CountingDataset()), CPU)


def test_few_images_are_a_warning_once_and_singular_covariances_another(caplog):
    evaluator = make_evaluator()
    first = evaluator.evaluate(Painter(), data_of(CountingDataset()), CPU)
    assert len(first.warnings) == 2
    assert first.warnings[0].startswith("37 generated images are few")
    assert first.warnings[1].startswith("23 real images are few")
    assert evaluator.evaluate(Painter(), data_of(CountingDataset()), CPU).warnings == first.warnings
    assert caplog.text.count("37 generated images are few") == 1
    few = make_evaluator().compare(dataset(NUM_FEATURES, 0), dataset(NUM_FEATURES + 1, 1), CPU).warnings
    assert few[0].startswith(f"{NUM_FEATURES + 1} generated images are few")
    assert few[1].startswith(f"{NUM_FEATURES} real images are too few for {NUM_FEATURES} features")


def test_many_images_are_no_warning():
    enough = make_evaluator(batch_size=500).compare(dataset(2000, 0), dataset(2000, 1), CPU)
    assert enough.warnings == ()
    fewer = make_evaluator(batch_size=500).compare(dataset(2000, 0), dataset(1999, 1), CPU)
    assert [text[:26] for text in fewer.warnings] == ["1999 generated images are "]


@pytest.mark.parametrize(
    ("extractors", "datas", "expected"),
    [
        (CLASSES, CLASSES, True),
        (("other", *reversed(CLASSES)), CLASSES, True),
        (CLASSES[1:], CLASSES, False),
        (CLASSES, ("v", "w", "x", "y", "z"), False),
        ((), (), False),
        (CLASSES, (), False),
    ],
)
def test_labels_are_matched_with_the_logits_by_the_names_of_classes(extractors, datas, expected):
    metrics = {"frechet_distance": FrechetDistance(), "accuracy": ConditionalAccuracy()}
    extractor = LinearExtractor(class_names=extractors)
    data = data_of(CountingDataset(class_names=datas))
    values = make_evaluator(extractor, metrics=metrics).evaluate(LabelledPainter(), data, CPU).values
    assert ("accuracy37_linear" in values) == expected
    if expected:
        predictions = extractor(levels(LabelledPainter(), 37))[1].argmax(dim=1)
        right = sum(extractors[int(p)] == CLASSES[i % NUM_CLASSES] for i, p in enumerate(predictions))
        assert values["accuracy37_linear"] == right / 37


def test_bootstrap_gives_intervals_of_what_can_be_resampled():
    metrics = {
        "frechet_distance": FrechetDistance(),
        "inception_score": InceptionScore(splits=3),
        "kernel_distance": KernelDistance(subsets=2, subset_size=10),
        "accuracy": ConditionalAccuracy(),
    }
    extractor = LinearExtractor(class_names=CLASSES)
    data = data_of(CountingDataset(class_names=CLASSES))
    evaluation = make_evaluator(extractor, metrics=metrics, bootstrap=150, num_images=200, batch_size=100).evaluate(
        LabelledPainter(), data, CPU
    )
    assert set(evaluation.intervals) == {"fd200_linear", "is200_linear", "accuracy200_linear"}
    for name, (low, high) in evaluation.intervals.items():
        assert low < evaluation.values[name] < high
    accuracy = evaluation.values["accuracy200_linear"]
    low, high = evaluation.intervals["accuracy200_linear"]
    assert high - low == pytest.approx(2 * 1.96 * (accuracy * (1 - accuracy) / 200) ** 0.5, rel=0.25)  # the binomial's
    without = make_evaluator(extractor, metrics=metrics, num_images=200).evaluate(LabelledPainter(), data, CPU)
    assert without.values == pytest.approx(evaluation.values, rel=1e-9)
    assert without.intervals == {}
    assert evaluation.provenance["bootstrap"] == 150


def test_an_autoencoder_is_measured_by_its_reconstructions_too():
    source, extractor = CountingDataset(), LinearExtractor()
    evaluation = make_evaluator(reconstructions=10).evaluate(Autoencoder(darker=0.3), data_of(source), CPU)
    originals = torch.from_numpy(source.pixels[random_subset(10, 23, seed=0)])
    floats = (originals.double() / 127.5 - 1.0 - 0.3).clamp(-1.0, 1.0)
    made = (floats * 127.5 + 127.5).round().to(torch.uint8)
    errors = (originals.double() - made.double()).square().flatten(1).mean(dim=1)
    expected = (10.0 * torch.log10(255.0**2 / errors)).mean().item()
    values = evaluation.values
    assert list(values) == [
        "fd37_linear", "is37_linear", "is37_linear_std",
        "reconstruction_train_psnr10", "reconstruction_train_ssim10", "reconstruction_train_fd10_linear",
    ]  # fmt: skip
    assert values["reconstruction_train_psnr10"] == pytest.approx(expected, rel=1e-5)
    distance = frechet_distance_of_scipy(extractor(originals)[0], extractor(made)[0])
    assert values["reconstruction_train_fd10_linear"] == pytest.approx(distance, rel=1e-6)
    assert 0.5 < values["reconstruction_train_ssim10"] < 0.9999


def test_reconstructions_are_of_held_out_images_where_there_are_any():
    source, held_out = CountingDataset(), CountingDataset()
    held_out.pixels = 255 - source.pixels
    held_out.fingerprint = "another"
    source.validation = held_out
    evaluation = make_evaluator(reconstructions=10).evaluate(Autoencoder(darker=0.3), data_of(source), CPU)
    direct = make_evaluator(reconstructions=10).evaluate(Autoencoder(darker=0.3), data_of(held_out), CPU)
    names = [name for name in evaluation.values if "reconstruction" in name]
    assert names == ["reconstruction_held_out_psnr10", "reconstruction_held_out_ssim10", "reconstruction_held_out_fd10_linear"]
    for name in names:
        assert evaluation.values[name] == pytest.approx(direct.values[name.replace("held_out", "train")], rel=1e-9)
    assert evaluation.provenance["reconstructions"]["side"] == "held_out"
    assert evaluation.provenance["reconstructions"]["fingerprint"] == "another"
    assert evaluation.provenance["reconstructions"]["num_images"] == 10
    assert direct.provenance["reconstructions"]["side"] == "train"


def test_lpips_of_reconstructions_is_reported_where_it_is_given():
    class Distance(torch.nn.Module):
        def check(self, shape):
            if min(shape[1:]) < 100:
                raise ValueError(f"{list(shape)} is too small")

        def describe(self):
            return {"backbone": "none"}

        def forward(self, reference, image):
            return (reference.double() - image.double()).abs().flatten(1).mean(dim=1)

    evaluator, data = make_evaluator(reconstructions=10, lpips=Distance()), data_of(CountingDataset())
    assert evaluator.evaluate(Autoencoder(), data, CPU).values["reconstruction_train_lpips10"] == 0.0
    result = evaluator.evaluate(Autoencoder(darker=0.3), data, CPU)
    chosen = subset_of(data.source, 10)
    originals = data.examples(chosen, 0)["image"]
    expected = (to_uint8(originals).double() - to_uint8((originals - 0.3).clamp(-1.0, 1.0)).double()).abs().mean().item()
    assert result.values["reconstruction_train_lpips10"] == pytest.approx(expected, rel=1e-9)
    assert result.provenance["reconstructions"]["lpips"] == {"backbone": "none"}
    with raises(ValueError, word="small"):
        evaluator.check(Autoencoder(), data.source)
    evaluator.check(Painter(), data.source)  # makes no reconstructions


def test_perfect_reconstructions_have_the_best_values_and_no_more_images_than_there_are():
    values = make_evaluator(reconstructions=1000).evaluate(Autoencoder(), data_of(CountingDataset()), CPU).values
    assert values["reconstruction_train_psnr23"] == 100.0
    assert values["reconstruction_train_ssim23"] == pytest.approx(1.0, abs=1e-6)
    assert values["reconstruction_train_fd23_linear"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("method", "reconstructions"), [(Painter(), 10), (Autoencoder(), 0)], ids=["painter", "zero"])
def test_reconstructions_are_left_out_for_other_models_and_where_none_are_asked_for(method, reconstructions):
    values = make_evaluator(reconstructions=reconstructions).evaluate(method, data_of(CountingDataset()), CPU).values
    assert not [name for name in values if "reconstruction" in name]


def test_a_metric_of_logits_is_refused_without_them():
    with raises(ConfigError, "metrics.inception_score", word="logits"):
        make_evaluator(LinearExtractor(has_logits=False))
    assert make_evaluator(LinearExtractor(has_logits=False), metrics={"fd": FrechetDistance()}).primary == "fd37_linear"


def test_a_metric_that_is_none_is_left_out():
    metrics = {"inception_score": None, "frechet_distance": FrechetDistance()}
    evaluator = make_evaluator(LinearExtractor(has_logits=False), metrics=metrics)
    values = evaluator.evaluate(Painter(), data_of(CountingDataset()), CPU).values
    assert list(values) == ["fd37_linear"]


def test_fewer_images_than_splits_are_refused_for_a_comparison_too():
    with raises(ConfigError, "metrics.inception_score", word="generated"):
        make_evaluator().compare(dataset(23, 0), dataset(2, 1), CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_images": 1}, "num_images=1"),
        ({"num_images": 2}, "metrics.inception_score"),
        ({"num_real": 1}, "num_real=1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"bootstrap": -1}, "bootstrap=-1"),
        ({"reconstructions": -1}, "reconstructions=-1"),
        ({"metrics": {}}, "empty"),
        ({"metrics": {"frechet_distance": None}}, "empty"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_by_its_key(changes, words):
    with raises(ValueError, word=words):
        make_evaluator(**changes)


def test_features_of_originals_are_computed_once():
    source, extractor = CountingDataset(), LinearExtractor()
    evaluator, data = make_evaluator(extractor, reconstructions=10), data_of(source)
    first = evaluator.evaluate(Autoencoder(darker=0.3), data, CPU).values
    extractor.seen.clear()
    again = evaluator.evaluate(Autoencoder(darker=0.3), data, CPU).values
    assert again == first
    assert sum(map(len, extractor.seen)) == 37 + 10  # generated images and reconstructions
    worse = evaluator.evaluate(Autoencoder(darker=0.6), data, CPU).values
    assert worse["reconstruction_train_fd10_linear"] > first["reconstruction_train_fd10_linear"]


@pytest.mark.parametrize(("broken", "batches"), [(range(1000), 1), ([36], 8)], ids=["every image", "the last image"])
def test_a_model_that_makes_nan_is_refused_at_once_or_when_the_pass_ends(broken, batches):
    source, extractor = CountingDataset(), LinearExtractor()
    evaluator, data = make_evaluator(extractor, batch_size=5), data_of(source)
    evaluator.evaluate(Painter(), data, CPU)
    extractor.seen.clear()
    with raises(NonFiniteImagesError, word="image"):
        evaluator.evaluate(Painter(broken=broken), data, CPU)
    assert len(extractor.seen) == batches


class Copier(Painter):
    """Gives images that it was given, again and again."""

    def __init__(self, pixels):
        super().__init__()
        self.pixels = to_float(torch.from_numpy(pixels))

    def sample(self, batch, options=None):
        return self.pixels[(batch["latent"][:, 0].abs() * 1e4).long() % len(self.pixels)]


def with_validation(num_images=60, held_out=40):
    source = CountingDataset(num_images)
    source.validation = CountingDataset(held_out, seed=9)
    return source


MEMORISATION = {"frechet_distance": FrechetDistance(), "kernel_distance": KernelDistance(subsets=3, subset_size=10)}


def test_copies_of_training_images_are_measured_against_held_out_ones(monkeypatch, cache):
    monkeypatch.setattr("genimg.evaluation.real_stats._KEPT_REAL", 20)  # of 60, all of which are searched
    source, extractor = with_validation(), LinearExtractor()
    metrics = MEMORISATION | {"memorisation": Memorisation(quantile=0.05)}
    copied = make_evaluator(metrics=metrics, num_images=30).evaluate(Copier(source.pixels), data_of(source), CPU)
    assert copied.values["memorised30_linear"] == 1.0
    drawn = make_evaluator(metrics=metrics, num_images=30).evaluate(Painter(), data_of(source), CPU)
    sides = [closeness(extractor(images)[0], extractor(torch.from_numpy(source.pixels))[0])
             for images in (levels(Painter(), 30), torch.from_numpy(source.validation.pixels))]  # fmt: skip
    assert drawn.values["memorised30_linear"] == pytest.approx(memorised_share(*sides, 0.05), abs=1e-9)
    assert abs(drawn.values["memorised30_linear"]) < 0.5
    # The other metrics have the values that they have alone.
    alone = make_evaluator(metrics=MEMORISATION, num_images=30).evaluate(Painter(), data_of(CountingDataset(60)), CPU)
    assert {name: drawn.values[name] for name in alone.values} == alone.values
    told = drawn.provenance["metrics"]["memorisation"]
    assert (told["quantile"], told["held_out"]["num_images"]) == (0.05, 40)
    assert told["held_out"]["fingerprint"] == source.validation.fingerprint
    source.forbidden = source.validation.forbidden = True
    again = make_evaluator(metrics=metrics, num_images=30).evaluate(Painter(), data_of(source), CPU)
    assert again.values == drawn.values


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [(CountingDataset, {}, "metrics.copies"), (with_validation, {"num_real": 59}, "metrics.copies")],
)
def test_memorisation_without_held_out_images_or_all_training_images_is_refused_before_training(source, changes, words):
    evaluator, source = make_evaluator(metrics={"copies": Memorisation(quantile=0.05)}, **changes), source()
    for attempt in (lambda: evaluator.check(Painter(), source), lambda: evaluator.evaluate(Painter(), data_of(source), CPU)):
        with raises(ConfigError, word=words):
            attempt()


def test_memorisation_against_statistics_is_refused():
    evaluator = make_evaluator(metrics={"copies": Memorisation(quantile=0.05)})
    statistics = make_evaluator().statistics(dataset(23, 0), CPU)
    with raises(ConfigError, "metrics.copies", word="statistics"):
        evaluator.compare(statistics, dataset(23, 1), CPU, held_out=dataset(23, 2))


@pytest.mark.parametrize(("num_real", "count", "ending"), [(60, 25, "25"), (20, 25, "20")])
def test_neighbours_are_counted_among_equally_many_images_and_the_name_says_how_many(num_real, count, ending):
    source, extractor = CountingDataset(num_real), LinearExtractor()
    metrics = {"frechet_distance": FrechetDistance(), "precision_recall": PrecisionRecall(neighbors=3, density_neighbors=5)}
    values = make_evaluator(metrics=metrics, num_images=count).evaluate(Painter(), data_of(source), CPU).values
    least = min(num_real, count)
    real, fake = extractor(torch.from_numpy(source.pixels))[0], extractor(levels(Painter(), count))[0]
    real, fake = (side[random_subset(least, len(side), seed=0)].float() for side in (real, fake))
    expected = neighbor_rates(real, fake, neighbors=3, density_neighbors=5)
    assert list(values) == [f"fd{count}_linear", *(f"{name}{ending}_linear" for name in vars(expected))]
    assert [values[f"{name}{ending}_linear"] for name in vars(expected)] == pytest.approx(list(vars(expected).values()))


def test_a_first_metric_that_takes_fewer_images_than_are_generated_is_refused_with_the_way_out():
    metrics = {"precision_recall": PrecisionRecall(neighbors=3, density_neighbors=5)}
    with raises(ConfigError, "metrics.precision_recall", word="chooses"):
        make_evaluator(metrics=metrics).evaluate(Painter(), data_of(CountingDataset(20)), CPU)


class SpatialExtractor(LinearExtractor):
    """The pixels of the upper half are spatial features."""

    def __init__(self, **changes):
        super().__init__(**changes)
        self.has_spatial = True

    def extract(self, images):
        self.spatial = images[:, :, :2].flatten(1).double()
        return super().extract(images)


def test_the_spatial_distance_is_that_of_the_spatial_features(cache):
    source, settings = CountingDataset(), {"metrics": {"fd": FrechetDistance(), "sfd": SpatialFrechetDistance()}}
    make_evaluator(SpatialExtractor(), metrics={"fd": FrechetDistance()}).evaluate(Painter(), data_of(source), CPU)
    # That cache has no spatial moments.
    values = make_evaluator(SpatialExtractor(), **settings).evaluate(Painter(), data_of(source), CPU).values
    real, fake = (images[:, :, :2].flatten(1).double() for images in (torch.from_numpy(source.pixels), levels(Painter(), 37)))
    assert values["sfd37_linear"] == pytest.approx(frechet_distance_of_scipy(real, fake), rel=1e-6)
    source.forbidden = True
    again = make_evaluator(SpatialExtractor(), **settings).evaluate(Painter(), data_of(source), CPU).values
    assert again == values
    with raises(ConfigError, "metrics.sfd", word="spatial"):
        make_evaluator(LinearExtractor(), **settings)


def test_published_statistics_serve_the_frechet_distances_and_the_images_all_else(caplog):
    extractor, real, fake = SpatialExtractor(), dataset(23, 0), dataset(31, 1)
    rates = PrecisionRecall(neighbors=3, density_neighbors=5)
    metrics = {"fd": FrechetDistance(), "sfd": SpatialFrechetDistance(), "rates": rates}
    evaluator = make_evaluator(extractor, metrics=metrics)
    others = make_evaluator(SpatialExtractor(), metrics=metrics).statistics(dataset(40, 2), CPU)
    published = SavedStatistics(replace(others.summary, features=None), None, {"source": "adm.npz"})
    alone, both = evaluator.compare(real, fake, CPU), evaluator.compare(real, fake, CPU, published=published)
    against = evaluator.compare(others, fake, CPU)
    for name in ("fd31_linear", "sfd31_linear"):
        assert both.values[name] == pytest.approx(against.values[name], rel=1e-9)
        assert both.values[name] != pytest.approx(alone.values[name], rel=1e-3)
    rest = [name for name in alone.values if not name.startswith(("fd", "sfd"))]
    assert [both.values[name] for name in rest] == [alone.values[name] for name in rest]
    assert both.provenance["real"]["moments"] == {"source": "adm.npz"}
    # Statistics without spatial ones do not serve that distance.
    evaluator.compare(replace(others, summary=replace(others.summary, spatial=None)), fake, CPU)
    assert "the real statistics hold no spatial features: skipping sfd" in caplog.text
