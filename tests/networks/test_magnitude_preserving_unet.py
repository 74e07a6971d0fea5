"""EDM2's U-Net: the parameter counts of its authors' code, and the magnitudes that its layers preserve."""

import math

import pytest
import torch
from torch import Tensor, nn

from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.magnitude_preserving_unet import (
    FourierFeatures,
    MagnitudePreservingUNet,
    NormalisedLayer,
    Uncertainty,
    joined,
    mixed,
    normalised,
    silu,
)

IMAGENET = {
    "channels": 3, "image_size": 64, "width": 128, "multipliers": [1, 2, 3, 4], "num_blocks": 3, "attention_sizes": [16, 8],
    "channels_per_head": 64, "dropout": 0.0,
}  # fmt: skip
NAMED = {  # settings and number of parameters, with the network of the uncertainty
    "EDM2-XS, ImageNet 64": ({}, 124_710_949),
    "EDM2-S, ImageNet 64": ({"width": 192}, 280_209_381),
    "EDM2-XS, latents of ImageNet 512": ({"channels": 4}, 124_713_253),
}
TINY = IMAGENET | {
    "image_size": 16, "width": 32, "multipliers": [1, 2], "num_blocks": 1, "attention_sizes": [8], "channels_per_head": 16
}  # fmt: skip


def tiny(num_classes: int = 0, **changes) -> MagnitudePreservingUNet:
    torch.manual_seed(0)
    condition = OneHot(num_classes=num_classes) if num_classes else Unconditional()
    return MagnitudePreservingUNet(condition=condition, **(TINY | changes))


def magnitude(x: Tensor) -> float:
    return x.detach().float().square().mean().sqrt().item()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", NAMED)
def test_named_networks_have_as_many_parameters_as_their_authors_code(name):
    changes, expected = NAMED[name]
    with torch.device("meta"):
        network = MagnitudePreservingUNet(condition=OneHot(num_classes=1000), **(IMAGENET | changes))
        parts = [network, Uncertainty(dim=128)]
    assert sum(parameter.numel() for part in parts for parameter in part.parameters()) == expected


def test_the_operations_preserve_magnitude():
    left, right = random(8, 64, 16, 16), random(8, 32, 16, 16)
    assert magnitude(silu(left)) == pytest.approx(1.0, abs=0.01)
    assert magnitude(mixed(left[:, :32], right, 0.3)) == pytest.approx(1.0, abs=0.02)
    both = joined(left, right)
    assert magnitude(both) == pytest.approx(1.0, abs=0.01)
    assert (both[:, :64].square().sum() / both[:, 64:].square().sum()).item() == pytest.approx(1.0, abs=0.02)
    assert magnitude(normalised(7.0 * left, 1)) == pytest.approx(1.0, abs=1e-3)
    assert magnitude(FourierFeatures(256)(torch.linspace(-3, 3, 200))) == pytest.approx(1.0, abs=0.05)
    for layer, given in ((NormalisedLayer(64, 48, 3), left), (NormalisedLayer(64, 48), random(512, 64))):
        assert magnitude(layer(given)) == pytest.approx(1.0, abs=0.1)


@torch.no_grad()
def test_a_layer_depends_on_the_direction_of_its_weights_alone():
    layer, given = NormalisedLayer(8, 5, 3), random(2, 8, 6, 6)
    rows = layer.weight.flatten(1)
    expected = nn.functional.conv2d(given, layer.weight / rows.norm(dim=1).view(-1, 1, 1, 1), padding=1)
    before = layer(given)
    assert torch.allclose(before, expected, atol=1e-3)
    layer.weight.mul_(3.0)
    assert torch.allclose(layer(given), before, atol=1e-3)
    layer.normalise()
    assert torch.allclose(layer.weight.flatten(1).square().mean(dim=1).sqrt(), torch.ones(5), atol=1e-3)
    assert torch.allclose(layer(given, torch.tensor(0.5)), before * 0.5, atol=1e-3)


def test_the_output_starts_at_zero_and_features_have_unit_magnitude():
    network, seen = tiny(), []
    for block in [*network.encoder, *network.decoder]:
        block.register_forward_hook(lambda _, given, result: seen.append(magnitude(result)))
    noisy, time, labels = random(4, 3, 16, 16), torch.linspace(-1, 1, 4), torch.zeros(4, 0)
    assert network(noisy, time, labels).abs().max() == 0
    assert all(0.5 < each < 1.5 for each in seen)


@pytest.mark.parametrize("source_channels", [0, 2])
def test_every_weight_learns_and_the_condition_can_be_dropped(source_channels):
    network = tiny(3, source_channels=source_channels, dropout=0.1)
    for name, parameter in network.named_parameters():
        if name.endswith("gain"):
            nn.init.constant_(parameter, 0.7)
    noisy, time, labels = random(3, 3 + source_channels, 16, 24), torch.linspace(-1, 1, 3), torch.arange(3)
    result = network(noisy.to(memory_format=torch.channels_last), time, labels)
    assert (result.shape, result.dtype) == ((3, 3, 16, 24), torch.float32)
    (result * random(3, 3, 16, 24)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    network.eval()
    without = [network(noisy, time, each, torch.zeros(3)) for each in (labels, labels.flip(0))]
    assert without[0].equal(without[1])
    assert not torch.allclose(network(noisy, time, labels), without[0], atol=1e-3)


def test_the_uncertainty_is_a_number_per_time():
    torch.manual_seed(0)
    network = Uncertainty(dim=64)
    assert network(torch.linspace(-2, 1, 5)).shape == (5,)
    assert magnitude(network.output.weight) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("changes", "name"), [
    ({"width": 0}, "width"), ({"dropout": 1.0}, "dropout"), ({"multipliers": []}, "multipliers"),
    ({"attention_sizes": [3]}, "attention_sizes"), ({"channels_per_head": 24}, "channels_per_head"),
    ({"image_size": 15}, "image_size"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(changes, name):
    with pytest.raises(ValueError, match=f"^{name}="):
        tiny(**changes)


def test_the_shares_of_equation_88():
    left, right = torch.tensor([2.0]), torch.tensor([5.0])
    assert mixed(left, right, 0.3).item() == pytest.approx((0.7 * 2 + 0.3 * 5) / math.sqrt(0.7**2 + 0.3**2))
