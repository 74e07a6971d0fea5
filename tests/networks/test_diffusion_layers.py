"""Embedding of time and condition, group norm and attention of diffusion models' networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from errors import raises

from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional
from genimg.networks.diffusion_layers import GroupNorm, TimeEmbedding, attention, num_groups, sines_and_cosines


def embedding(condition: ConditionEncoder | None = None, **changes) -> TimeEmbedding:
    torch.manual_seed(0)
    settings = {"width": 8, "outputs": 12, "num_times": 1, "augment_dim": 0, "adds_condition_first": False}
    return TimeEmbedding(condition=condition or Unconditional(), **(settings | changes))


def none(count: int) -> torch.Tensor:
    return torch.zeros(count, 0)


def test_sines_and_cosines_of_one_position_are_those_of_the_formula():
    result = sines_and_cosines(torch.tensor([[3.0, 0.0]]), 6)
    angles = [3.0, 3.0 * 10_000**-0.5, 3.0 / 10_000]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert result.shape == (1, 2, 6)
    assert torch.allclose(result[0, 0], torch.tensor(expected), atol=1e-6)
    assert result[0, 1].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("dim", [2, 64])
def test_sines_and_cosines_have_any_even_length_and_no_invalid_values(dim):
    assert sines_and_cosines(torch.tensor([0.0, 1000.0]), dim).isfinite().all()


@pytest.mark.parametrize(("channels", "count"), [(512, 32), (128, 32), (64, 16), (144, 24), (8, 2), (3, 1), (7, 1), (384, 32)])
def test_groups_have_4_channels_or_more_and_are_equal(channels, count):
    assert num_groups(channels) == count
    assert channels % count == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_keeps_the_dtype_under_autocast(dtype):
    layer, features = GroupNorm(16, eps=1e-6), 3 * torch.randn(2, 16, 5, 5) + 1
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(features.to(dtype))
    assert result.dtype == dtype
    grouped = features.view(2, 4, -1)
    expected = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(result.float(), expected.view_as(features), atol=1e-5 if dtype == torch.float32 else 0.05)


def test_attention_is_the_formula_and_as_exact_under_autocast():
    query, key, value = torch.randn(3, 2, 4, 5, 6).unbind(0)
    expected = torch.softmax(query @ key.mT / 6**0.5, dim=-1) @ value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(attention(query, key, value), expected, atol=1e-5)
        assert attention(query, key, value.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("positions", [49, 300])  # the attention weights are stored up to 256
def test_attention_of_bfloat16_has_the_gradients_of_the_formula(positions):
    values = torch.randn(4, 2, 3, positions, 8).bfloat16()
    *inputs, weights = values
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        query, key, value = leaves = [each.to(dtype).requires_grad_() for each in inputs]
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", torch.bfloat16):
                result = attention(query, key, 8 * value)
        else:
            result = torch.softmax(query @ key.mT / 8**0.5, dim=-1) @ (8 * value)
        results.append([result, *torch.autograd.grad((result * weights.to(dtype)).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).norm() < 0.005 * theirs.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("first", [True, False])
def test_embedding_is_two_layers_with_the_condition_before_the_first_or_after_the_last(first):
    layer = embedding(OneHot(num_classes=4), augment_dim=3, num_times=2, adds_condition_first=first)
    time, labels, augment = torch.rand(5, 2), F.one_hot(torch.arange(5) % 4, 4).float(), torch.randn(5, 3)
    hidden = torch.cat([sines_and_cosines(time[:, 0], 8), sines_and_cosines(time[:, 1], 8)], dim=1)
    hidden = hidden + augment @ layer.augment.weight.T
    if first:
        hidden = hidden + 2.0 * labels @ layer.condition.weight.T + layer.condition.bias
    hidden = layer.second(F.silu(layer.first(hidden)))
    if not first:
        assert layer.condition.bias is None
        hidden = hidden + layer.condition.weight.T[torch.arange(5) % 4]
    assert torch.allclose(layer(time, labels, None, augment), F.silu(hidden), atol=1e-6)


def test_only_one_hot_vectors_are_scaled():
    assert embedding(OneHot(num_classes=9), adds_condition_first=True).condition_scale == 3.0
    assert embedding(LabelEmbedding(num_classes=9, dim=4), adds_condition_first=True).condition_scale == 1.0
    assert embedding(OneHot(num_classes=9)).condition_scale == 1.0


@pytest.mark.parametrize("first", [True, False])
def test_a_condition_that_is_not_kept_is_the_zero_vector(first):
    layer = embedding(LabelEmbedding(num_classes=4, dim=4), adds_condition_first=first)
    time, vector = torch.rand(3), torch.randn(3, 4)
    for keep in (torch.tensor([True, False, True]), torch.tensor([1.0, 0.0, 1.0])):
        mixed = layer(time, vector, keep, None)
        assert torch.equal(mixed[[0, 2]], layer(time, vector, None, None)[[0, 2]])
        assert torch.equal(mixed[1], layer(time, torch.zeros(3, 4), None, None)[1])


def test_the_embedding_is_float32_under_autocast():
    layer, time = embedding(), torch.rand(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(time, none(3), None, None), layer(time, none(3), None, None).float())
        result = layer(time, none(3), None, None)
    assert torch.equal(result, layer(time, none(3), None, None))


def test_missing_augmentation_labels_are_zeros():
    layer, time = embedding(augment_dim=3), torch.rand(3)
    assert torch.equal(layer(time, none(3), None, None), layer(time, none(3), None, torch.zeros(3, 3)))
    assert not torch.allclose(layer(time, none(3), None, None), layer(time, none(3), None, torch.ones(3, 3)))


def test_a_wrong_number_of_times_and_labels_without_a_layer_are_refused():
    with raises(ValueError, word="num_times=2"):
        embedding(num_times=2)(torch.rand(3), none(3), None, None)
    with raises(ValueError, "augment_dim=0"):
        embedding()(torch.rand(3), none(3), None, torch.zeros(3, 9))
