"""Translators: residual ones and U-Nets."""

from typing import Any

import pytest
import torch
from errors import raises
from torch import nn

from genimg.networks import resnet_translator, unet

RESIDUAL = {
    "source_channels": 3, "target_channels": 3, "width": 64, "num_downs": 2, "num_blocks": 9, "normalisation": "instance",
    "padding": "reflect", "upsampling": "transposed", "dropout": 0.0, "initialisation": "normal", "spectral_norm": False,
}  # fmt: skip
UNET = {
    "source_channels": 3, "target_channels": 3, "image_size": 256, "width": 64, "num_downs": None, "normalisation": "batch",
    "upsampling": "transposed", "dropout": 0.5, "num_dropout": 3, "initialisation": "normal", "spectral_norm": False,
}  # fmt: skip


def residual(**changes: Any) -> resnet_translator.Translator:
    torch.manual_seed(0)
    return resnet_translator.Translator(**(RESIDUAL | {"width": 4, "num_blocks": 2} | changes))


def u_net(**changes: Any) -> unet.Translator:
    torch.manual_seed(0)
    return unet.Translator(**(UNET | {"width": 4, "image_size": 32, "dropout": 0.0} | changes))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_published_networks_have_as_many_parameters_as_their_authors_code_prints():
    """In millions, from the logs of pytorch-CycleGAN-and-pix2pix."""
    assert round(count(resnet_translator.Translator(**RESIDUAL)) / 1e6, 3) == 11.378
    assert round(count(unet.Translator(**UNET)) / 1e6, 3) == 54.414
    # The convolutions' weights alone, from the paper's list of layers, 256 px: encoder and decoder of 4x4 kernels.
    downs = [(3, 64), (64, 128), (128, 256), (256, 512)] + [(512, 512)] * 4
    ups = [(512, 512)] + [(1024, 512)] * 3 + [(1024, 256), (512, 128), (256, 64), (128, 3)]
    weights = sum(p.numel() for p in unet.Translator(**UNET).parameters() if p.ndim == 4)
    assert weights == 16 * sum(a * b for a, b in downs + ups)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("normalisation", ["none", "batch", "instance", "layer"])
@pytest.mark.parametrize("make", [residual, u_net])
def test_size_stays_channels_change_and_every_weight_learns(make, normalisation, upsampling):
    network = make(
        source_channels=1, target_channels=2, normalisation=normalisation, upsampling=upsampling, initialisation="xavier"
    )
    result = network(images(2, 1, 32, 64))
    assert result.shape == (2, 2, 32, 64)
    assert result.abs().max() < 1
    result.square().sum().backward()
    # A bias in front of an instance norm without scale cannot learn: the norm takes it away.
    idle = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    assert all(name.endswith("bias") for name in idle)
    assert not idle or normalisation in ("instance", "layer")


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_residual_translator_is_the_chain_of_its_layers(padding):
    network = residual(padding=padding, num_downs=1, num_blocks=1, normalisation="none")
    image = images(1, 3, 8, 12)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    first, down, one, two, up, last = convolutions

    def by_hand(layer: nn.Conv2d, features: torch.Tensor, size: int) -> torch.Tensor:
        mode = {"zeros": "constant"}.get(padding, padding)
        features = nn.functional.pad(features, [size // 2] * 4, mode=mode)
        return nn.functional.conv2d(features, layer.weight, layer.bias)

    features = by_hand(first, image, 7).relu()
    features = nn.functional.conv2d(features, down.weight, down.bias, stride=2, padding=1).relu()
    features = features + by_hand(two, by_hand(one, features, 3).relu(), 3)
    features = nn.functional.conv_transpose2d(features, up.weight, up.bias, stride=2, padding=1, output_padding=1).relu()
    assert torch.allclose(network(image), by_hand(last, features, 7).tanh(), atol=1e-6)


def test_u_net_is_the_chain_of_its_layers_with_skips():
    network = u_net(num_downs=2, normalisation="none")
    image = images(1, 3, 8, 12)
    first, second, up, last = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    f = nn.functional
    large = f.conv2d(image, first.weight, first.bias, stride=2, padding=1)
    small = f.conv2d(f.leaky_relu(large, 0.2), second.weight, second.bias, stride=2, padding=1)
    back = f.conv_transpose2d(small.relu(), up.weight, up.bias, stride=2, padding=1)
    expected = f.conv_transpose2d(torch.cat([large, back], 1).relu(), last.weight, last.bias, stride=2, padding=1).tanh()
    assert torch.allclose(network(image), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "num_downs", "multiple"), [(256, None, 256), (64, None, 64), ([48, 32], None, 16), (28, None, 4), (64, 3, 8)]
)
def test_depth_of_a_u_net_follows_the_size(image_size, num_downs, multiple):
    assert u_net(image_size=image_size, num_downs=num_downs, width=1).size_divisor == multiple


def test_dropout_is_behind_the_doublings_next_to_the_smallest_size():
    network = u_net(image_size=64, dropout=0.5, num_dropout=2)
    assert [any(isinstance(layer, nn.Dropout) for layer in up) for up in network.ups] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    image = images(2, 3, 64, 64)
    assert not torch.equal(network(image), network(image))
    assert torch.equal(network.eval()(image), network(image))
    blocks = residual(dropout=0.5).train()
    assert not torch.equal(blocks(image), blocks(image))


def test_spectral_norm_holds_every_convolution():
    for network in (residual(spectral_norm=True), u_net(spectral_norm=True)):
        for _ in range(30):  # power iterations
            network(images(1, 3, 32, 32))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                matrix = layer.weight if isinstance(layer, nn.Conv2d) else layer.weight.transpose(0, 1)
                assert torch.linalg.matrix_norm(matrix.flatten(1), 2).item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (residual, {"padding": "mirror"}, "padding=mirror"),
        (residual, {"upsampling": "bilinear"}, "upsampling=bilinear"),
        (residual, {"num_blocks": -1}, "num_blocks=-1"),
        (residual, {"width": 0}, "width=0"),
        (u_net, {"upsampling": "bilinear"}, "upsampling=bilinear"),
        (u_net, {"num_downs": 1}, "num_downs=1"),
        (u_net, {"num_downs": 6}, "multiples"),
        (u_net, {"image_size": 30}, "multiples"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, changes, words):
    with raises(ValueError, word=words):
        make(**changes)
