"""Faster layers on a CPU compute what PyTorch computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from genimg.networks.diffusion_layers import GroupNorm as DiffusionGroupNorm
from genimg.training import cpu_layers

# Instance norm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (1, 7, 8, 3)])
def test_instance_norm_of_channels_last_is_pytorchs_with_its_gradients_and_names(shape, affine, dtype, tolerance):
    torch.manual_seed(0)
    layer = nn.InstanceNorm2d(shape[1], affine=affine).to(dtype)
    cpu_layers.use_faster_layers(layer)
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
    cpu_layers.use_faster_layers(layer)
    features = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    result = layer(features.bfloat16())
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), layer(features), atol=0.03)  # bfloat16 has 8 bits, values here are below 4


# ReLUs


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("ours", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("theirs", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_relus_are_pytorchs_in_the_format_of_the_features(kind, inplace, ours, theirs):
    generator = torch.Generator().manual_seed(0)
    values, slope = (torch.randn(3, 4, 5, 6, generator=generator) for _ in range(2))
    layer = kind(inplace=inplace)
    expected = torch.autograd.functional.vjp(kind(), values, slope)[1]
    cpu_layers.use_faster_layers(layer)
    start = values.clone(memory_format=ours).requires_grad_()
    features = start * 1.0
    (gradient,) = torch.autograd.grad(layer(features), start, slope.clone(memory_format=theirs), create_graph=True)
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=ours)
    assert isinstance(layer, kind)
    with torch.no_grad():
        assert torch.equal(layer(values.clone(memory_format=ours)), kind()(values))


def test_relus_of_rows_are_pytorchs():
    layer = nn.ReLU()
    cpu_layers.use_faster_layers(layer)
    rows = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    layer(rows).sum().backward()
    assert torch.equal(rows.grad, (rows > 0).float())


# Group norm


@pytest.mark.parametrize("kind", [nn.GroupNorm, DiffusionGroupNorm])
def test_group_norm_of_bfloat16_is_computed_in_float32_with_its_gradients(kind):
    generator = torch.Generator().manual_seed(0)
    layer = nn.GroupNorm(2, 8) if kind is nn.GroupNorm else DiffusionGroupNorm(8)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    original = copy.deepcopy(layer)
    cpu_layers.use_faster_layers(layer)
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
    cpu_layers.use_faster_layers(layer)
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


@pytest.mark.parametrize("settings", [{"p": 0.0}, {"p": 1.0}, {"p": 1 - 2**-18}, {"p": 2**-18}, {"p": 0.5, "inplace": True}])
def test_dropout_with_nothing_to_draw_or_in_place_remains_pytorchs(settings):
    layer = nn.Dropout(**settings)
    cpu_layers.use_faster_layers(layer)
    assert type(layer) is nn.Dropout
