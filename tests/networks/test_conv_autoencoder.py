import pytest
import torch
from torch import nn

from genimg.networks.conv_autoencoder import Decoder, Encoder

SIZES = [(64, 3), (32, 3), (28, 1), ([48, 32], 3), ([16, 40], 4)]


def pair(size, channels: int, latent_dim: int = 6, width: int = 4) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    settings = {"image_size": size, "channels": channels, "latent_dim": latent_dim, "width": width}
    return Encoder(**settings), Decoder(**settings)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_encoder_gives_two_moments_and_decoder_an_image(size, channels):
    encoder, decoder = pair(size, channels)
    image = torch.rand(5, channels, *((size, size) if isinstance(size, int) else size)) * 2 - 1
    mean, log_variance = encoder(image)
    assert mean.shape == log_variance.shape == (5, 6)
    assert not torch.equal(mean, log_variance)
    assert decoder(mean).shape == image.shape


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
    assert decoder(torch.randn(4, 6)).mean().item() > 5


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    encoder, decoder = pair(16, 3)
    encoder.eval()
    decoder.eval()
    image = torch.rand(4, 3, 16, 16)
    assert torch.allclose(encoder(image)[0][:1], encoder(image[:1])[0], rtol=0, atol=1e-6)
    assert torch.allclose(decoder(image[:, 0, 0, :6])[:1], decoder(image[:1, 0, 0, :6]), rtol=0, atol=1e-6)


def test_every_parameter_receives_a_gradient():
    encoder, decoder = pair(16, 3)
    mean, log_variance = encoder(torch.rand(4, 3, 16, 16))
    decoder(mean + log_variance).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [30, 8, [64, 30]])
@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size, network):
    with pytest.raises(ValueError, match=r"cannot be made by this model: .*; the nearest is data\.image_size=\["):
        network(image_size=size, channels=3, latent_dim=4, width=4)
