"""Summaries: what a collector keeps of each image, whatever the batches, and that resampling is collecting anew."""

import numpy as np
import pytest
import torch
from errors import raises
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from genimg.errors import DataError
from genimg.evaluation import feature_stats as summary_module
from genimg.evaluation.distances import neighbor_distances
from genimg.evaluation.feature_stats import Collector, FeatureStats, kept_positions
from genimg.evaluation.gaussian import GaussianStatistics

NUM_IMAGES, NUM_FEATURES, NUM_CLASSES = 30, 4, 5


@pytest.fixture
def images():
    """Features, logits and labels, as an extractor gives them."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(NUM_IMAGES, NUM_FEATURES, generator=generator, dtype=torch.float64)
    logits = 2.0 * torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator)
    return features, logits, torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)


def collect(features, logits, labels, batch_size=8, **options):
    collector = Collector(len(features), **options)
    for start in range(0, len(features), batch_size):
        part = slice(start, start + batch_size)
        collector.add(features[part], None if logits is None else logits[part], None if labels is None else labels[part])
    return collector.result()


def everything_of(summary):
    return {
        "moments": vars(summary.moments),
        "features": summary.features,
        "positions": summary.positions,
        "logits": summary.logits,
        "predictions": summary.predictions,
        "labels": summary.labels,
        "scores": {splits: torch.tensor(score, dtype=torch.float64) for splits, score in summary.scores.items()},
    }


@pytest.mark.parametrize("batch_size", [1, 7, 29, 100])
def test_the_batch_size_changes_nothing(images, batch_size):
    options = {"splits": (1, 3), "kept": np.array([0, 6, 7, 13, 29]), "keep_logits": True}
    expected, found = collect(*images, 30, **options), collect(*images, batch_size, **options)
    torch.testing.assert_close(everything_of(found), everything_of(expected), rtol=1e-12, atol=1e-12)


def test_a_summary_holds_what_was_added(images):
    features, logits, labels = images
    summary = collect(*images, kept=np.arange(NUM_IMAGES), keep_logits=True, splits=(3,))
    assert summary.num_images == NUM_IMAGES
    assert summary.num_features == NUM_FEATURES
    np.testing.assert_allclose(summary.moments.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-11, atol=1e-11)
    assert summary.features.dtype == torch.float32
    assert torch.equal(summary.features, features.float())
    assert torch.equal(summary.logits, logits)
    assert summary.predictions.tolist() == [int(np.argmax(row)) for row in logits.numpy()]
    assert torch.equal(summary.labels, labels)
    expected = isc_features_to_metric(logits, splits=3)
    assert summary.scores == {3: pytest.approx((expected[KEY_METRIC_ISC_MEAN], expected[KEY_METRIC_ISC_STD]), rel=1e-9)}


@pytest.mark.parametrize("kept", [[0], [29], [3, 4, 20], [7, 8, 15, 16], [23, 24]], ids=str)  # batches end at 8, 16 and 24
def test_exactly_the_named_images_are_kept(images, kept):
    features, logits, _ = images
    summary = collect(*images, kept=np.array(kept), keep_logits=True)
    assert torch.equal(summary.features, features[kept].float())
    assert torch.equal(summary.logits, logits[kept])
    assert summary.positions.tolist() == kept
    assert len(summary.predictions) == len(summary.labels) == summary.num_images == NUM_IMAGES


def test_images_are_numbered_from_the_first_of_the_rank(images):
    features, logits, labels = images
    collector = Collector(NUM_IMAGES, first=10, kept=np.array([3, 12, 15]), keep_logits=True)
    for start in (10, 14):
        part = slice(start, start + 4)
        collector.add(features[part], logits[part], labels[part])
    summary = collector.result()
    assert torch.equal(summary.features, features[[12, 15]].float())
    assert torch.equal(summary.logits, logits[[12, 15]])


def test_nothing_is_kept_that_was_not_asked_for(images):
    summary = collect(*images)
    assert summary.features is None
    assert summary.positions is None
    assert summary.logits is None
    assert summary.scores == {}
    assert collect(*images, kept=np.array([1, 2])).logits is None


def test_without_logits_and_labels_there_are_no_classes(images):
    summary = collect(images[0], None, None, kept=np.array([1, 2]), keep_logits=True, splits=(3,))
    assert summary.features.shape == (2, NUM_FEATURES)
    assert (summary.logits, summary.predictions, summary.labels, summary.scores) == (None, None, None, {})


def test_a_single_image_is_refused(images):
    with raises(DataError, word="images"):
        collect(*(side[:1] for side in images))


@pytest.mark.parametrize("seed", range(3))
def test_a_resample_is_the_summary_of_its_rows(images, seed):
    summary = collect(*images, splits=(1, 3), kept=np.arange(NUM_IMAGES), keep_logits=True)
    rows = torch.randint(NUM_IMAGES, (NUM_IMAGES,), generator=torch.Generator().manual_seed(seed))
    assert len(rows.unique()) < NUM_IMAGES
    found = summary.resampled(rows)

    features, logits, labels = (side[rows] for side in images)
    single = features.float().numpy().astype(np.float64)
    assert found.num_images == NUM_IMAGES
    np.testing.assert_allclose(found.moments.mean, single.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.moments.covariance, np.cov(single, rowvar=False), rtol=1e-11, atol=1e-11)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.predictions, logits.argmax(dim=1))
    assert torch.equal(found.labels, labels)
    assert found.scores.keys() == {1, 3}
    for splits, score in found.scores.items():
        expected = isc_features_to_metric(logits, splits=splits)
        assert score == pytest.approx((expected[KEY_METRIC_ISC_MEAN], expected[KEY_METRIC_ISC_STD]), rel=1e-9, abs=1e-12)


def test_a_resample_does_not_take_the_root_of_the_whole(images):
    summary = collect(*images, kept=np.arange(NUM_IMAGES))
    assert summary.root is not None
    found = summary.resampled(torch.arange(10).repeat(3))
    torch.testing.assert_close(found.root @ found.root, found.moments.covariance, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found.moments.covariance, summary.moments.covariance, rtol=1e-2)


def test_a_resample_without_logits_has_features_alone(images):
    found = collect(images[0], None, None, kept=np.arange(NUM_IMAGES)).resampled(torch.arange(NUM_IMAGES))
    assert (found.logits, found.predictions, found.labels, found.scores) == (None, None, None, {})


@pytest.mark.parametrize("kept", [None, np.array([2, 5])], ids=["no features", "some features"])
@pytest.mark.parametrize("with_logits", [False, True])
def test_a_summary_survives_a_file_of_plain_tensors(images, tmp_path, kept, with_logits):
    features, logits, labels = images
    summary = collect(features, logits if with_logits else None, labels, kept=kept)
    torch.save(summary.state_dict(), tmp_path / "summary.pt")
    found = FeatureStats.from_state_dict(torch.load(tmp_path / "summary.pt", weights_only=True))
    assert found.num_images == NUM_IMAGES
    assert torch.equal(found.moments.mean, summary.moments.mean)
    assert torch.equal(found.moments.covariance, summary.moments.covariance)
    assert torch.equal(found.root, summary.root)
    missing = {"features": kept is None, "positions": kept is None, "predictions": not with_logits}
    for key, is_missing in missing.items():
        before, after = getattr(summary, key), getattr(found, key)
        assert (before is None) == (after is None) == is_missing
        assert before is None or torch.equal(before, after)
    assert (found.logits, found.labels, found.scores) == (None, None, {})


def test_the_root_is_computed_once_and_not_again_after_a_file(images, monkeypatch):
    calls = []

    def counting_root(covariance):
        calls.append(covariance)
        return torch.eye(len(covariance), dtype=torch.float64)

    monkeypatch.setattr(summary_module, "matrix_square_root", counting_root)
    summary = collect(*images)
    assert calls == []  # generated images do not need it
    assert summary.root is summary.root
    found = FeatureStats.from_state_dict(summary.state_dict())
    assert torch.equal(found.root, torch.eye(NUM_FEATURES, dtype=torch.float64))
    assert len(calls) == 1


def test_the_distances_to_neighbours_are_computed_once_for_each_choice_of_them(images, monkeypatch):
    calls = []

    def counting(features, ks):
        calls.append(ks)
        return neighbor_distances(features, ks)

    monkeypatch.setattr(summary_module, "neighbor_distances", counting)
    summary = collect(*images, kept=np.arange(20))
    ordered = torch.cdist(images[0][:20], images[0][:20]).sort(dim=1).values.float()
    cpu = torch.device("cpu")
    for _ in range(2):
        torch.testing.assert_close(summary.neighbor_distances((3, 5), cpu), [ordered[:, 3], ordered[:, 5]], rtol=1e-5, atol=0.0)
        torch.testing.assert_close(summary.neighbor_distances((1,), cpu), [ordered[:, 1]], rtol=1e-5, atol=0.0)
    assert calls == [(3, 5), (1,)]
    other = collect(*images, kept=np.arange(10, 30))
    assert not torch.equal(other.neighbor_distances((1,), cpu)[0], ordered[:, 1])


def test_the_root_squared_is_the_covariance():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    summary = FeatureStats(GaussianStatistics.of(features))
    np.testing.assert_allclose(summary.root @ summary.root, np.cov(features.numpy(), rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wanted", [[4], [4, 9, 25], [1, 4, 9, 16, 25], []], ids=str)
def test_features_of_fewer_images_are_those_that_were_collected_so(images, wanted):
    summary = collect(*images, kept=np.array([1, 4, 9, 16, 25]))
    summary.neighbor_distances((1,), torch.device("cpu"))  # of five images, which must not remain
    found = summary.with_features_of(np.array(wanted, dtype=np.int64))
    torch.testing.assert_close(everything_of(found), everything_of(collect(*images, kept=np.array(wanted, dtype=np.int64))))
    assert torch.equal(found.root, summary.root)
    assert torch.equal(summary.features, images[0][[1, 4, 9, 16, 25]].float())  # the whole is as it was
    if len(wanted) == 3:
        expected = torch.cdist(images[0][wanted], images[0][wanted]).sort(dim=1).values[:, 1].float()
        torch.testing.assert_close(found.neighbor_distances((1,), torch.device("cpu")), [expected], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("wanted", [[0], [2], [4, 10], [1, 4, 9, 16, 25, 29], [26], [0, 1, 4, 9, 16, 25]], ids=str)
def test_features_that_are_not_all_there_are_not_given_in_part(images, wanted):
    assert collect(*images, kept=np.array([1, 4, 9, 16, 25])).with_features_of(np.array(wanted)) is None


def test_features_of_no_images_are_none_and_never_missing(images):
    for kept in (None, np.array([1, 4])):
        found = collect(*images, kept=kept).with_features_of(None)
        assert (found.features, found.positions) == (None, None)
        assert found.num_images == NUM_IMAGES
    assert collect(*images).with_features_of(np.array([1])) is None


@pytest.mark.parametrize("count", [2, 100, 1000])
def test_a_smaller_choice_of_images_is_part_of_every_larger_one(count):
    before = set()
    for most in (1, 2, 40, 500, 5000):
        chosen = kept_positions(count, most)
        assert len(chosen) == min(count, most)
        assert (np.diff(chosen) > 0).all()
        assert chosen.min() >= 0
        assert chosen.max() < count
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())


def test_features_of_some_images_are_the_same_however_many_are_kept():
    images = torch.arange(400.0)[:, None].repeat(1, 2)
    moments = GaussianStatistics.of(images)
    found = []
    for most in (100, 250, 400):
        kept = kept_positions(400, most)
        summary = FeatureStats(moments, features=images[kept], positions=torch.from_numpy(kept))
        found.append(summary.features_of(60)[:, 0].tolist())
        assert torch.equal(summary.features_of(most), images[kept])
    assert found[0] == found[1] == found[2] == kept_positions(400, 60).tolist()
    assert FeatureStats(moments, features=images).features_of(60)[:, 0].tolist() == found[0]


def test_the_choice_of_images_is_spread_over_all_of_them():
    chosen = kept_positions(10_000, 1000)
    counts = np.histogram(chosen, bins=10, range=(0, 10_000))[0]
    assert counts.min() > 60  # 100 each, +- 10
    assert counts.max() < 140
