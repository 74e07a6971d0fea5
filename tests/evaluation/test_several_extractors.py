"""Several extractors in one evaluation: each image is generated once, and the values are those of separate evaluations."""

import pytest
import torch
from test_evaluator import Autoencoder, CountingDataset, LinearExtractor, Painter, data_of, dataset, make_evaluator

from genimg.errors import ConfigError
from genimg.evaluation.comparability import differences
from genimg.evaluation.feature_metrics import FeatureMetrics
from genimg.evaluation.memorisation import Memorisation
from genimg.evaluation.metrics import (
    ConditionalAccuracy,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    SpatialFrechetDistance,
)
from genimg.evaluation.stats_cache import SavedStatistics

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


class CountingPainter(Painter):
    """Counts the images that it samples."""

    num_sampled = 0

    def sample(self, batch, options=None):
        self.num_sampled += len(batch["latent"])
        return super().sample(batch, options)


class CountingAutoencoder(Autoencoder):
    num_reconstructed = 0

    def reconstruct(self, batch):
        self.num_reconstructed += len(batch["image"])
        return super().reconstruct(batch)


class Other(LinearExtractor):
    """Another projection, of fewer features and without logits."""

    def __init__(self, name="other"):
        super().__init__(name=name, weights_sha256="def", num_features=3, has_logits=False)
        self.projection = self.projection.flip(0)


FIRST = {"frechet_distance": FrechetDistance(), "inception_score": InceptionScore(splits=3)}
SECOND = {"kernel_distance": KernelDistance(subsets=4, subset_size=20), "frechet_distance": FrechetDistance()}
RATES = {"rates": PrecisionRecall(neighbors=3, density_neighbors=5)}


def several(second=None, **settings):
    """An evaluator with the extractors linear and other."""
    additional = {"second": FeatureMetrics(extractor=second or Other(), metrics=SECOND)}
    return make_evaluator(**{"metrics": FIRST, "additional": additional, **settings})


def separately(method, data, **settings):
    """The results of two evaluations, each with one of the extractors."""
    return (
        make_evaluator(extractor, metrics=metrics, **settings).evaluate(method, data, CPU)
        for extractor, metrics in ((LinearExtractor(), FIRST), (Other(), SECOND))
    )


def test_the_values_are_those_of_separate_evaluations_in_order():
    data = data_of(CountingDataset())
    both = several().evaluate(Painter(), data, CPU)
    first, second = separately(Painter(), data)
    assert both.values == first.values | second.values
    assert list(both.values) == [
        "fd37_linear", "is37_linear", "is37_linear_std", "kd37_other", "kd37_other_std", "fd37_other",
    ]  # fmt: skip


def test_each_image_is_generated_once_and_passes_through_every_extractor():
    method, second = CountingPainter(), Other()
    evaluator = several(second, batch_size=10)
    evaluator.evaluate(method, data_of(CountingDataset()), CPU)
    assert method.num_sampled == 37
    shown = [torch.cat(extractor.seen)[-37:] for extractor in (evaluator.extractor, second)]
    assert torch.equal(*shown)
    evaluator.evaluate(method, data_of(CountingDataset()), CPU, num_images=11)
    assert method.num_sampled == 37 + 11


def test_the_first_metric_of_the_first_extractor_chooses_the_best():
    evaluator = several()
    assert evaluator.primary == "fd37_linear"
    assert not evaluator.higher_is_better
    assert next(iter(evaluator.evaluate(Painter(), data_of(CountingDataset()), CPU).values)) == "fd37_linear"


def test_real_statistics_are_cached_for_each_extractor(cache):
    source = CountingDataset()
    values = several().evaluate(Painter(), data_of(source), CPU).values
    assert len(list(cache.iterdir())) == 2
    source.forbidden = True
    assert several().evaluate(Painter(), data_of(source), CPU).values == values
    first, second = separately(Painter(), data_of(source))  # these share the cache
    assert values == first.values | second.values


def test_a_choice_of_real_images_is_the_same_for_every_extractor():
    data = data_of(CountingDataset(num_images=50))
    both = several(num_real=20).evaluate(Painter(), data, CPU)
    first, second = separately(Painter(), data, num_real=20)
    assert both.values == first.values | second.values
    assert both.provenance["real"]["num_images"] == 20


def test_intervals_are_those_of_separate_evaluations():
    data = data_of(CountingDataset())
    both = several(bootstrap=20).evaluate(Painter(), data, CPU)
    first, second = separately(Painter(), data, bootstrap=20)
    assert both.intervals == first.intervals | second.intervals
    assert set(both.intervals) == {"fd37_linear", "is37_linear", "fd37_other"}


def test_reconstructions_are_made_once_and_have_a_distance_for_each_extractor():
    method, data = CountingAutoencoder(darker=0.3), data_of(CountingDataset())
    both = several(reconstructions=12).evaluate(method, data, CPU)
    assert method.num_reconstructed == 12
    first, second = separately(method, data, reconstructions=12)
    assert both.values == first.values | second.values
    assert {"reconstruction_train_psnr12", "reconstruction_train_fd12_linear", "reconstruction_train_fd12_other"} <= set(
        both.values
    )


def test_metrics_of_held_out_images_work_for_an_additional_extractor():
    source = CountingDataset(40)
    source.validation = CountingDataset(20, seed=1)
    metrics = {"memorisation": Memorisation(quantile=0.1)}
    evaluator = several(additional={"second": FeatureMetrics(extractor=Other(), metrics=metrics)})
    evaluator.check(Painter(), source)
    found = evaluator.evaluate(Painter(), data_of(source), CPU)
    alone = make_evaluator(Other(), metrics=metrics).evaluate(Painter(), data_of(source), CPU)
    assert found.values["memorised37_other"] == alone.values["memorised37_other"]
    assert found.provenance["additional"]["second"]["metrics"]["memorisation"]["held_out"]["num_images"] == 20


def test_the_provenance_describes_every_extractor():
    data = data_of(CountingDataset())
    both = several().evaluate(Painter(), data, CPU).provenance
    first, second = (result.provenance for result in separately(Painter(), data))
    assert {key: value for key, value in both.items() if key != "additional"} == first
    assert both["additional"] == {
        "second": {"extractor": second["extractor"], "metrics": second["metrics"], "num_kept": second["real"]["num_kept"]}
    }


def test_results_compare_whether_or_not_one_has_another_extractor():
    data = data_of(CountingDataset())
    both = several().evaluate(Painter(), data, CPU).provenance
    alone = make_evaluator(metrics=FIRST).evaluate(Painter(), data, CPU).provenance
    assert not any(each.matters for each in differences(both, alone))
    assert not any(each.matters for each in differences(alone, both))
    changed = several(additional={"second": FeatureMetrics(extractor=Other("x"), metrics=SECOND)})
    found = differences(both, changed.evaluate(Painter(), data, CPU).provenance)
    assert {each.key for each in found} >= {"additional.other.extractor.name", "additional.x.extractor.name"}
    assert not any(each.matters for each in found)  # the metrics of either are on one side only
    more = several(additional={"second": FeatureMetrics(extractor=Other(), metrics=SECOND | RATES)})
    assert not any(each.matters for each in differences(both, more.evaluate(Painter(), data, CPU).provenance))


@pytest.mark.parametrize(
    ("act", "key"),
    [
        (lambda: several(LinearExtractor()), "additional.second.extractor"),
        (lambda: FeatureMetrics(extractor=Other(), metrics={"score": InceptionScore(splits=2)}), "metrics.score"),
        (lambda: FeatureMetrics(extractor=Other(), metrics={"accuracy": ConditionalAccuracy()}), "metrics.accuracy"),
        (lambda: FeatureMetrics(extractor=Other(), metrics={"sfd": SpatialFrechetDistance()}), "metrics.sfd"),
        (
            lambda: several(
                num_images=5, metrics=RATES, additional={"second": FeatureMetrics(extractor=Other(), metrics=RATES)}
            ),
            "metrics.rates",
        ),
        (
            lambda: several(num_images=5, additional={"second": FeatureMetrics(extractor=Other(), metrics=RATES)}),
            "additional.second.metrics.rates",
        ),
        (
            lambda: several(
                additional={"second": FeatureMetrics(extractor=Other(), metrics={"memorisation": Memorisation(quantile=0.1)})}
            ).check(Painter(), CountingDataset()),
            "additional.second.metrics.memorisation",
        ),
    ],
)
def test_errors_name_the_key(act, key):
    with pytest.raises(ConfigError) as caught:
        act()
    assert caught.value.key == key


def test_saved_statistics_serve_a_single_extractor():
    real, fake = dataset(23, 0), dataset(31, 1)
    statistics = several().statistics(real, CPU)
    assert isinstance(statistics, SavedStatistics)
    assert statistics.extractor["name"] == "linear"
    with pytest.raises(ValueError, match="statistics are of one extractor, but this evaluation has 2"):
        several().compare(statistics, fake, CPU)


def test_published_moments_replace_those_of_the_first_extractor_alone():
    real, fake = dataset(23, 0), dataset(31, 1)
    published = make_evaluator(metrics=FIRST).statistics(dataset(40, 2), CPU)
    plain, changed = several().compare(real, fake, CPU), several().compare(real, fake, CPU, published=published)
    differing = {name for name, value in plain.values.items() if changed.values[name] != value}
    assert differing == {"fd31_linear"}
