"""What all extractors share: how images are prepared, where weights are found, and what the configs may set."""

import errno
import hashlib
import inspect
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from genimg.errors import DataError
from genimg.evaluation.extractors.base import Extractor, Weights, describe_preparation, prepare, three_channels
from genimg.utils.paths import config_dir


def random_images(num_images, channels, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, size, size), generator=generator, dtype=torch.uint8)


# Preparation


def test_prepare_maps_levels_to_the_range_of_the_networks():
    images = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    expected = torch.tensor([-1.0, -0.6, 0.6, 1.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(prepare(images, 1, 2), expected, rtol=0.0, atol=1e-6)


def test_prepare_replicates_grey_for_a_colour_network():
    images = random_images(2, 1)
    prepared = prepare(images, 3, 28)
    assert prepared.shape == (2, 3, 28, 28)
    assert all(torch.equal(prepared[:, i], prepare(images, 1, 28)[:, 0]) for i in range(3))


def test_prepare_takes_the_luma_of_colour_for_a_grey_network():
    images = random_images(2, 3)
    prepared = prepare(images, 1, 28)
    assert prepared.shape == (2, 1, 28, 28)
    for image, values in zip(images, prepared, strict=True):
        grey = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))  # the same luma, in whole levels
        np.testing.assert_allclose((values[0] + 1.0) * 127.5, grey, atol=1.0)
    primaries = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8).view(4, 3, 1, 1)
    expected = torch.tensor([-0.402, 0.174, -0.772, 1.0])  # 2 (0.299, 0.587, 0.114, 1) - 1
    torch.testing.assert_close(prepare(primaries, 1, 1).flatten(), expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, None])
def test_prepare_ignores_alpha(channels):
    images = random_images(2, 4)
    assert torch.equal(prepare(images, channels, 28), prepare(images[:, :3], channels, 28))


def test_prepare_keeps_images_of_the_right_shape_and_resizes_others():
    images = random_images(1, 3)
    torch.testing.assert_close(prepare(images, 3, 28), images / 127.5 - 1.0, rtol=0.0, atol=1e-6)
    halved = prepare(torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(14, 14).view(1, 1, 28, 28), 1, 7)
    assert halved.shape == (1, 1, 7, 7)
    torch.testing.assert_close(halved, torch.zeros(1, 1, 7, 7), rtol=0.0, atol=0.05)  # not aliased to black or white


@pytest.mark.parametrize("size", [16, 50])
def test_prepare_resizes_as_pillows_bilinear_filter_does(size):
    images = random_images(2, 3)
    for image, values in zip(images, prepare(images, 3, size), strict=True):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        expected = np.asarray(resized).transpose(2, 0, 1)
        np.testing.assert_allclose((values + 1.0) * 127.5, expected, atol=1.01)  # Pillow rounds to levels, twice


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_without_a_size_or_channels_leaves_them(channels):
    images = random_images(2, channels, size=9)[:, :, :5]
    torch.testing.assert_close(prepare(images, None, None), images / 127.5 - 1.0, rtol=0.0, atol=1e-6)


def test_every_preparation_has_words_of_its_own():
    settings = [(channels, size) for channels in (None, 1, 3) for size in (None, 16, 32)]
    words = {describe_preparation(*setting) for setting in settings}
    assert len(words) == len(settings)
    assert describe_preparation(1, 16)[0] == "bilinear with anti-aliasing to 16x16"
    assert describe_preparation(None, None) == ("none", "alpha dropped")


def test_three_channels_replicate_grey_and_drop_alpha():
    grey, colour = random_images(2, 1), random_images(2, 4)
    assert torch.equal(three_channels(grey), torch.cat([grey] * 3, dim=1))
    assert torch.equal(three_channels(colour), colour[:, :3])
    assert torch.equal(three_channels(colour[:, :3]), colour[:, :3])


# The base class


class Means(Extractor):
    """The mean of every channel."""

    def __init__(self, network):
        super().__init__(
            name="means", network=network, weights_sha256="ab", resize="none", channels="as they are", has_logits=False
        )

    def extract(self, images):
        return self.network(images.float().mean(dim=(2, 3))), None


def test_an_extractor_is_in_evaluation_mode_and_learns_nothing():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    extractor = Means(network)
    found, logits = extractor(random_images(5, 3))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not found.requires_grad
    assert logits is None
    assert torch.equal(found, extractor(random_images(5, 3))[0])  # dropout would differ


def test_an_extractor_names_its_metrics_and_says_what_determines_the_features():
    extractor = Means(nn.Identity())
    assert extractor.metric_name("fd", "5k") == "fd5k_means"
    assert extractor.describe() == {"name": "means", "weights_sha256": "ab", "resize": "none", "channels": "as they are"}


# Where weights are found


PUBLISHED = b"published"
WEIGHTS = Weights(
    what="the weights of nothing",
    variable="GENIMG_NO_WEIGHTS",
    file="nothing.pth",
    url="https://example.invalid/nothing.pth",
    sha256=hashlib.sha256(PUBLISHED).hexdigest(),
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Torch hub's place for weights, empty; nothing can be downloaded."""

    def fail(url, *arguments, **keywords):
        raise AssertionError(f"{url} must not be downloaded")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(WEIGHTS.variable, raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


def test_a_given_path_comes_before_the_environment_and_that_before_hubs_cache(tmp_path, cache, monkeypatch):
    given, named, cached = tmp_path / "given", tmp_path / "named", cache / WEIGHTS.file
    for path in (given, named, cached):
        path.write_bytes(path.name.encode())
    monkeypatch.setenv(WEIGHTS.variable, str(named))
    assert WEIGHTS.find(str(given), None) == (given, digest_of(b"given"))
    assert WEIGHTS.find(None, None) == (named, digest_of(b"named"))
    monkeypatch.delenv(WEIGHTS.variable)
    assert WEIGHTS.find(None, None) == (cached, digest_of(b"nothing.pth"))


def test_hubs_directory_may_be_set_in_the_program(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "mine"))
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine" / "checkpoints" / WEIGHTS.file).write_bytes(PUBLISHED)
    assert WEIGHTS.find(None, WEIGHTS.sha256)[0] == Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS.file


def test_paths_of_weights_may_begin_with_a_tilde(tmp_path, cache, monkeypatch):
    (tmp_path / "mine.pth").write_bytes(PUBLISHED)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WEIGHTS.find("~/mine.pth", None)[0] == tmp_path / "mine.pth"
    monkeypatch.setenv(WEIGHTS.variable, "~/mine.pth")
    assert WEIGHTS.find(None, None)[0] == tmp_path / "mine.pth"


def test_a_path_that_is_not_there_is_named_with_what_gave_it_and_nothing_else_is_taken(tmp_path, cache, monkeypatch):
    (cache / WEIGHTS.file).write_bytes(PUBLISHED)
    absent = tmp_path / "absent.pth"
    with raises(DataError, "weights", word="nothing"):
        WEIGHTS.find(str(absent), None)
    monkeypatch.setenv(WEIGHTS.variable, str(absent))
    with raises(DataError, "GENIMG_NO_WEIGHTS", word="file"):
        WEIGHTS.find(None, None)


def test_weights_with_another_digest_are_refused_and_named_unless_any_are_accepted(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"other")
    with raises(DataError, "sha256", word="other.pth") as caught:
        WEIGHTS.find(str(path), WEIGHTS.sha256)
    assert "sha256=null" in str(caught.value)
    assert WEIGHTS.find(str(path), digest_of(b"other")) == (path, digest_of(b"other"))
    assert WEIGHTS.find(str(path), None) == (path, digest_of(b"other"))


def test_a_broken_file_in_hubs_cache_is_refused_not_used(cache):
    (cache / WEIGHTS.file).write_bytes(PUBLISHED[:4])
    with raises(DataError, word=str(cache / WEIGHTS.file)):
        WEIGHTS.find(None, WEIGHTS.sha256)


def test_absent_weights_are_downloaded_to_hubs_cache_and_checked(cache, monkeypatch):
    asked = []

    def download(url, destination, hash_prefix=None, progress=True):
        asked.append((url, hash_prefix))
        Path(destination).write_bytes(PUBLISHED)

    cache.rmdir()
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time it is there
        assert WEIGHTS.find(None, WEIGHTS.sha256) == (cache / WEIGHTS.file, WEIGHTS.sha256)
    assert asked == [(WEIGHTS.url, WEIGHTS.sha256)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.URLError("no network"), "no connection to the server: no network"),
        (RuntimeError('invalid hash value (expected "a", got "b")'), "published digest"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_weights_that_cannot_be_had_name_the_file_its_place_and_the_ways_out(cache, monkeypatch, error, reason):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DataError) as caught:
        WEIGHTS.find(None, None)
    message = str(caught.value)
    assert caught.value.key == "weights"
    assert message.startswith(f"the weights of nothing are not at {cache / WEIGHTS.file} ")
    for words in (reason, "weights=PATH", "GENIMG_NO_WEIGHTS=PATH", "another evaluation"):
        assert words in message


# Configs


CONFIGS = sorted(p for p in (Path(config_dir()) / "evaluation").glob("*.yaml") if "extractor" in OmegaConf.load(p))
CONFIGS = [p for p in CONFIGS if not OmegaConf.is_missing(c := OmegaConf.load(p), "extractor") and c.extractor is not None]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configs_extractor_sets_exactly_what_its_class_takes(path):
    node = OmegaConf.load(path).extractor
    extractor = get_class(node["_target_"])
    assert issubclass(extractor, Extractor)
    own = set(inspect.signature(extractor).parameters) - {"may_download"}  # which the config layer gives
    assert set(node) - {"_target_"} == own
