"""Feature extractors: which weights they accept, and what they do to images."""

import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genimg.data.placement import Data
from genimg.data.sources import ArraySource
from genimg.evaluation import features
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.features import INCEPTION_FILE, Inception, ShippedClassifier, SmallClassifier, prepare, sha256_of
from genimg.interfaces import Images


def random_images(num_images, channels, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, size, size), generator=generator, dtype=torch.uint8)


def write_classifier(path, *, channels=1, num_classes=4, image_size=16):
    torch.manual_seed(0)
    network = SmallClassifier(channels=channels, num_classes=num_classes)
    record = {
        "image_size": image_size,
        "channels": channels,
        "class_names": [str(i) for i in range(num_classes)],
        "state_dict": network.state_dict(),
    }
    torch.save(record, path)
    return network.eval()


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


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_ignores_alpha(channels):
    images = random_images(2, 4)
    assert torch.equal(prepare(images, channels, 28), prepare(images[:, :3], channels, 28))


def test_prepare_keeps_images_of_the_right_shape_and_resizes_others():
    images = random_images(1, 3)
    torch.testing.assert_close(prepare(images, 3, 28), images / 127.5 - 1.0, rtol=0.0, atol=1e-6)
    halved = prepare(torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(14, 14).view(1, 1, 28, 28), 1, 7)
    assert halved.shape == (1, 1, 7, 7)
    torch.testing.assert_close(halved, torch.zeros(1, 1, 7, 7), rtol=0.0, atol=0.05)  # not aliased to black or white


def test_a_classifier_gives_the_features_that_its_head_reads():
    torch.manual_seed(0)
    network = SmallClassifier(channels=1, num_classes=7).eval()
    found, logits = network(torch.rand(3, 1, 28, 28))
    assert (found.shape, logits.shape) == ((3, 128), (3, 7))
    torch.testing.assert_close(logits, nn.functional.linear(found, network.head.weight, network.head.bias))


@pytest.mark.parametrize(("name", "num_classes"), [("mnist", 10), ("shapes", 30)])
def test_the_shipped_classifiers_load_and_name_their_metrics(name, num_classes):
    extractor = ShippedClassifier(classifier=name, sha256=None)
    found, logits = extractor(random_images(2, 3, size=32))
    assert (found.shape, logits.shape) == ((2, 128), (2, num_classes))
    assert extractor.metric_name("fid", "5k") == f"fd5k_{name}"
    assert extractor.metric_name("is", "5k") == f"is5k_{name}"
    assert extractor.weights_sha256 == sha256_of(features.shipped_weights(name))


def test_a_classifiers_file_is_used_as_it_was_written(tmp_path):
    network = write_classifier(tmp_path / "mine.pt")
    images = random_images(3, 3, size=20)
    extractor = ShippedClassifier(classifier=str(tmp_path / "mine.pt"), sha256=sha256_of(tmp_path / "mine.pt"))
    found, logits = extractor(images)
    with torch.no_grad():
        expected = network(prepare(images, 1, 16))
    assert torch.equal(found, expected[0])
    assert torch.equal(logits, expected[1])
    assert extractor.metric_name("fid", "5k") == "fd5k_mine"


def test_a_classifiers_features_do_not_depend_on_the_other_images_of_the_batch(tmp_path):
    write_classifier(tmp_path / "mine.pt")
    extractor = ShippedClassifier(classifier=str(tmp_path / "mine.pt"), sha256=None)
    images = random_images(6, 1)
    singly = torch.cat([extractor(image[None])[0] for image in images])
    torch.testing.assert_close(extractor(images)[0], singly, rtol=1e-4, atol=1e-5)


def test_a_classifier_with_another_digest_is_refused(tmp_path):
    write_classifier(tmp_path / "mine.pt")
    wrong = "0" * 64
    with pytest.raises(ValueError, match=rf"mine\.pt has sha256 {sha256_of(tmp_path / 'mine.pt')}.*sha256={wrong}"):
        ShippedClassifier(classifier=str(tmp_path / "mine.pt"), sha256=wrong)


def test_a_classifier_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"evaluation\.extractor\.classifier=absent"):
        ShippedClassifier(classifier="absent", sha256=None)


NOT_WEIGHTS = {
    "random bytes": lambda path: path.write_bytes(bytes(range(256))),
    "an empty file": lambda path: path.write_bytes(b""),
    "a list": lambda path: torch.save([1, 2], path),
    "other weights": lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
    "code": lambda path: torch.save(nn.Linear(2, 2), path),
}


@pytest.mark.parametrize("write", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_a_file_of_something_else_is_not_taken_for_a_classifier(tmp_path, write):
    write(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a classifier"):
        ShippedClassifier(classifier=str(tmp_path / "other.pt"), sha256=None)


@pytest.mark.parametrize("write", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_a_file_of_something_else_is_not_taken_for_inception(tmp_path, write):
    write(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold the Inception weights"):
        Inception(weights=str(tmp_path / "other.pth"))


def test_named_inception_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evaluation\.extractor\.weights=.*absent\.pth does not exist"):
        Inception(weights=str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), RuntimeError("invalid hash value")])
def test_inception_weights_that_cannot_be_had_name_the_file_its_place_and_the_ways_out(tmp_path, monkeypatch, error):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(FileNotFoundError) as caught:
        Inception(weights=None)
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / INCEPTION_FILE) in message
    for words in (str(error), INCEPTION_FILE, "evaluation.extractor.weights=PATH", "evaluation=none"):
        assert words in message


def write_inception_weights(path, monkeypatch):
    """He-initialised weights of Inception's shape: with PyTorch's own initialisation the features would vanish."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *arguments, **keywords: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *arguments, **keywords: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)


class Noise(nn.Module):
    """A stand-in for a method: uniform noise, grey, drawn by index."""

    sampled_weights = "raw"

    def draw(self, indices, seed):
        rows = [torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(index)) for index in indices]
        return {"latent": torch.stack(rows)}

    def sample(self, batch):
        return batch["latent"] * 2.0 - 1.0


def test_inception_of_other_weights_runs_but_its_distance_is_not_called_fid(tmp_path, monkeypatch):
    path = tmp_path / "he.pth"
    write_inception_weights(path, monkeypatch)
    extractor = Inception(weights=str(path))
    path.unlink()  # 96 MB, which pytest would keep
    grey = random_images(2, 1)
    found, logits = extractor(grey)
    assert (found.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert found.std() > 0.1
    assert torch.equal(extractor(grey.expand(-1, 3, -1, -1))[0], found)  # grey is replicated

    evaluator = Evaluator(
        extractor=extractor,
        num_images=4,
        num_real=None,
        batch_size=4,
        interval=Images(1),
        splits=2,
        seed=0,
        cache_dir=str(tmp_path),
    )
    source = ArraySource("squares", random_images(4, 1, size=16, seed=1).numpy())
    cpu = torch.device("cpu")
    data = Data(source, placement="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=cpu)
    values = evaluator.evaluate(Noise(), data, cpu).values
    assert set(values) == {"fd4_inception_unknown", "is4_inception_unknown", "is4_inception_unknown_std"}
    assert evaluator.primary == "fd4_inception_unknown"
    assert values["fd4_inception_unknown"] > 0.0


def test_only_the_published_weights_are_called_fid(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "weights.pth")
    digest = sha256_of(tmp_path / "weights.pth")
    monkeypatch.setattr("torch_fidelity.utils.create_feature_extractor", lambda *arguments, **keywords: nn.Identity())
    with monkeypatch.context() as patch:
        patch.setattr(features, "INCEPTION_SHA256", digest)
        known = Inception(weights=str(tmp_path / "weights.pth"))
        assert (known.metric_name("fid", "50k"), known.metric_name("is", "50k")) == ("fid50k", "is50k")
    unknown = Inception(weights=str(tmp_path / "weights.pth"))
    assert unknown.metric_name("fid", "50k") == "fd50k_inception_unknown"
