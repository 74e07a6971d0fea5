"""Convolutions as matrix products compute what PyTorch computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from genimg.training import cpu_layers

LAYERS = [
    ("Conv2d", {"kernel_size": 4, "stride": 2, "padding": 1}, (4, 4)),
    ("Conv2d", {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}, (2, 2)),
    ("Conv2d", {"kernel_size": (3, 5), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}, (3, 6)),
    ("ConvTranspose2d", {"kernel_size": 4, "stride": 2, "padding": 1}, (2, 2)),
    ("ConvTranspose2d", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "bias": False}, (1, 2)),
    ("ConvTranspose2d", {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)}, (2, 3)),
]


def twins(kind, settings, memory_format=torch.channels_last):
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(256, 256, **settings)
    ours = copy.deepcopy(theirs).to(memory_format=memory_format)
    cpu_layers.use_faster_layers(ours)
    return ours, theirs


def counted(monkeypatch):
    """Names of the layers whose convolution was left to PyTorch."""
    left = []
    for kind in ("Conv2d", "ConvTranspose2d"):
        forward = getattr(nn, kind).forward
        monkeypatch.setattr(
            getattr(nn, kind), "forward", lambda self, *of, forward=forward: left.append(type(self)) or forward(self, *of)
        )
    return left


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("kind", "settings", "size"), LAYERS)
def test_a_product_is_the_convolution_and_has_its_gradients(kind, settings, size, memory_format, monkeypatch):
    ours, theirs = twins(kind, settings, memory_format)
    image = torch.randn(2, 256, *size).to(memory_format=memory_format)
    images = [image.clone().requires_grad_() for _ in range(2)]
    expected = theirs(images[1])
    left = counted(monkeypatch)
    result = ours(images[0])
    assert not left
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    gradient = torch.randn_like(expected)
    result.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-4, atol=1e-4)
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "settings", "size"), LAYERS)
def test_it_keeps_channels_last_and_the_precision_of_autocast(kind, settings, size):
    ours, theirs = twins(kind, settings)
    image = torch.randn(2, 256, *size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        result, expected = ours(image), theirs(image)
    assert result.dtype == expected.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.float(), expected.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("kind", "channels", "size", "settings"),
    [
        ("Conv2d", 256, 32, {}),  # many positions
        ("Conv2d", 8, 2, {}),  # few weights
        ("Conv2d", 256, 2, {"padding_mode": "reflect"}),
        ("Conv2d", 256, 2, {"padding": "same"}),
        ("Conv2d", 2048, 2, {"groups": 8}),
        ("ConvTranspose2d", 256, 32, {}),
        ("ConvTranspose2d", 8, 2, {}),
    ],
)
def test_everything_else_is_pytorchs(kind, channels, size, settings, monkeypatch):
    left = counted(monkeypatch)
    layer = getattr(nn, kind)(channels, channels, 3, **{"padding": 1, **settings})
    cpu_layers.use_faster_layers(layer)
    layer(torch.zeros(1, channels, size, size))
    assert left == [type(layer)]


def test_copies_names_and_other_classes_stay() -> None:
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(512, 512, 3), Own(512, 512, 3), nn.InstanceNorm2d(4, track_running_stats=True))
    names = [*model.state_dict()]
    cpu_layers.use_faster_layers(model)
    assert [*model.state_dict()] == names
    assert type(model[1]) is Own
    assert type(model[2]) is nn.InstanceNorm2d
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert type(twin[0]) is type(model[0]) is not nn.Conv2d
    assert twin[0](torch.ones(1, 512, 3, 3)).equal(twin[0].bias[None, :, None, None])
    assert model[0].weight.abs().max() > 0
