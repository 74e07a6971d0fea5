from typing import Any

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import nn

from genimg.networks.vq_autoencoder import Decoder, Encoder

SIZES: dict[str, Any] = {"channels": 3, "dim": 5, "width": 8, "residual_width": 4, "num_blocks": 2, "num_downs": 2}


def encoder(**changes: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(**({"image_size": 32} | SIZES | changes))


def decoder(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**(SIZES | changes))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("image_size", "num_downs", "grid"), [(32, 2, (8, 8)), (28, 2, (7, 7)), ([48, 32], 3, (6, 4)), (32, 1, (16, 16))]
)
def test_each_strided_convolution_halves_and_the_decoder_doubles_as_often(image_size, num_downs, grid):
    network = encoder(image_size=image_size, num_downs=num_downs)
    assert network.grid == grid
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = images(2, 3, height, width)
    vectors = network(image)
    assert vectors.shape == (2, 5, *grid)
    output = decoder(num_downs=num_downs)(vectors)
    assert output.shape == image.shape
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_encoder_is_the_chain_of_the_papers_layers():
    network = encoder(num_blocks=1)
    first, second, three, one, last = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert [layer.kernel_size for layer in (first, second, three, one, last)] == [(4, 4), (4, 4), (3, 3), (1, 1), (1, 1)]
    image = images(2, 3, 32, 32)
    features = F.conv2d(image, first.weight, first.bias, stride=2, padding=1).relu()
    features = F.conv2d(features, second.weight, second.bias, stride=2, padding=1)
    inner = F.conv2d(features.relu(), three.weight, three.bias, padding=1).relu()
    features = features + F.conv2d(inner, one.weight, one.bias)
    expected = F.conv2d(features.relu(), last.weight, last.bias)
    assert torch.allclose(network(image), expected, atol=1e-6)


def test_decoder_is_the_chain_of_the_papers_layers_and_ends_linearly():
    network = decoder(num_blocks=1)
    first, three, one = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    up, last = (layer for layer in network.modules() if isinstance(layer, nn.ConvTranspose2d))
    vectors = images(2, 5, 8, 8)
    features = F.conv2d(vectors, first.weight, first.bias, padding=1)
    inner = F.conv2d(features.relu(), three.weight, three.bias, padding=1).relu()
    features = features + F.conv2d(inner, one.weight, one.bias)
    features = F.conv_transpose2d(features.relu(), up.weight, up.bias, stride=2, padding=1)
    expected = F.conv_transpose2d(features.relu(), last.weight, last.bias, stride=2, padding=1)
    assert torch.allclose(network(vectors), expected, atol=1e-6)
    assert network(1000 * vectors).abs().max() > 1


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (encoder, {"image_size": 30}, "image_size=[30,30]"),
        (encoder, {"image_size": [32, 20], "num_downs": 3}, "image_size=[32,20]"),
        (encoder, {"image_size": 2}, "image_size=[2,2]"),
        (encoder, {"width": 0}, "width=0"),
        (encoder, {"num_blocks": -1}, "num_blocks=-1"),
        (decoder, {"num_downs": 0}, "num_downs=0"),
        (decoder, {"residual_width": 0}, "residual_width=0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, changes, words):
    with raises(ValueError, words):
        make(**changes)
