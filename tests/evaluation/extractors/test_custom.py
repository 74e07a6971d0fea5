"""Networks of the user's own: what they get, what they may return, and what is refused."""

import copy

import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError, DataError
from genimg.evaluation.extractors.base import prepare
from genimg.evaluation.extractors.custom import Module
from genimg.evaluation.extractors.program import Program
from genimg.utils.files import sha256_of


def random_images(num_images, channels, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, size, size), generator=generator, dtype=torch.uint8)


class Features(nn.Module):
    """Pooled convolutions with batch norm and dropout, which behave in another way in training."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.layers(images))


class FeaturesAndLogits(Features):
    def __init__(self, *, as_list=False):
        super().__init__()
        self.head = nn.Linear(20, 4)
        self.as_list = as_list

    def forward(self, images):
        features = super().forward(images)
        return [features, self.head(features)] if self.as_list else (features, self.head(features))


class Returns(nn.Module):
    """Whatever a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def module(network, **changes):
    settings = {"name": "mine", "weights": None, "sha256": None, "channels": 3, "image_size": None}
    return Module(network=network, **(settings | changes))


def program(path, **changes):
    settings = {"name": "mine", "sha256": None, "channels": 3, "image_size": 16}
    return Program(program=str(path), **(settings | changes))


# A module


def test_a_modules_features_are_those_of_the_network_for_images_between_minus_one_and_one():
    network = Features()
    images = random_images(3, 3)
    found, logits = module(network)(images)
    with torch.no_grad():
        expected = Features().eval()(images.float() / 127.5 - 1.0)
    assert logits is None
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)
    assert not network.training


@pytest.mark.parametrize("as_list", [False, True])
def test_a_module_may_return_logits_beside_the_features(as_list):
    images = random_images(3, 3)
    extractor = module(FeaturesAndLogits(as_list=as_list))
    found, logits = extractor(images)
    with torch.no_grad():
        expected = FeaturesAndLogits().eval()(images.float() / 127.5 - 1.0)
    assert extractor.has_logits
    torch.testing.assert_close((found, logits), expected, rtol=0.0, atol=1e-6)


def test_a_module_may_return_its_features_in_a_tuple_of_one():
    extractor = module(Returns(lambda images: (images.flatten(1),)))
    found, logits = extractor(random_images(3, 3, size=4))
    assert not extractor.has_logits
    assert found.shape == (3, 48)
    assert logits is None


@pytest.mark.parametrize("given", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_module_gets_images_of_its_channels_and_size(given, channels):
    images = random_images(2, given)
    found, _ = module(Returns(lambda images: images.flatten(1)), channels=channels, image_size=8)(images)
    torch.testing.assert_close(found, prepare(images, channels, 8).flatten(1))
    assert found.shape == (2, channels * 64)


def test_a_modules_features_do_not_depend_on_the_other_images_of_the_batch():
    extractor = module(Features())
    images = random_images(4, 3)
    singly = torch.cat([extractor(image[None])[0] for image in images])
    torch.testing.assert_close(extractor(images)[0], singly, rtol=0.0, atol=1e-6)


def test_a_module_names_its_metrics_and_says_what_determines_the_features():
    extractor = module(Features(1), name="my_net2", channels=1, image_size=16)
    assert extractor.metric_name("fd", "5k") == "fd5k_my_net2"
    described = extractor.describe()
    assert len(described.pop("network_sha256")) == 64
    assert described == {
        "name": "my_net2",
        "weights_sha256": None,
        "resize": "bilinear with anti-aliasing to 16x16",
        "channels": "colour to grey by its luma, alpha dropped",
    }
    assert module(Features()).describe()["resize"] == "none"


def test_a_modules_weights_are_loaded_and_recorded_by_their_digest(tmp_path):
    trained = Features()
    nn.init.normal_(trained.layers[0].weight)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    digest = sha256_of(tmp_path / "weights.pt")
    extractor = module(Features(), weights=str(tmp_path / "weights.pt"), sha256=digest)
    images = random_images(2, 3)
    assert extractor.describe()["weights_sha256"] == digest
    assert torch.equal(extractor(images)[0], module(trained)(images)[0])
    assert not torch.equal(extractor(images)[0], module(Features())(images)[0])
    with raises(DataError, "sha256", word="weights.pt"):
        module(Features(), weights=str(tmp_path / "weights.pt"), sha256="0" * 64)


def test_a_modules_weights_that_are_not_there_are_named(tmp_path):
    with raises(DataError, "weights", word="absent.pt"):
        module(Features(), weights=str(tmp_path / "absent.pt"))


def test_a_file_of_something_else_is_not_taken_for_a_modules_weights(tmp_path, write_something_else):
    write_something_else(tmp_path / "other.pt")
    with raises(DataError, "weights", word="other.pt"):
        module(Features(), weights=str(tmp_path / "other.pt"))


def test_a_digest_without_weights_is_refused():
    with raises(ConfigError, "sha256", word="effect"):
        module(Features(), sha256="0" * 64)


@pytest.mark.parametrize("name", ["", "my-net", "my net", "_mine", "a/b", "mine\n"])
def test_a_name_that_metrics_cannot_carry_is_refused(name):
    with raises(ConfigError, "name", word="letters"):
        module(Features(), name=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 4}, "channels=4"),
        ({"channels": 0}, "channels=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": -8}, "image_size=-8"),
    ],
)
def test_sizes_and_channels_that_are_none_are_refused(changes, message):
    with raises(ConfigError, message):
        module(Features(), **changes)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda images: images, r"\[\(2, 3, 32, 32\)\]"),
        (lambda images: images.flatten(), r"\[\(6144,\)\]"),
        (lambda images: images.flatten(1)[:1], r"\[\(1, 3072\)\]"),
        (lambda images: images.mean(), r"\[\(\)\]"),
        (lambda images: {"features": images.flatten(1)}, r"\['dict'\]"),
        (lambda images: None, r"\['NoneType'\]"),
        (lambda images: (images.flatten(1), None), r"\[\(2, 3072\), 'NoneType'\]"),
        (lambda images: (images.flatten(1),) * 3, r"\[\(2, 3072\), \(2, 3072\), \(2, 3072\)\]"),
    ],
)
def test_a_network_that_returns_something_else_is_refused(function, shapes):
    with raises(ConfigError, "name=mine"):
        module(Returns(function))


def test_a_network_that_cannot_take_the_images_is_refused_with_the_keys_to_set():
    with raises(ConfigError, "name=mine") as caught:
        module(Features(1), image_size=20)
    assert "set channels and image_size" in str(caught.value)
    assert "\n" not in str(caught.value)

    def fail(images):
        raise KeyError

    with raises(ConfigError, "name=mine"):
        module(Returns(fail))


# A program


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The paths of two exported networks, without and with logits; their batch dimension is dynamic."""
    folder = tmp_path_factory.mktemp("programs")
    for name, network in (("features", Features()), ("logits", FeaturesAndLogits())):
        batch = {0: torch.export.Dim("batch")}
        exported = torch.export.export(network.eval(), (torch.zeros(3, 3, 16, 16),), dynamic_shapes=(batch,))
        torch.export.save(exported, folder / f"{name}.pt2")
    return folder


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_a_programs_features_are_those_of_the_eager_network(saved, num_images):
    images = random_images(num_images, 3)
    extractor = program(saved / "features.pt2")
    found, logits = extractor(images)
    with torch.no_grad():
        expected = Features().eval()(prepare(images, 3, 16))
    assert logits is None
    assert not extractor.has_logits
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_a_program_may_return_logits_beside_the_features(saved):
    images = random_images(3, 1, size=16)
    extractor = program(saved / "logits.pt2")
    with torch.no_grad():
        expected = FeaturesAndLogits().eval()(prepare(images, 3, 16))
    assert extractor.has_logits
    torch.testing.assert_close(extractor(images), expected, rtol=0.0, atol=1e-5)


def test_a_program_is_recorded_by_its_digest_and_another_is_refused(saved):
    digest = sha256_of(saved / "features.pt2")
    assert program(saved / "features.pt2", sha256=digest).describe() == {
        "name": "mine",
        "weights_sha256": digest,
        "resize": "bilinear with anti-aliasing to 16x16",
        "channels": "grey replicated to 3, alpha dropped",
    }
    with raises(DataError, "sha256", word="features.pt"):
        program(saved / "features.pt2", sha256="0" * 64)


def test_a_program_that_cannot_take_the_images_is_refused_with_the_keys_to_set(saved):
    with raises(ConfigError, "name", word="channels"):
        program(saved / "features.pt2", image_size=20)
    with raises(ConfigError, "name", word="channels"):
        program(saved / "features.pt2", channels=1)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_program_of_one_batch_size_is_refused_before_any_work(tmp_path, batch):
    exported = torch.export.export(nn.Flatten(), (torch.zeros(batch, 3, 4, 4),))
    torch.export.save(exported, tmp_path / "fixed.pt2")
    with raises(ConfigError, "name=mine"):
        program(tmp_path / "fixed.pt2", image_size=4)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_damaged_program_is_refused(saved, tmp_path, share):
    content = (saved / "features.pt2").read_bytes()
    (tmp_path / "damaged.pt2").write_bytes(content[: int(share * len(content))])
    with raises(DataError, "program", word="torch.export.save"):
        program(tmp_path / "damaged.pt2")


def test_a_file_of_something_else_is_not_taken_for_a_program(tmp_path, write_something_else):
    write_something_else(tmp_path / "other.pt2")
    with raises(DataError, "program", word="torch.export.save"):
        program(tmp_path / "other.pt2")


def test_a_program_that_is_not_there_is_named(tmp_path):
    with raises(DataError, "program", word="absent.pt"):
        program(tmp_path / "absent.pt2")


def test_a_modules_identity_is_its_own_and_not_its_names():
    """Otherwise the cached statistics of one network would serve another."""
    torch.manual_seed(0)
    first, second = Features(), Features()
    assert module(first).describe() == module(copy.deepcopy(first)).describe()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    assert module(first).describe()["network_sha256"] != module(second).describe()["network_sha256"]


@pytest.mark.parametrize("name", ["inception", "dinov2_vitl14", "clip_vit_b_32"])
def test_a_network_of_ones_own_cannot_take_a_published_name(name):
    with raises(ConfigError, f"name={name}"):
        module(Features(), name=name)
