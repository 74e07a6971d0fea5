"""Statistics in files: of genimg, and of other programs."""

import hashlib
import logging
from importlib import metadata

import numpy as np
import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import DataError
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.stats_cache import SavedStatistics, cache_path, holds_images, holds_statistics, read_cache, write_cache

CPU = torch.device("cpu")
IMAGES = {"source": "shapes", "fingerprint": "f00", "image_shape": "3x32x32", "augmentation": "none", "num_images": 40}


class Described(Extractor):
    """Is described and never run."""

    def __init__(self, **changes):
        settings = {"name": "shapes", "weights_sha256": "abc", "resize": "none", "channels": "as they are", "has_logits": True}
        super().__init__(network=nn.Identity(), **{**settings, **changes})

    def extract(self, images):
        raise AssertionError("nothing is extracted here")


def make_statistics(features=True):
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = values[::2].float() if features else None
    summary = FeatureStats(GaussianStatistics.of(values), features=kept, predictions=torch.arange(40) % 3)
    return SavedStatistics(summary, Described().describe(), dict(IMAGES))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("features", [True, False])
def test_what_is_written_is_read_back(tmp_path, features):
    written, path = make_statistics(features), tmp_path / "a" / "b" / "real.pt"
    written.write(path)
    found = SavedStatistics.read(path)
    assert found.extractor == written.extractor
    assert found.images == IMAGES
    assert found.summary.num_images == 40
    assert torch.equal(found.summary.moments.mean, written.summary.moments.mean)
    assert torch.equal(found.summary.moments.covariance, written.summary.moments.covariance)
    assert torch.equal(found.summary.predictions, written.summary.predictions)
    assert found.summary.moments.mean.dtype == torch.float64
    torch.testing.assert_close(found.summary.root @ found.summary.root, found.summary.moments.covariance)
    if features:
        assert torch.equal(found.summary.features, written.summary.features)
    else:
        assert found.summary.features is None
    assert names(path.parent) == ["real.pt"]


def test_a_write_replaces_the_file_that_was_there(tmp_path):
    path = tmp_path / "real.pt"
    path.write_bytes(b"old")
    make_statistics().write(path)
    assert SavedStatistics.read(path).images == IMAGES
    assert names(tmp_path) == ["real.pt"]


def test_a_write_that_fails_in_the_middle_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "real.pt"
    make_statistics().write(path)
    before = path.read_bytes()

    def fill_the_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with raises(OSError, word="space"):
        make_statistics(features=False).write(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["real.pt"]


def test_a_write_into_a_place_that_is_taken_leaves_nothing_behind(tmp_path):
    (tmp_path / "real.pt").mkdir()
    with raises(OSError, word="real.pt"):
        make_statistics().write(tmp_path / "real.pt")
    assert names(tmp_path) == ["real.pt"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("nowhere.pt", "nowhere.npz"):
        with raises(DataError, word="exist"):
            SavedStatistics.read(tmp_path / name)


def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path):
    contents = {"bytes.pt": b"not statistics at all", "empty.pt": b"", "random.pt": np.random.default_rng(0).bytes(2000)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.pt")
    torch.save({"format": "genimg checkpoint", "version": 1}, tmp_path / "checkpoint.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    path = tmp_path / "whole.pt"
    make_statistics().write(path)
    (tmp_path / "truncated.pt").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in [*contents, "weights.pt", "checkpoint.pt", "list.pt", "truncated.pt"]:
        with raises(DataError, word="statistics"):
            SavedStatistics.read(tmp_path / name)


@pytest.mark.parametrize("version", [1, 3, 5])
def test_another_format_is_refused_by_its_number(tmp_path, version):
    path = tmp_path / "real.pt"
    make_statistics().write(path)
    torch.save(torch.load(path, weights_only=True) | {"format": version}, path)
    with raises(DataError, word="real.pt"):
        SavedStatistics.read(path)


def test_reading_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"format": 2, "trap": Trap()}, tmp_path / "real.pt")
    with raises(DataError, word="statistics"):
        SavedStatistics.read(tmp_path / "real.pt")
    np.savez(tmp_path / "real.npz", mu=np.array([Trap()], dtype=object), sigma=np.eye(1))
    with raises(DataError, word="statistics"):
        SavedStatistics.read(tmp_path / "real.npz")
    assert not (tmp_path / "owned").exists()


def test_the_same_extractor_is_accepted_whatever_its_class(tmp_path):
    make_statistics().check_extractor(Described(), tmp_path / "real.pt", accept_unrecorded=False)


@pytest.mark.parametrize(
    "changes", [{"name": "mnist"}, {"weights_sha256": "def"}, {"resize": "bilinear"}, {"channels": "to grey"}], ids=str
)
@pytest.mark.parametrize("accept", [True, False])
def test_another_extractor_is_refused_with_what_differs_and_nothing_else(tmp_path, changes, accept):
    ((key, value),) = changes.items()
    own = Described().describe()
    with raises(DataError, word="real.pt") as caught:
        make_statistics().check_extractor(Described(**changes), tmp_path / "real.pt", accept_unrecorded=accept)
    assert f"({key} {own[key]} in the file, {value} here)" in str(caught.value)


def test_everything_that_differs_is_listed(tmp_path):
    with raises(DataError, word="weights_sha"):
        make_statistics().check_extractor(
            Described(name="a", weights_sha256=None), tmp_path / "real.pt", accept_unrecorded=False
        )


def write_foreign(path, mean, covariance):
    np.savez(path, mu=mean, sigma=covariance)
    return path


def test_statistics_of_another_program_are_its_mean_and_covariance(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 4))
    path = write_foreign(tmp_path / "fid.npz", features.mean(axis=0), np.cov(features, rowvar=False))
    found = SavedStatistics.read(path)
    assert np.array_equal(found.summary.moments.mean.numpy(), features.mean(axis=0))
    assert np.array_equal(found.summary.moments.covariance.numpy(), np.cov(features, rowvar=False))
    assert found.summary.num_features == 4
    assert found.summary.num_images > 4  # so that no rank is cut off
    assert found.summary.features is None
    assert found.summary.predictions is None
    assert found.extractor is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.images == {"source": "fid.npz", "fingerprint": digest, "num_images": None, "extractor": "not recorded"}


def test_features_of_another_program_serve_all_metrics(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    path = tmp_path / "features.npz"
    np.savez(path, arr_0=features)
    assert holds_statistics(path)
    assert not holds_images(path)
    found = SavedStatistics.read(path)
    assert np.array_equal(found.summary.features.numpy(), features)
    np.testing.assert_allclose(found.summary.moments.covariance, np.cov(features, rowvar=False), rtol=1e-5)
    assert (found.summary.num_images, found.images["num_images"], found.extractor) == (50, 50, None)
    # Beside them mu and sigma, which may be of more images, win.
    np.savez(path, arr_0=features, mu=np.ones(4), sigma=np.eye(4))
    found = SavedStatistics.read(path)
    assert found.summary.moments.mean.tolist() == [1.0] * 4
    assert np.array_equal(found.summary.features.numpy(), features)
    assert found.images["num_images"] is None
    for wrong in ({"arr_0": features, "mu": np.ones(3), "sigma": np.eye(3)}, {"arr_0": np.full((5, 4), np.nan)}):
        np.savez(path, **wrong)
        with raises(DataError, word="features.npz"):
            SavedStatistics.read(path)


def test_statistics_of_spatial_features_are_read(tmp_path):
    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(5), sigma_s=2.0 * np.eye(5))
    spatial = SavedStatistics.read(path).summary.spatial
    assert spatial.mean.tolist() == [1.0] * 5
    assert torch.equal(spatial.covariance, 2.0 * torch.eye(5, dtype=torch.float64))
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(5), sigma_s=np.eye(4))
    with raises(DataError, word="adm.npz"):
        SavedStatistics.read(path)


@pytest.mark.parametrize(
    ("arrays", "statistics", "images"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, True, False),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, True, True),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, False, True),
        ({"mu": np.zeros(3), "arr_0": np.zeros((2, 4), np.uint8)}, False, False),
    ],
)
def test_what_an_archive_holds_is_known_by_its_names_and_shapes(tmp_path, arrays, statistics, images):
    np.savez(tmp_path / "a.npz", **arrays)
    assert (holds_statistics(tmp_path / "a.npz"), holds_images(tmp_path / "a.npz")) == (statistics, images)


def test_spatial_moments_are_written_and_read(tmp_path):
    written = make_statistics()
    written.summary.spatial = GaussianStatistics.of(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
    written.write(tmp_path / "real.pt")
    found = SavedStatistics.read(tmp_path / "real.pt").summary.spatial
    assert found.num_images == 9
    assert torch.equal(found.covariance, written.summary.spatial.covariance)


def test_statistics_in_single_precision_are_widened(tmp_path):
    path = write_foreign(tmp_path / "fid.npz", np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    moments = SavedStatistics.read(path).summary.moments
    assert moments.mean.dtype == torch.float64
    assert moments.covariance.dtype == torch.float64


def test_statistics_that_do_not_say_their_extractor_need_the_users_word(tmp_path, caplog):
    path = write_foreign(tmp_path / "fid.npz", np.zeros(3), np.eye(3))
    found = SavedStatistics.read(path)
    with raises(DataError, word="accept_unrecorded"):
        found.check_extractor(Described(), path, accept_unrecorded=False)
    caplog.set_level(logging.WARNING)
    found.check_extractor(Described(), path, accept_unrecorded=True)
    assert "assuming shapes, because accept_unrecorded=true" in caplog.text


NAN = float("nan")


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        (np.zeros(3), np.eye(4)),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((3, 3)), np.eye(3)),
        (np.zeros((1, 3)), np.eye(3)),
        (np.zeros(3), np.zeros((3, 4))),
        (np.array([0.0, NAN, 0.0]), np.eye(3)),
        (np.zeros(3), np.diag([1.0, NAN, 1.0])),
        (np.zeros(3), np.diag([1.0, np.inf, 1.0])),
        (np.array(["a", "b", "c"]), np.eye(3)),
    ],
    ids=["4x4", "vector", "matrix mean", "row mean", "3x4", "nan mean", "nan covariance", "infinite", "text"],
)
def test_a_mean_and_covariance_that_do_not_fit_are_refused(tmp_path, mean, covariance):
    path = write_foreign(tmp_path / "fid.npz", mean, covariance)
    with raises(DataError, word="fid.npz"):
        SavedStatistics.read(path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 4, 4, 3), dtype=np.uint8))
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    (tmp_path / "bytes.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("images.npz", "half.npz", "bytes.npz"):
        with raises(DataError, word="statistics"):
            SavedStatistics.read(tmp_path / name)


def test_the_cache_holds_what_was_written_to_it(tmp_path):
    path = cache_path(tmp_path, "f00", 40, Described(), CPU)
    assert read_cache(path) is None
    write_cache(path, make_statistics())
    assert torch.equal(read_cache(path).features, make_statistics().summary.features)
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "f01"},
        {"count": 41},
        {"extractor": Described(name="mnist")},
        {"extractor": Described(resize="bilinear")},
        {"device": torch.device("cuda")},
        {"selected": "random"},
    ],
    ids=["fingerprint", "count", "name", "resize", "device", "selection"],
)
def test_whatever_determines_the_features_is_part_of_the_caches_name(tmp_path, changes):
    settings = {"fingerprint": "f00", "count": 40, "extractor": Described(), "device": CPU}
    assert cache_path(tmp_path, **settings) == cache_path(tmp_path, **settings)
    assert cache_path(tmp_path, **settings) != cache_path(tmp_path, **{**settings, **changes})


@pytest.mark.parametrize("package", ["torch", "pillow", "torch-fidelity"])
def test_other_versions_have_caches_of_their_own(tmp_path, monkeypatch, package):
    before = cache_path(tmp_path, "f00", 40, Described(), CPU)
    monkeypatch.setattr("genimg.utils.environment.version", lambda name: "0.0.1" if name == package else metadata.version(name))
    assert cache_path(tmp_path, "f00", 40, Described(), CPU) != before


def test_a_cache_that_cannot_be_written_or_read_costs_a_warning_only(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    write_cache(tmp_path / "file" / "statistics" / "x.pt", make_statistics())
    assert "set GENIMG_CACHE to a writable directory" in caplog.text
    (tmp_path / "x.pt").write_bytes(b"broken")
    assert read_cache(tmp_path / "x.pt") is None
    assert "are computed again" in caplog.text
