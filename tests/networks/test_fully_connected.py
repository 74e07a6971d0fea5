from functools import partial

import pytest
import torch
from errors import raises
from torch import nn
from torch.nn.utils import parametrize

from genimg.losses.likelihoods import Bernoulli, DiscretisedLogisticMixture, GaussianPerPixel
from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional
from genimg.networks.discriminator import Discriminator
from genimg.networks.fully_connected import Decoder, Encoder, Features, Generator, stack

SIZES = [(28, 1), (32, 3), (7, 2), ([5, 9], 3)]


def generator(condition: ConditionEncoder | None = None, **changes) -> Generator:
    torch.manual_seed(0)
    settings = {
        "latent_dim": 6,
        "condition": condition or Unconditional(),
        "image_size": 28,
        "channels": 1,
        "widths": [8, 16],
        "activation": "leaky_relu",
        "normalisation": "batch",
        "initialisation": "default",
        "spectral_norm": False,
    }
    return Generator(**(settings | changes))


def features(**changes) -> Features:
    torch.manual_seed(0)
    settings = {
        "image_size": 28,
        "channels": 1,
        "condition_channels": 0,
        "widths": [16, 8],
        "activation": "leaky_relu",
        "normalisation": "none",
        "dropout": 0.0,
    }
    return Features(**(settings | changes))


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    values = list(source.state_dict().values())
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))


@pytest.mark.parametrize(("activation", "module"), [("relu", nn.ReLU()), ("leaky_relu", nn.LeakyReLU(0.2))])
def test_generator_is_a_perceptron_with_batch_norm(activation, module):
    network = generator(activation=activation)
    reference = nn.Sequential(
        *(nn.Linear(6, 8), nn.BatchNorm1d(8), module),
        *(nn.Linear(8, 16), nn.BatchNorm1d(16), module),
        *(nn.Linear(16, 784), nn.Tanh()),
    )
    copy_weights(network, reference)
    latent = torch.randn(5, 6)
    assert torch.allclose(network(latent, nothing(5)), reference(latent).view(5, 1, 28, 28), rtol=1e-5, atol=1e-6)


def test_features_are_those_of_a_perceptron_with_layer_norm_after_all_but_the_first_layer():
    network = features(normalisation="layer", activation="relu")
    reference = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU())
    copy_weights(network, reference)
    image = torch.randn(5, 1, 28, 28)
    assert network.num_features == 8
    assert torch.allclose(network(image), reference(image.flatten(1)), rtol=1e-5, atol=1e-6)


def test_constant_condition_channels_enter_once_each():
    network = features(condition_channels=3)
    assert network.layers[0].in_features == 784 + 3
    image, condition = torch.randn(2, 1, 28, 28), torch.randn(2, 3)
    expected = network.layers(torch.cat([image.flatten(1), condition], dim=1))
    constant = condition[:, :, None, None].expand(-1, -1, 28, 28)
    assert torch.equal(network(torch.cat([image, constant], dim=1)), expected)


def test_dropout_is_the_share_of_outputs_set_to_0_in_training_only():
    network = features(widths=[20_000], activation="leaky_relu", dropout=0.3)
    image = torch.randn(1, 1, 28, 28)
    kept, dropped = network.eval()(image), network.train()(image)
    assert not (kept == 0).any()
    # Five standard errors of a share of 20,000.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 20_000) ** 0.5)
    survived = dropped != 0
    assert torch.allclose(dropped[survived], kept[survived] / 0.7, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_any_size_in_range_and_one_logit_each(size, channels):
    images = generator(image_size=size, channels=channels)(torch.randn(5, 6) * 100, nothing(5))
    judge = Discriminator(
        features=partial(features, image_size=size, channels=channels),
        condition=Unconditional(),
        head="none",
        bias=True,
        initialisation="normal",
        spectral_norm=True,
    )
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (5, channels, height, width)
    assert images.abs().max() <= 1
    assert judge(images, nothing(5)).logits.shape == (5,)


@pytest.mark.parametrize("normalisation", ["conditional_batch", "batch", "layer", "none"])
def test_a_label_changes_the_image_which_in_evaluation_mode_does_not_depend_on_its_batch(normalisation):
    network = generator(OneHot(num_classes=3), normalisation=normalisation, initialisation="orthogonal").eval()
    latent, label = torch.randn(4, 6), torch.tensor([0, 1, 2, 1])
    images = network(latent, label)
    assert not torch.allclose(images, network(latent, (label + 1) % 3), atol=1e-3)
    assert torch.allclose(images[:1], network(latent[:1], label[:1]), rtol=0, atol=1e-6)


def test_spectral_norm_of_the_generator_leaves_the_encoder_alone():
    network = generator(LabelEmbedding(num_classes=3, dim=5), spectral_norm=True)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            assert parametrize.is_parametrized(layer) == (not name.startswith("condition")), name


def test_settings_without_a_meaning_are_refused():
    for build in (generator, features):
        with raises(ValueError, "activation=maxout"):
            build(activation="maxout")
        with raises(ValueError, "normalisation=instance"):
            build(normalisation="instance")
    with raises(ValueError, "widths=[]"):
        features(widths=[])
    for dropout in (-0.1, 1):
        with raises(ValueError, f"dropout={dropout}"):
            features(dropout=dropout)


# Autoencoders


def encoder(condition: ConditionEncoder | None = None, **changes) -> Encoder:
    torch.manual_seed(0)
    settings = {
        "image_size": [4, 6], "channels": 3, "condition": condition or Unconditional(), "latent_dim": 5, "moments": 2,
        "widths": [8, 7], "activation": "relu",
    }  # fmt: skip
    return Encoder(**(settings | changes))


def decoder(condition: ConditionEncoder | None = None, **changes) -> Decoder:
    torch.manual_seed(0)
    settings = {
        "image_size": [4, 6], "channels": 3, "condition": condition or Unconditional(), "latent_dim": 5, "widths": [7, 8],
        "activation": "relu", "likelihood": Bernoulli(binarisation="none"),
    }  # fmt: skip
    return Decoder(**(settings | changes))


@pytest.mark.parametrize("moments", [1, 2])
def test_encoder_is_a_perceptron_of_pixels_from_0_to_1(moments):
    network = encoder(moments=moments)
    reference = nn.Sequential(
        nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, moments * 5), nn.Unflatten(1, (moments, 5))
    )
    copy_weights(network, reference)
    image = torch.rand(4, 3, 4, 6) * 2 - 1
    found = network(image, nothing(4))
    assert found.shape == (4, moments, 5)
    assert torch.allclose(found, reference((image.flatten(1) + 1) / 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (Bernoulli(binarisation="none"), 3),
        (GaussianPerPixel(least_scale=0.1), 6),
        (DiscretisedLogisticMixture(num_mixtures=2), 20),
    ],
)
def test_decoder_is_a_perceptron_to_as_many_numbers_a_pixel_as_the_likelihood_needs(likelihood, outputs):
    network = decoder(likelihood=likelihood, activation="tanh")
    size = outputs * 24
    reference = nn.Sequential(
        nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, size), nn.Unflatten(1, (outputs, 4, 6))
    )
    copy_weights(network, reference)
    latent = torch.randn(4, 5)
    assert torch.allclose(network(latent, nothing(4)), reference(latent), rtol=1e-5, atol=1e-6)


def test_the_decoders_output_is_unbounded():
    network = decoder()
    nn.init.constant_(network.layers[-1].bias, 7.0)
    assert network(torch.zeros(2, 5), nothing(2)).mean().item() > 5


def test_a_label_joins_the_pixels_and_the_latent():
    up, down = encoder(OneHot(num_classes=4)), decoder(OneHot(num_classes=4))
    assert (up.layers[0].in_features, down.layers[0].in_features) == (72 + 4, 5 + 4)
    image, latent, label = torch.rand(3, 3, 4, 6), torch.randn(3, 5), torch.tensor([2, 0, 3])
    vector = nn.functional.one_hot(label, 4).float()
    assert torch.equal(up(image, label).flatten(1), up.layers(torch.cat([(image.flatten(1) + 1) / 2, vector], dim=1)))
    assert torch.equal(down(latent, label).flatten(1), down.layers(torch.cat([latent, vector], dim=1)))


def test_an_encoder_of_conditions_is_trained_along():
    network = decoder(LabelEmbedding(num_classes=4, dim=2))
    network(torch.randn(3, 5), torch.tensor([2, 0, 3])).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_stack_is_activated_but_for_its_last_layer():
    assert [type(layer) for layer in stack(3, [], 2, "relu")] == [nn.Linear]
    network = stack(3, [4], 2, "leaky_relu")
    x = torch.randn(5, 3)
    first, last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    expected = nn.functional.leaky_relu(x @ first.weight.T + first.bias, 0.2) @ last.weight.T + last.bias
    assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [encoder, decoder])
def test_autoencoders_with_an_unknown_activation_are_refused(build):
    with raises(ValueError, "activation=maxout"):
        build(activation="maxout")
