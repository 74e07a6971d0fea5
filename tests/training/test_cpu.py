"""Every way to be faster on a CPU computes what PyTorch computes."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from genimg.networks.diffusion_layers import GroupNorm as DiffusionGroupNorm
from genimg.training import cpu

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
    cpu.use_faster_layers(ours)
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
    cpu.use_faster_layers(layer)
    layer(torch.zeros(1, channels, size, size))
    assert left == [type(layer)]


def test_copies_names_and_other_classes_stay() -> None:
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(512, 512, 3), Own(512, 512, 3), nn.InstanceNorm2d(4, track_running_stats=True))
    names = [*model.state_dict()]
    cpu.use_faster_layers(model)
    assert [*model.state_dict()] == names
    assert type(model[1]) is Own
    assert type(model[2]) is nn.InstanceNorm2d
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert type(twin[0]) is type(model[0]) is not nn.Conv2d
    assert twin[0](torch.ones(1, 512, 3, 3)).equal(twin[0].bias[None, :, None, None])
    assert model[0].weight.abs().max() > 0


# Instance norm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (1, 7, 8, 3)])
def test_instance_norm_of_channels_last_is_pytorchs_with_its_gradients_and_names(shape, affine, dtype, tolerance):
    torch.manual_seed(0)
    layer = nn.InstanceNorm2d(shape[1], affine=affine).to(dtype)
    cpu.use_faster_layers(layer)
    pytorchs = nn.InstanceNorm2d(shape[1], affine=affine).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    pytorchs.load_state_dict(layer.state_dict())
    values, weights = torch.randn(shape, dtype=dtype) * 2 + 3, torch.randn(shape, dtype=dtype)
    results = []
    for norm, memory_format in ((layer, torch.channels_last), (pytorchs, torch.contiguous_format)):
        features = values.clone(memory_format=memory_format).requires_grad_()
        result = norm(features)
        assert result.is_contiguous(memory_format=memory_format)
        inputs = [features, *norm.parameters()]
        gradients = torch.autograd.grad((weights * result).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(gradients[0].square().mean(), features)  # as of a gradient penalty
        results.append([result, *gradients, *second])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_instance_norm_of_channels_last_in_bfloat16_is_that_of_float32():
    layer = nn.InstanceNorm2d(4, affine=True)
    cpu.use_faster_layers(layer)
    features = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    result = layer(features.bfloat16())
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), layer(features), atol=0.03)  # bfloat16 has 8 bits, values here are below 4


# Group norm


@pytest.mark.parametrize("kind", [nn.GroupNorm, DiffusionGroupNorm])
def test_group_norm_of_bfloat16_is_computed_in_float32_with_its_gradients(kind):
    generator = torch.Generator().manual_seed(0)
    layer = nn.GroupNorm(2, 8) if kind is nn.GroupNorm else DiffusionGroupNorm(8)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    original = copy.deepcopy(layer)
    cpu.use_faster_layers(layer)
    assert type(layer) is not kind
    values, weights = (torch.randn(3, 8, 5, 6, generator=generator).to(memory_format=torch.channels_last) for _ in range(2))
    values = (values * 2 + 3).bfloat16()
    results = []
    for norm, dtype in ((layer, torch.bfloat16), (original, torch.float32)):
        features = values.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = norm(features)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        results.append([result, *torch.autograd.grad((weights * result.float()).sum(), [features, *norm.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours.float(), theirs, rtol=0.01, atol=0.03)  # bfloat16 has 8 bits


# Dropout


def faster_dropout(probability: float) -> nn.Dropout:
    layer = nn.Dropout(probability)
    cpu.use_faster_layers(layer)
    assert type(layer) is not nn.Dropout
    return layer


@pytest.mark.parametrize("probability", [0.13, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_sets_independent_values_to_0_with_its_probability_and_keeps_the_mean(probability, dtype):
    torch.manual_seed(0)
    layer, shape = faster_dropout(probability), (8, 33, 61, 61)
    features = torch.ones(shape, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    result = layer(features)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.autograd.grad(result.sum(), features)[0], result)  # the same values are kept
    dropped = (result == 0).double().permute(0, 2, 3, 1).flatten()  # in the order of memory
    error = 5 * (probability * (1 - probability) / len(dropped)) ** 0.5
    assert abs(dropped.mean() - probability) < error
    for part in range(4):  # of the four values that one random number gives
        assert abs(dropped[part::4].mean() - probability) < 2 * error
    pairs = (dropped[1:] * dropped[:-1]).mean()  # neighbours
    assert abs(pairs - probability**2) < 2 * error
    scale = result[result != 0].unique()
    assert len(scale) == 1
    assert scale.item() == pytest.approx(1 / (1 - probability), rel=0.01)


def test_dropout_depends_on_the_generator_alone():
    layer, features = faster_dropout(0.5), torch.ones(3, 5, 7)  # 105 values, not a multiple of 4
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(layer(features))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_dropout_is_pytorchs_in_evaluation_and_for_other_memory_formats():
    layer, features = faster_dropout(0.5), torch.randn(4, 6).T
    torch.manual_seed(0)
    result = layer(features)
    torch.manual_seed(0)
    assert torch.equal(result, nn.functional.dropout(features, 0.5))
    assert torch.equal(layer.eval()(features), features)


@pytest.mark.parametrize("settings", [{"p": 0.0}, {"p": 1.0}, {"p": 0.5, "inplace": True}])
def test_dropout_with_nothing_to_draw_or_in_place_remains_pytorchs(settings):
    layer = nn.Dropout(**settings)
    cpu.use_faster_layers(layer)
    assert type(layer) is nn.Dropout


# Optimizers


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_a_placed_optimizer_steps_as_fused_and_plain_ones(optimizer_class, amsgrad):
    torch.manual_seed(0)
    placed = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1), nn.Linear(3, 2), nn.Conv2d(16, 32, 4))
    placed.to(memory_format=torch.channels_last)
    fused, plain = copy.deepcopy(placed), copy.deepcopy(placed)
    networks = (placed, fused, plain)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": amsgrad}
    optimizers = [optimizer_class(network.parameters(), fused=network is not plain, **settings) for network in networks]
    cpu.step_without_copies(optimizers[0])
    for step in range(4):
        for parameters in zip(*(network.parameters() for network in networks), strict=True):
            gradient = torch.randn(parameters[0].shape)  # contiguous, where autograd's have the parameter's layout
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            if step == 3:
                parameters[0].grad = gradient
        if step == 2:
            for network in networks:
                network[0].weight.grad = None  # not in every step
        for optimizer in optimizers:
            optimizer.step()
    for parameter, as_fused, as_plain in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(parameter, as_fused)
        assert torch.allclose(parameter, as_plain, rtol=1e-5, atol=1e-6)
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (parameter, as_fused), strict=False)]
        assert len(states[0]) == 3 + amsgrad
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key])
            assert value.stride() == states[1][key].stride()


def test_only_what_has_copies_to_save_is_changed():
    convolution = nn.Conv2d(3, 7, 3)
    for optimizer in (torch.optim.SGD(convolution.parameters(), fused=True), torch.optim.Adam(convolution.parameters())):
        cpu.step_without_copies(optimizer)
        assert "_init_group" not in vars(optimizer)


# Memory


_FAULTS = """
import resource, torch
from genimg.training.cpu import keep_freed_memory
keep_freed_memory()
for step in range(40):  # the first ones find no place of the right size
    if step == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**25, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_unless_the_user_decided_otherwise():
    def page_faults(**environment):
        process = subprocess.run(
            [sys.executable, "-c", _FAULTS], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return int(process.stdout)

    assert page_faults() < page_faults(MALLOC_TRIM_THRESHOLD_="131072") / 4
