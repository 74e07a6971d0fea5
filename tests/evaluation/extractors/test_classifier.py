"""Small classifiers: which files they accept, and what they do to images."""

import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import DataError
from genimg.evaluation.extractors.base import prepare
from genimg.evaluation.extractors.classifier import FORMAT, Classifier, SmallClassifier, shipped_weights
from genimg.utils.files import sha256_of


def random_images(num_images, channels, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, size, size), generator=generator, dtype=torch.uint8)


def write_classifier(path, *, channels=1, num_classes=4, image_size=16):
    torch.manual_seed(0)
    network = SmallClassifier(channels=channels, num_classes=num_classes)
    record = {
        "format": FORMAT,
        "image_size": image_size,
        "channels": channels,
        "class_names": [f"class {i}" for i in range(num_classes)],
        "state_dict": network.state_dict(),
    }
    torch.save(record, path)
    return network.eval()


def test_features_are_centred_and_scaled_and_the_head_reads_the_projection():
    torch.manual_seed(0)
    network = SmallClassifier(channels=1, num_classes=7).eval()
    network.mean.copy_(torch.randn(128))
    network.scale.fill_(2.5)
    images = torch.rand(3, 1, 28, 28)
    found, logits = network(images)
    assert (found.shape, logits.shape) == ((3, 128), (3, 7))
    projected = network.project(images)
    torch.testing.assert_close(found, (projected - network.mean) / 2.5)
    torch.testing.assert_close(logits, nn.functional.linear(projected.relu(), network.head.weight, network.head.bias))


def test_features_hold_where_something_is():
    """Means over the whole image would be the same for an image and its mirror image under mirrored filters."""
    torch.manual_seed(0)
    network = SmallClassifier(channels=1, num_classes=7).eval()
    left = torch.zeros(1, 1, 32, 32)
    left[..., 8:24, 4:12] = 1.0
    right = left.roll(16, dims=3)  # by two cells of the last convolution's maps, far from the border
    assert (network.project(left) - network.project(right)).abs().max() > 1e-3


def test_a_file_of_an_earlier_format_is_refused(tmp_path):
    write_classifier(tmp_path / "mine.pt")
    record = torch.load(tmp_path / "mine.pt", weights_only=True)
    torch.save({key: value for key, value in record.items() if key != "format"}, tmp_path / "old.pt")
    with raises(DataError, "classifier", word="format"):
        Classifier(classifier=str(tmp_path / "old.pt"), sha256=None)


@pytest.mark.parametrize(("name", "num_classes"), [("mnist_v2", 10), ("shapes_v2", 30), ("cifar10_v2", 10)])
def test_the_shipped_classifiers_load_and_name_their_metrics(name, num_classes):
    extractor = Classifier(classifier=name, sha256=None)
    found, logits = extractor(random_images(2, 3, size=32))
    assert (found.shape, logits.shape) == ((2, 128), (2, num_classes))
    assert len(extractor.class_names) == num_classes
    assert extractor.metric_name("fd", "5k") == f"fd5k_{name}"
    assert extractor.metric_name("is", "5k") == f"is5k_{name}"
    assert extractor.weights_sha256 == sha256_of(shipped_weights(name))


def test_a_classifiers_file_is_used_as_it_was_written(tmp_path):
    network = write_classifier(tmp_path / "mine.pt")
    images = random_images(3, 3, size=20)
    extractor = Classifier(classifier=str(tmp_path / "mine.pt"), sha256=sha256_of(tmp_path / "mine.pt"))
    found, logits = extractor(images)
    with torch.no_grad():
        expected = network(prepare(images, 1, 16))
    assert torch.equal(found, expected[0])
    assert torch.equal(logits, expected[1])
    assert extractor.has_logits
    assert extractor.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert extractor.metric_name("fd", "5k") == "fd5k_mine"
    assert extractor.describe() == {
        "name": "mine",
        "weights_sha256": sha256_of(tmp_path / "mine.pt"),
        "resize": "bilinear with anti-aliasing to 16x16",
        "channels": "colour to grey by its luma, alpha dropped",
    }


def test_a_classifier_of_colour_replicates_grey_and_drops_alpha(tmp_path):
    write_classifier(tmp_path / "mine.pt", channels=3)
    extractor = Classifier(classifier=str(tmp_path / "mine.pt"), sha256=None)
    grey, colour = random_images(2, 1), random_images(2, 4)
    assert torch.equal(extractor(grey)[0], extractor(torch.cat([grey] * 3, dim=1))[0])
    assert torch.equal(extractor(colour)[0], extractor(colour[:, :3])[0])
    assert extractor.describe()["channels"] == "grey replicated to 3, alpha dropped"


def test_a_classifiers_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    write_classifier(tmp_path / "mine.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Classifier(classifier="~/mine.pt", sha256=None).name == "mine"


def test_a_classifiers_features_do_not_depend_on_the_other_images_of_the_batch(tmp_path):
    write_classifier(tmp_path / "mine.pt")
    extractor = Classifier(classifier=str(tmp_path / "mine.pt"), sha256=None)
    images = random_images(6, 1)
    singly = torch.cat([extractor(image[None])[0] for image in images])
    torch.testing.assert_close(extractor(images)[0], singly, rtol=1e-4, atol=1e-5)


def test_a_classifier_with_another_digest_is_refused(tmp_path):
    write_classifier(tmp_path / "mine.pt")
    wrong = "0" * 64
    with raises(DataError, "sha256", word="mine.pt"):
        Classifier(classifier=str(tmp_path / "mine.pt"), sha256=wrong)


@pytest.mark.parametrize("name", ["absent", "absent.pt"])
def test_a_classifier_that_is_not_there_is_named(name):
    with raises(DataError, f"classifier={name}"):
        Classifier(classifier=name, sha256=None)


def test_a_file_of_something_else_is_not_taken_for_a_classifier(tmp_path, write_something_else):
    write_something_else(tmp_path / "other.pt")
    with raises(DataError, "classifier", word="genimg-features"):
        Classifier(classifier=str(tmp_path / "other.pt"), sha256=None)


def test_a_classifier_whose_weights_do_not_fit_its_classes_is_refused(tmp_path):
    write_classifier(tmp_path / "mine.pt")
    record = torch.load(tmp_path / "mine.pt", weights_only=True)
    torch.save({**record, "class_names": ["only one"]}, tmp_path / "mine.pt")
    with raises(DataError, "classifier", word="genimg-features"):
        Classifier(classifier=str(tmp_path / "mine.pt"), sha256=None)
