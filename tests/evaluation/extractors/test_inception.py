"""The Inception network: which weights make FID, and what is done to images."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from errors import raises
from omegaconf import OmegaConf
from torch import nn

from genimg.errors import DataError
from genimg.evaluation.extractors import inception
from genimg.evaluation.extractors.inception import INCEPTION_FILE, INCEPTION_SHA256, Inception
from genimg.utils.files import sha256_of
from genimg.utils.paths import config_dir


def no_network(*arguments, **keywords):
    network = nn.Identity()
    network.Mixed_6d = nn.Identity()
    network.Mixed_6d.branch1x1 = nn.Identity()
    return network


def random_images(num_images, channels, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def other_weights(inception_weights):
    """An extractor of other weights than the published ones, and a network that has them."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    digest = sha256_of(inception_weights)
    extractor = Inception(weights=str(inception_weights), sha256=digest)
    assert extractor.weights_sha256 == digest
    name = "inception-v3-compat"
    return extractor, FeatureExtractorInceptionV3(name, ["2048"], feature_extractor_weights_path=str(inception_weights))


def test_features_are_torch_fidelitys_and_logits_are_linear_in_them_without_bias(other_weights):
    extractor, network = other_weights
    images = random_images(2, 3)
    found, logits = extractor(images)
    assert (found.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert found.std() > 0.1
    with torch.no_grad():
        expected = network.eval()(images)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, F.linear(found, network.fc.weight.detach()), rtol=1e-4, atol=1e-4)
    assert extractor.has_logits


def test_spatial_features_are_those_of_the_sixth_mixed_layers_first_convolution(other_weights):
    """ADM's evaluator: the first 7 of the channels of mixed_6/conv, flattened as [17, 17, 7]. By a pass of our own."""
    extractor, network = other_weights
    assert extractor.has_spatial
    images = random_images(2, 3)
    extractor(images)
    with torch.no_grad():
        before = {}
        hook = network.Mixed_6c.register_forward_hook(lambda layer, inputs, output: before.update(x=output))
        network(images)
        hook.remove()
        block = network.Mixed_6d.branch1x1
        convolved = F.relu(F.batch_norm(block.conv(before["x"]), block.bn.running_mean, block.bn.running_var, block.bn.weight,
                                        block.bn.bias, eps=0.001))  # fmt: skip
    assert convolved.shape == (2, 192, 17, 17)
    expected = convolved[:, :7].numpy().transpose(0, 2, 3, 1).reshape(2, 2023)
    np.testing.assert_allclose(extractor.spatial.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert extractor.spatial.std() > 0.0


def test_the_spatial_distance_is_named_sfid_with_the_published_weights_alone(other_weights, monkeypatch):
    extractor, _ = other_weights
    assert extractor.metric_name("sfd", "5k") == "sfd5k_inception_unknown"
    monkeypatch.setattr(extractor, "known", True)
    assert extractor.metric_name("sfd", "5k") == "sfid5k"


def test_grey_is_replicated_and_alpha_dropped(other_weights):
    extractor, _ = other_weights
    grey, colour = random_images(1, 1), random_images(1, 4)
    found = extractor(torch.cat([grey.expand(-1, 3, -1, -1), colour[:, :3]]))[0]
    torch.testing.assert_close(extractor(grey)[0], found[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(extractor(colour)[0], found[1:], rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_features_do_not_depend_on_the_other_images_of_the_batch(other_weights):
    extractor, _ = other_weights
    images = random_images(3, 3)
    together = extractor(images)[0]
    singly = torch.cat([extractor(image[None])[0] for image in images])
    torch.testing.assert_close(together, singly, rtol=1e-4, atol=1e-4)


def test_distances_of_other_weights_are_not_called_fid_and_kid(other_weights):
    extractor, _ = other_weights
    assert not extractor.known
    assert [extractor.metric_name(metric, "5k") for metric in ("fd", "kd", "is", "precision")] == [
        "fd5k_inception_unknown",
        "kd5k_inception_unknown",
        "is5k_inception_unknown",
        "precision5k_inception_unknown",
    ]
    assert extractor.describe() == {
        "name": "inception_unknown",
        "weights_sha256": extractor.weights_sha256,
        "resize": "bilinear to 299x299 as in TensorFlow 1, without anti-aliasing",
        "channels": "grey replicated to 3, alpha dropped",
    }


def test_only_the_published_weights_make_fid_and_kid(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "weights.pth")
    digest = sha256_of(tmp_path / "weights.pth")
    monkeypatch.setattr("torch_fidelity.utils.create_feature_extractor", no_network)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "INCEPTION_SHA256", digest)
        known = Inception(weights=str(tmp_path / "weights.pth"), sha256=None)
        assert [known.metric_name(metric, "5k") for metric in ("fd", "kd", "is")] == ["fid5k", "kid5k", "is5k"]
        assert known.metric_name("precision", "5k") == "precision5k_inception"
        assert known.describe()["name"] == "inception"
    unknown = Inception(weights=str(tmp_path / "weights.pth"), sha256=None)
    assert unknown.metric_name("fd", "50k") == "fd50k_inception_unknown"


def test_the_config_asks_for_the_published_weights():
    config = OmegaConf.load(Path(config_dir()) / "evaluation" / "inception.yaml")
    assert config.extractor.sha256 == INCEPTION_SHA256
    # torch-fidelity's file carries the digest's beginning in its name, as torch hub wants it.
    assert INCEPTION_FILE.endswith(f"-{INCEPTION_SHA256[:8]}.pth")


def test_weights_with_another_digest_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"no weights at all")
    with raises(DataError, "sha256", word="other.pth"):
        Inception(weights=str(path), sha256=INCEPTION_SHA256)


def test_a_file_of_something_else_is_not_taken_for_inception(tmp_path, write_something_else):
    write_something_else(tmp_path / "other.pth")
    with raises(DataError, word="other.pth"):
        Inception(weights=str(tmp_path / "other.pth"), sha256=None)


def test_weights_that_cannot_be_had_name_the_file_its_place_the_key_and_the_variable(tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DataError) as caught:
        Inception(weights=None, sha256=INCEPTION_SHA256)
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / INCEPTION_FILE) in message
    for words in ("no network", "weights=PATH", "GENIMG_INCEPTION_WEIGHTS=PATH"):
        assert words in message
