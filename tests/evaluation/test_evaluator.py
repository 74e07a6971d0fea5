"""The evaluator: what its values depend on and what they do not, and its cache of real statistics."""

import os

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from genimg.data.placement import Data
from genimg.data.sources import Source, digest
from genimg.evaluation.evaluator import EvaluationInterruptedError, Evaluator
from genimg.evaluation.features import Extractor
from genimg.interfaces import Images, Method
from genimg.randomness import normal_latents

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)
NUM_FEATURES, NUM_CLASSES = 6, 5


class LinearExtractor(Extractor):
    """A fixed random projection of the pixels; keeps the images it was given."""

    def __init__(self, name="linear", weights_sha256="abc"):
        self.name = name
        self.weights_sha256 = weights_sha256
        self.seen = []
        generator = torch.Generator().manual_seed(0)
        self.projection = torch.randn(16, NUM_FEATURES + NUM_CLASSES, generator=generator, dtype=torch.float64)

    def metric_name(self, metric, count):
        return f"{metric}{count}_{self.name}"

    def to(self, device):
        return self

    def __call__(self, images):
        assert images.dtype == torch.uint8
        self.seen.append(images)
        projected = images.flatten(1).double() / 64.0 @ self.projection
        return projected[:, :NUM_FEATURES], projected[:, NUM_FEATURES:]


class Painter(Method):
    """Draws each latent as pixels; ``scale`` is what training would change."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = scale

    def parameter_groups(self):
        return {}

    def step(self, batch, progress, update):
        return {}

    def draw(self, indices, seed):
        return {"latent": normal_latents(indices, seed, 16)}

    def sample(self, batch):
        return (batch["latent"] * self.scale).clamp(-1.0, 1.0).view(-1, *SHAPE)

    def check(self, image):
        pass

    def preview(self, batch, drawn):
        return {}


class CountingSource(Source):
    """Random images that remember which of them were read, and can be forbidden to be read."""

    def __init__(self, num_images=23, seed=0):
        self.name = "counting"
        self.shape = SHAPE
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
    return Data(source, placement="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


def make_evaluator(extractor=None, **changes):
    settings = {
        "num_images": 37,
        "num_real": None,
        "batch_size": 8,
        "interval": Images(100),
        "splits": 3,
        "seed": 0,
        "cache_dir": None,
    }
    return Evaluator(extractor=extractor or LinearExtractor(), **{**settings, **changes})


def test_the_values_are_those_of_the_definitions():
    source, extractor = CountingSource(), LinearExtractor()
    values = make_evaluator().evaluate(Painter(), data_of(source), CPU).values

    painter = Painter()
    made = painter.sample(painter.draw(range(37), 0))
    levels = (made * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    fake, logits = extractor(levels)
    real, _ = extractor(torch.from_numpy(source.pixels))
    covariances = [np.cov(features.numpy(), rowvar=False) for features in (real, fake)]
    difference = (real.mean(dim=0) - fake.mean(dim=0)).numpy()
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    distance = difference @ difference + np.trace(covariances[0] + covariances[1] - 2.0 * np.real(root))
    score = isc_features_to_metric(logits, splits=3)
    expected = {
        "fid37_linear": distance,
        "is37_linear": score[KEY_METRIC_ISC_MEAN],
        "is37_linear_std": score[KEY_METRIC_ISC_STD],
    }
    assert values == pytest.approx(expected, rel=1e-8)


def test_the_distance_comes_first_and_its_name_counts_the_images():
    evaluator = make_evaluator(num_images=5000)
    assert evaluator.primary == "fid5k_linear"
    assert make_evaluator(num_images=1500).primary == "fid1500_linear"


def test_the_batch_size_changes_neither_the_images_nor_the_values():
    images, values = [], []
    for i, batch_size in enumerate([1, 8, 37, 1000]):
        extractor = LinearExtractor(weights_sha256=str(i))  # its own cache entry
        values.append(
            make_evaluator(extractor, batch_size=batch_size).evaluate(Painter(), data_of(CountingSource()), CPU).values
        )
        images.append(torch.cat(extractor.seen))
        assert len(images[-1]) == 23 + 37  # real, then generated
        assert max(map(len, extractor.seen)) <= batch_size
    assert all(torch.equal(other, images[0]) for other in images[1:])
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=1e-6)


def test_an_evaluation_depends_on_nothing_that_happened_before():
    evaluator, data = make_evaluator(), data_of(CountingSource())
    first = evaluator.evaluate(Painter(), data, CPU).values
    evaluator.evaluate(Painter(scale=0.1), data, CPU)
    torch.manual_seed(12345)
    torch.randn(7)
    assert evaluator.evaluate(Painter(), data, CPU).values == first


def test_an_evaluation_leaves_the_trainings_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    make_evaluator().evaluate(Painter(), data_of(CountingSource()), CPU)
    assert torch.equal(torch.randn(3), expected)


def test_another_seed_generates_other_images():
    extractor = LinearExtractor()
    for seed in (0, 1):
        make_evaluator(extractor, seed=seed, batch_size=37).evaluate(Painter(), data_of(CountingSource()), CPU)
    assert not torch.equal(extractor.seen[1], extractor.seen[2])  # after the real ones, which are then cached


@pytest.mark.parametrize(("num_real", "expected"), [(None, range(23)), (100, range(23)), (5, [0, 4, 9, 13, 18]), (2, [0, 11])])
def test_real_images_are_evenly_spaced_over_the_dataset(num_real, expected):
    source = CountingSource()
    evaluation = make_evaluator(num_real=num_real).evaluate(Painter(), data_of(source), CPU)
    assert sorted(source.read_indices) == list(expected)
    assert evaluation.provenance["num_real"] == len(list(expected))


def test_a_second_evaluation_does_not_read_the_real_images_again(cache):
    source = CountingSource()
    evaluator = make_evaluator()
    first = evaluator.evaluate(Painter(), data_of(source), CPU).values
    assert len(list(cache.iterdir())) == 1
    source.forbidden = True
    assert evaluator.evaluate(Painter(), data_of(source), CPU).values == first
    assert make_evaluator().evaluate(Painter(), data_of(source), CPU).values == first  # as in another process


def test_the_cache_is_where_the_config_says(tmp_path, cache):
    make_evaluator(cache_dir=str(tmp_path / "elsewhere")).evaluate(Painter(), data_of(CountingSource()), CPU)
    assert len(list((tmp_path / "elsewhere" / "statistics").iterdir())) == 1
    assert not cache.exists()


OTHER_STATISTICS = {
    "another dataset": (CountingSource(seed=1), {}, LinearExtractor()),
    "fewer real images": (CountingSource(), {"num_real": 11}, LinearExtractor()),
    "another extractor": (CountingSource(), {}, LinearExtractor(name="other")),
    "other weights": (CountingSource(), {}, LinearExtractor(weights_sha256="def")),
}


@pytest.mark.parametrize(("source", "changes", "extractor"), OTHER_STATISTICS.values(), ids=OTHER_STATISTICS)
def test_what_determines_the_real_statistics_has_a_cache_file_of_its_own(cache, source, changes, extractor):
    make_evaluator().evaluate(Painter(), data_of(CountingSource()), CPU)
    make_evaluator(extractor, **changes).evaluate(Painter(), data_of(source), CPU)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("changes", [{"num_images": 40}, {"seed": 3}, {"splits": 2}, {"batch_size": 5}], ids=str)
def test_what_does_not_determine_the_real_statistics_shares_a_cache_file(cache, changes):
    source = CountingSource()
    make_evaluator().evaluate(Painter(), data_of(source), CPU)
    source.forbidden = True
    make_evaluator(**changes).evaluate(Painter(), data_of(source), CPU)
    assert len(list(cache.iterdir())) == 1


def test_one_evaluator_compares_each_dataset_with_its_own_statistics():
    evaluator = make_evaluator()
    evaluator.evaluate(Painter(), data_of(CountingSource(seed=0)), CPU)
    found = evaluator.evaluate(Painter(), data_of(CountingSource(seed=1)), CPU).values
    expected = make_evaluator().evaluate(Painter(), data_of(CountingSource(seed=1)), CPU).values
    assert found == expected


def damage_by_truncation(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_by_random_bytes(path):
    path.write_bytes(np.random.default_rng(2).bytes(500))


def damage_by_other_content(path):
    torch.save({"mean": torch.zeros(NUM_FEATURES)}, path)


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_random_bytes, damage_by_other_content])
def test_a_damaged_cache_file_is_computed_again_and_replaced(cache, caplog, damage):
    first = make_evaluator().evaluate(Painter(), data_of(CountingSource()), CPU).values
    (path,) = cache.iterdir()
    damage(path)
    source = CountingSource()
    assert make_evaluator().evaluate(Painter(), data_of(source), CPU).values == first
    assert str(path) in caplog.text
    assert sorted(source.read_indices) == list(range(23))
    source.forbidden = True
    assert make_evaluator().evaluate(Painter(), data_of(source), CPU).values == first


def test_a_cache_that_cannot_be_written_is_a_warning_that_names_the_way_out(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "file"))
    values = make_evaluator().evaluate(Painter(), data_of(CountingSource()), CPU).values
    assert values["fid37_linear"] > 0.0
    assert "set GENIMG_CACHE to a writable directory" in caplog.text


@pytest.mark.parametrize("answers_before", [0, 1, 4])  # 3 batches of real images, then 5 of generated ones
def test_should_stop_interrupts_within_a_batch_and_the_next_evaluation_is_whole(answers_before):
    evaluator, extractor = make_evaluator(), LinearExtractor()
    evaluator.extractor = extractor
    data = data_of(CountingSource())
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
        make_evaluator().evaluate(Painter(), data_of(CountingSource()), CPU, lambda: True)
    assert not cache.exists()


def test_provenance_says_what_the_values_depend_on():
    source = CountingSource()
    provenance = make_evaluator(seed=4, num_real=11).evaluate(Painter(), data_of(source), CPU).provenance
    assert provenance == {
        "extractor": "linear",
        "weights_sha256": "abc",
        "num_generated": 37,
        "num_real": 11,
        "real": "counting",
        "real_fingerprint": source.fingerprint,
        "splits": 3,
        "seed": 4,
        "weights": "raw",
    }


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_images": 1, "splits": 1}, "num_images=1"),
        ({"num_images": 5, "splits": 6}, "num_images=5"),
        ({"num_real": 1}, "num_real=1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"splits": 0}, "splits=0"),
        ({"interval": Images(0)}, "interval"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_by_its_key(changes, key):
    with pytest.raises(ValueError, match=rf"evaluation\.{key}"):
        make_evaluator(**changes)
