from functools import partial

import pytest
import torch
from errors import raises
from torch import nn

from genimg.losses.likelihoods import Bernoulli, DiscretisedLogisticMixture, GaussianPerPixel, Likelihood
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.networks.conv_autoencoder import Decoder, Encoder

SIZES = [(64, 3), (32, 3), (28, 1), ([48, 32], 3), ([16, 40], 4)]


BERNOULLI = Bernoulli(binarisation="none")


def pair(
    size,
    channels: int,
    latent_dim: int = 6,
    width: int = 4,
    condition: ConditionEncoder | None = None,
    likelihood: Likelihood = BERNOULLI,
) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    settings = {
        "image_size": size, "channels": channels, "latent_dim": latent_dim, "width": width,
        "condition": condition or Unconditional(),
    }  # fmt: skip
    return Encoder(**settings, moments=2), Decoder(**settings, likelihood=likelihood)


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_encoder_gives_two_moments_and_decoder_an_image(size, channels):
    encoder, decoder = pair(size, channels)
    image = torch.rand(5, channels, *((size, size) if isinstance(size, int) else size)) * 2 - 1
    moments = encoder(image, nothing(5))
    assert moments.shape == (5, 2, 6)
    assert not torch.equal(moments[:, 0], moments[:, 1])
    assert decoder(moments[:, 0], nothing(5)).shape == image.shape


def test_an_encoder_without_noise_gives_one_number_for_each_latent():
    encoder = Encoder(image_size=16, channels=1, condition=Unconditional(), latent_dim=6, moments=1, width=4)
    assert encoder(torch.rand(5, 1, 16, 16), nothing(5)).shape == (5, 1, 6)


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [(GaussianPerPixel(least_scale=0.1), 6), (DiscretisedLogisticMixture(num_mixtures=2), 20)]
)
def test_a_decoder_gives_as_many_numbers_a_pixel_as_the_likelihood_needs(likelihood, outputs):
    _, decoder = pair(16, 3, likelihood=likelihood)
    assert decoder(torch.randn(2, 6), nothing(2)).shape == (2, outputs, 16, 16)


def test_a_label_is_constant_channels_beside_the_image_and_numbers_beside_the_latent():
    encoder, decoder = pair(16, 3, condition=OneHot(num_classes=4))
    assert encoder.layers[0].in_channels == 3 + 4
    assert decoder.project.in_features == 6 + 4
    encoder.eval()
    decoder.eval()
    image, latent, label = torch.rand(3, 3, 16, 16), torch.randn(3, 6), torch.tensor([2, 0, 3])
    vector = nn.functional.one_hot(label, 4).float()
    beside = torch.cat([image, vector[:, :, None, None].expand(-1, -1, 16, 16)], dim=1)
    expected = encoder.moments(encoder.layers(beside).flatten(1)).view(3, 2, 6)
    assert torch.allclose(encoder(image, label), expected, rtol=0, atol=1e-6)
    expected = decoder.layers(decoder.project(torch.cat([latent, vector], dim=1)).view(3, 8, 4, 4))
    assert torch.allclose(decoder(latent, label), expected, rtol=0, atol=1e-6)


def test_parameter_counts_by_hand():
    encoder, decoder = pair(28, 1, latent_dim=10, width=8)  # 28 -> 14 -> 7, with 8 and 16 channels
    convolutions = 1 * 8 * 16 + 8 * 16 * 16
    batch_norms = 2 * 8 + 2 * 16
    flat = 16 * 7 * 7
    assert num_parameters(encoder) == convolutions + batch_norms + (flat + 1) * 2 * 10
    assert num_parameters(decoder) == (10 + 1) * flat + convolutions + 1 + batch_norms  # the last layer has a bias


def test_channels_double_as_the_resolution_halves():
    encoder, decoder = pair(32, 3)
    assert [layer.out_channels for layer in encoder.modules() if isinstance(layer, nn.Conv2d)] == [4, 8, 16]
    assert [layer.in_channels for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)] == [16, 8, 4]


def test_decoder_output_is_unbounded():
    _, decoder = pair(16, 1)
    last = [layer for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)][-1]
    nn.init.constant_(last.bias, 7.0)
    assert decoder(torch.randn(4, 6), nothing(4)).mean().item() > 5


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    encoder, decoder = pair(16, 3)
    encoder.eval()
    decoder.eval()
    image = torch.rand(4, 3, 16, 16)
    latent = image[:, 0, 0, :6]
    assert torch.allclose(encoder(image, nothing(4))[:1], encoder(image[:1], nothing(1)), rtol=0, atol=1e-6)
    assert torch.allclose(decoder(latent, nothing(4))[:1], decoder(latent[:1], nothing(1)), rtol=0, atol=1e-6)


def test_every_parameter_receives_a_gradient():
    encoder, decoder = pair(16, 3)
    moments = encoder(torch.rand(4, 3, 16, 16), nothing(4))
    decoder(moments.sum(dim=1), nothing(4)).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [30, 8, [64, 30]])
@pytest.mark.parametrize("network", [partial(Encoder, moments=2), partial(Decoder, likelihood=BERNOULLI)])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size, network):
    with raises(ValueError, "image_size", word="nearest"):
        network(image_size=size, channels=3, latent_dim=4, width=4, condition=Unconditional())
