import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from genimg.networks.conditioning import Conditioned
from genimg.networks.layers import (
    ConditionalBatchNorm2d,
    SelfAttention,
    halvings,
    initialise,
    normalisation_layer,
    pooled,
    spectral_normalise,
)


@pytest.mark.parametrize(
    ("size", "count", "base"),
    [
        (64, 4, (4, 4)),
        (32, 3, (4, 4)),
        (16, 2, (4, 4)),
        (28, 2, (7, 7)),
        ([48, 32], 3, (6, 4)),
        ([16, 128], 2, (4, 32)),
        (256, 6, (4, 4)),
        (20, 2, (5, 5)),
    ],
)
def test_halvings_worked_out_by_hand(size, count, base):
    assert halvings(size) == (count, base)


def test_halvings_stop_at_the_smallest_size_wanted():
    assert halvings(32, bottom_size=7) == (2, (8, 8))
    assert halvings(28, bottom_size=7) == (2, (7, 7))
    assert halvings(64, bottom_size=2) == (5, (2, 2))
    assert halvings(48, bottom_size=3) == (4, (3, 3))
    assert halvings(14, bottom_size=7, least=1) == (1, (7, 7))


ALL_SIZES = [(height, width) for height in range(1, 100) for width in range(1, 100, 3)]


def fits(height: int, width: int) -> bool:
    """Two halvings leave whole sides of 4 or more."""
    return height % 4 == 0 and width % 4 == 0 and min(height, width) >= 16


def test_every_size_that_fits_is_halved_exactly():
    for height, width in filter(lambda size: fits(*size), ALL_SIZES):
        count, base = halvings([height, width])
        assert (base[0] * 2**count, base[1] * 2**count) == (height, width)
        assert count >= 2
        assert min(base) >= 4
        assert min(base) < 8 or base[0] % 2 or base[1] % 2  # it could not be halved once more


def test_every_size_that_does_not_fit_is_refused_with_one_that_does():
    for height, width in filter(lambda size: not fits(*size), ALL_SIZES):
        with raises(ValueError, f"image_size=[{height},{width}]") as caught:
            halvings([height, width])
        suggestion = re.search(r"the nearest is \[(\d+),(\d+)\]$", str(caught.value))
        assert suggestion
        assert fits(*map(int, suggestion.groups()))


def test_refusal_names_the_rule():
    with raises(ValueError, "image_size", word="multiples"):
        halvings(30)


# Conditional batch norm, and layers in a row.


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batch_norm_is_a_batch_norm_with_a_scale_and_a_shift_for_every_class(training):
    torch.manual_seed(0)
    layer = ConditionalBatchNorm2d(4, 3).train(training)
    nn.init.normal_(layer.scale.weight)
    nn.init.normal_(layer.shift.weight)
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2.0)
    features, label = torch.randn(6, 4, 5, 3) * 3 + 1, torch.tensor([0, 2, 1, 1, 0, 2])
    mean, variance = layer.norm.running_mean.clone(), layer.norm.running_var.clone()
    if training:
        mean, variance = features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), unbiased=False)
    expected = torch.empty_like(features)
    for sample, k in enumerate(label.tolist()):
        for channel in range(4):
            normal = (features[sample, channel] - mean[channel]) / (variance[channel] + 1e-5).sqrt()
            expected[sample, channel] = normal * (1 + layer.scale.weight[channel, k]) + layer.shift.weight[channel, k]
    assert torch.allclose(layer(features, F.one_hot(label, 3).float()), expected, rtol=1e-4, atol=1e-5)


def test_conditional_batch_norm_starts_without_the_condition():
    features, condition = torch.randn(6, 4, 5, 3), torch.randn(6, 7)
    expected = F.batch_norm(features, None, None, training=True)
    assert torch.allclose(ConditionalBatchNorm2d(4, 7)(features, condition), expected, rtol=1e-5, atol=1e-6)


def test_only_layers_that_take_the_condition_get_it():
    class Shift(nn.Module):
        takes_condition = True

        def forward(self, features, condition):
            return features + condition

    row = Conditioned([nn.Linear(3, 3), Shift(), Conditioned([Shift(), nn.ReLU()])])
    features, condition = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(row(features, condition), torch.relu(row[0](features) + condition + condition))


# Kinds of normalisation.


def reference_normalisation(kind, features):
    """PyTorch's functions, and for ``instance`` the definition."""
    if kind == "batch":
        return F.batch_norm(features, None, None, training=True)
    if kind == "layer":
        return F.layer_norm(features, features.shape[1:])
    if kind == "instance":
        mean, variance = features.mean(dim=(2, 3), keepdim=True), features.var(dim=(2, 3), unbiased=False, keepdim=True)
        return (features - mean) / (variance + 1e-5).sqrt()
    return features


@pytest.mark.parametrize("kind", ["none", "batch", "instance", "layer"])
def test_normalisations_with_a_scale_and_a_shift_for_every_channel(kind):
    torch.manual_seed(0)
    layer, features = normalisation_layer(kind, 4), torch.randn(3, 4, 5, 6) * 2 + 3
    scale, shift = torch.ones(4), torch.zeros(4)
    if kind != "none":
        scale, shift = nn.init.normal_(layer.weight).detach(), nn.init.normal_(layer.bias).detach()
    expected = reference_normalisation(kind, features) * scale[:, None, None] + shift[:, None, None]
    assert torch.allclose(layer(features), expected, rtol=1e-4, atol=1e-5)


def test_conditional_normalisation_and_refusals():
    layer = normalisation_layer("conditional_batch", 4, 3)
    assert isinstance(layer, ConditionalBatchNorm2d)
    assert (layer.scale.in_features, layer.scale.out_features) == (3, 4)
    with raises(ValueError, "normalisation=conditional_batch"):
        normalisation_layer("conditional_batch", 4)
    with raises(ValueError, "normalisation=group"):
        normalisation_layer("group", 4)


# Spectral norm.

SPECTRAL = {
    "convolution": lambda: nn.Conv2d(5, 7, 3),
    "transposed": lambda: nn.ConvTranspose2d(5, 7, 4, stride=2),
    "linear": lambda: nn.Linear(6, 9),
    "embedding": lambda: nn.Embedding(8, 5),
}


def spectral(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = SPECTRAL[kind]()
    spectral_normalise(layer)
    return layer


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original


def matrix(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """One row for every output channel."""
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1).detach()


def vectors(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    norm = layer.parametrizations.weight[0]
    return norm.left.clone(), norm.right.clone()


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_divides_by_the_largest_singular_value(kind):
    layer = spectral(kind)
    for _ in range(1000):
        weight = layer.weight
    sigma = torch.linalg.svdvals(matrix(layer, original(layer)))[0]
    assert torch.allclose(weight, original(layer) / sigma, rtol=1e-4, atol=0)
    assert torch.linalg.svdvals(matrix(layer, weight))[0].item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_a_training_forward_does_one_iteration_of_algorithm_1(kind):
    layer = spectral(kind)
    left, _ = vectors(layer)
    weights = matrix(layer, original(layer))
    weight = layer.weight
    right = F.normalize(weights.t() @ left, dim=0)
    left = F.normalize(weights @ right, dim=0)
    assert torch.allclose(torch.cat(vectors(layer)), torch.cat([left, right]), rtol=1e-5, atol=1e-6)
    assert torch.allclose(weight, original(layer) / (left @ weights @ right), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_in_evaluation_mode_spectral_norm_changes_nothing(kind):
    layer = spectral(kind).eval()
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer.weight, layer.weight)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_is_that_of_pytorchs_spectral_norm(kind):
    layer = spectral(kind).eval()
    reference = SPECTRAL[kind]()
    reference.load_state_dict({"weight": original(layer), **({"bias": layer.bias} if hasattr(layer, "bias") else {})})
    parametrizations.spectral_norm(reference, dim=1 if kind == "transposed" else 0).eval()
    left, right = vectors(layer)
    norm = reference.parametrizations.weight[0]
    norm._u.copy_(left)
    norm._v.copy_(right)
    assert torch.allclose(layer.weight, reference.weight, rtol=1e-5, atol=1e-7)
    direction = torch.randn_like(layer.weight)
    for network in (layer, reference):
        (network.weight * direction).sum().backward()
    assert torch.allclose(original(layer).grad, original(reference).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_iterates_in_float32_under_autocast(kind):
    layer = spectral(kind)
    twin = copy.deepcopy(layer)
    weight = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = twin.weight
    assert under_autocast.dtype == torch.float32
    assert torch.equal(weight, under_autocast)
    assert torch.equal(torch.cat(vectors(layer)), torch.cat(vectors(twin)))


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_survives_a_copy_and_a_checkpoint(kind):
    layer = spectral(kind)
    nn.init.normal_(original(layer))  # so that the vectors no longer fit
    twin, loaded = copy.deepcopy(layer), spectral(kind)
    loaded.load_state_dict(layer.state_dict())
    weight = layer.weight
    for other in (twin, loaded):
        assert not torch.equal(torch.cat(vectors(other)), torch.cat(vectors(layer)))  # buffers of its own
        assert torch.equal(other.weight, weight)
        assert torch.equal(torch.cat(vectors(other)), torch.cat(vectors(layer)))


def test_two_training_forwards_can_share_a_backward():
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    spectral_normalise(layer)
    (layer(torch.randn(2, 3, 8, 8)).sum() - layer(torch.randn(2, 3, 8, 8)).sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_spectral_norm_is_put_on_every_layer_with_a_matrix_and_on_no_other():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.Linear(4, 4)))
    spectral_normalise(network)
    parametrised = [name for name, layer in network.named_modules() if parametrize.is_parametrized(layer)]
    assert parametrised == ["0", "2.0", "2.1"]


# Initial weights.


def test_normal_initialisation_follows_radford_et_al():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 4), nn.BatchNorm2d(20_000), nn.ConvTranspose2d(64, 64, 4, bias=False))
    nn.init.constant_(network[1].bias, 5.0)
    initialise(network, "normal")
    for layer, mean in ((network[0], 0.0), (network[1], 1.0), (network[2], 0.0)):
        # Five standard errors of a sample of n: 0.02/sqrt(n) for the mean, 0.02/sqrt(2n) for the deviation.
        n = layer.weight.numel()
        assert layer.weight.mean().item() == pytest.approx(mean, abs=5 * 0.02 / n**0.5)
        assert layer.weight.std().item() == pytest.approx(0.02, abs=5 * 0.02 / (2 * n) ** 0.5)
    assert (network[0].bias == 0).all()
    assert (network[1].bias == 0).all()


def test_orthogonal_initialisation_has_orthonormal_rows():
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(9, 5), nn.Embedding(4, 8))
    initialise(network, "orthogonal")
    for layer in network:
        rows = layer.weight.detach().flatten(1)
        assert torch.allclose(rows @ rows.t(), torch.eye(len(rows)), rtol=0, atol=1e-5)
    assert (network[0].bias == 0).all()
    assert (network[1].bias == 0).all()


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_xavier_initialisation_is_uniform_within_glorots_bound_times_the_layers_gain(gain):
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3)
    layer.init_gain = gain
    initialise(layer, "xavier")
    bound = gain * math.sqrt(6 / (32 * 9 + 64 * 9))
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert layer.weight.abs().max().item() <= bound
    # Five standard errors of the deviation of a uniform distribution, which is the bound over sqrt(3).
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / layer.weight.numel() ** 0.5)
    assert (layer.bias == 0).all()


def test_default_initialisation_is_pytorchs():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    before = copy.deepcopy(network.state_dict())
    initialise(network, "default")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("kind", "stays"), [("normal", True), ("xavier", True), ("orthogonal", False)])
def test_what_starts_at_0_on_purpose_stays_unless_orthogonal(kind, stays):
    layer = ConditionalBatchNorm2d(4, 3)
    initialise(layer, kind)
    assert (layer.scale.weight == 0).all().item() == stays


def test_unknown_initialisation_is_refused():
    with raises(ValueError, "initialisation=kaiming"):
        initialise(nn.Linear(2, 2), "kaiming")


# Self-attention.


def reference_attention(layer: SelfAttention, features: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2019, one position after another."""
    query, key, value, output = (
        getattr(layer, name).weight.detach()[:, :, 0, 0] for name in ("query", "key", "value", "output")
    )
    _, _, height, width = features.shape
    result = features.clone()
    for sample, image in enumerate(features):
        pooled = {"key": [], "value": []}
        for i in range(0, height - 1, 2):
            for j in range(0, width - 1, 2):
                block = image[:, i : i + 2, j : j + 2].flatten(1)
                pooled["key"].append((key @ block).amax(dim=1))
                pooled["value"].append((value @ block).amax(dim=1))
        for i in range(height):
            for j in range(width):
                scores = torch.stack([query @ image[:, i, j] @ one for one in pooled["key"]])
                shares = scores.exp() / scores.exp().sum()
                mixed = sum(share * one for share, one in zip(shares, pooled["value"], strict=True))
                result[sample, :, i, j] += layer.gamma.item() * (output @ mixed)
    return result


@pytest.mark.parametrize("size", [(4, 6), (7, 7)])
def test_self_attention_against_a_loop_over_positions(size):
    torch.manual_seed(0)
    layer, features = SelfAttention(16), torch.randn(2, 16, *size)
    assert torch.equal(layer(features), features)  # it starts without effect
    nn.init.constant_(layer.gamma, 0.7)
    assert torch.allclose(layer(features), reference_attention(layer, features), rtol=1e-4, atol=1e-5)


def test_attention_needs_channels_it_can_divide():
    with raises(ValueError, "channels=12"):
        SelfAttention(12)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_pooling_of_bfloat16_features_is_in_float32(pooling):
    features = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = pooled(features, pooling)
    assert result.dtype == torch.float32
    expected = getattr(features.double(), pooling)(dim=(2, 3))
    assert torch.allclose(result.double(), expected, rtol=1e-6)
    assert pooled(features.double(), pooling).dtype == torch.float64


def test_flattened_features_stay_as_they_are():
    features = torch.rand(2, 3, 2, 2).bfloat16()
    assert torch.equal(pooled(features, "flatten"), features.reshape(2, 12))
