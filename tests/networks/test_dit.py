"""Diffusion transformers."""

import math
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.nn import functional as F

from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.dit import ARCHITECTURES, DiT
from genimg.training.activation_checkpointing import recompute_blocks

BASE = {"channels": 3, "image_size": 32, "patch_size": 2, "dropout": 0.0, "num_times": 1, "augment_dim": 0}
LATENTS = BASE | {"channels": 4, "architecture": "dit"}  # of 256 px images
TINY = BASE | {"image_size": 8, "width": 16, "depth": 2, "num_heads": 2}


def encoder(num_classes: int) -> Any:
    return OneHot(num_classes=num_classes) if num_classes else Unconditional()


def tiny(architecture: str, num_classes: int = 0, *, initial: bool = False, **changes: Any) -> DiT:
    """A tiny network; all weights are random unless they are to be the ``initial`` ones."""
    torch.manual_seed(0)
    network = DiT(architecture=architecture, condition=encoder(num_classes), **(TINY | changes))
    for parameter in () if initial else network.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return network


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(count: int, num_classes: int = 0, channels: int = 3, height: int = 8, width: int = 8) -> tuple[Tensor, ...]:
    condition = torch.arange(count) % num_classes if num_classes else torch.zeros(count, 0)
    return random(count, channels, height, width), torch.linspace(0.1, 0.9, count), condition


def num_parameters(**settings: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DiT(**settings).parameters())


@pytest.mark.parametrize(
    ("channels", "width", "depth", "expected"), [(1, 64, 6, 610_788), (3, 256, 10, 13_308_044)], ids=["MNIST", "CIFAR-10"]
)
def test_llamas_layers_have_as_many_parameters_as_minrf(channels, width, depth, expected):
    """Its table of labels has an entry for no label."""
    changes = {"channels": channels, "width": width, "depth": depth, "num_heads": 4, "architecture": "llama"}
    assert num_parameters(condition=OneHot(num_classes=11), **(BASE | changes)) == expected


@pytest.mark.parametrize(
    ("width", "depth", "num_heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_published_sizes_have_as_many_parameters_as_the_papers_table(width, depth, num_heads, millions):
    count = num_parameters(condition=OneHot(num_classes=1001), width=width, depth=depth, num_heads=num_heads, **LATENTS)
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_size_works_and_every_weight_learns(architecture):
    network = tiny(
        architecture,
        3,
        channels=1,
        source_channels=2,
        image_size=[8, 12],
        num_times=2,
        augment_dim=4,
        patch_size=4,
        dropout=0.1,
    )
    assert network.size_divisor == 4
    noisy, _, labels = inputs(3, 3, 3, 8, 12)
    result = network(noisy.to(memory_format=torch.channels_last), random(3, 2), labels, None, random(3, 4))
    assert (result.shape, result.dtype) == ((3, 1, 8, 12), torch.float32)
    (result * random(3, 1, 8, 12)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6] == []
    assert network(*inputs(1, 3, 3, 16, 4)[:1], random(1, 2), labels[:1]).shape == (1, 1, 16, 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_starts_at_zero_with_blocks_that_change_nothing(architecture):
    network = tiny(architecture, 3, initial=True)
    assert not network(*inputs(4, 3)).any()
    tokens = random(2, 16, 16)
    rotation = torch.ones(2, 16, 8) if architecture == "llama" else None
    assert torch.equal(network.blocks[0](tokens, network.modulation(random(2, 1, 16))[..., :96], rotation), tokens)


# The arithmetic, written a second time


def normalised(features: Tensor, layer: nn.LayerNorm) -> Tensor:
    mean, variance = features.mean(-1, keepdim=True), features.var(-1, correction=0, keepdim=True)
    result = (features - mean) / torch.sqrt(variance + layer.eps)
    return result if layer.weight is None else result * layer.weight + layer.bias


def turned(features: Tensor, columns: int) -> Tensor:
    """Rotary positions of features [T, D], one pair of features at a time as a complex number."""
    result, half = features.clone(), features.shape[1] // 2
    for place in range(len(features)):
        row, column = divmod(place, columns)
        for pair in range(half):
            position, number = (row, pair) if pair < half // 2 else (column, pair - half // 2)
            angle = position * 10_000 ** (-number / (half // 2))
            value = complex(features[place, pair], features[place, pair + half]) * complex(math.cos(angle), math.sin(angle))
            result[place, pair], result[place, pair + half] = value.real, value.imag
    return result


def reference(network: Any, image: Tensor, time: Tensor, patch: int, heads: int) -> Tensor:
    """The network for one image [C, H, W]."""
    is_llama, size = network.is_llama, image.shape[1:]
    rows, columns = size[0] // patch, size[1] // patch
    angles = time * 10_000.0 ** (-torch.arange(128) / 127)
    embedded = network.embedding.first(torch.cat([angles.sin(), angles.cos()]))
    embedded = F.silu(network.embedding.second(F.silu(embedded)))
    parts = network.modulation(embedded).view(-1, network.width)  # [6 * depth + 2, W]
    features = network.stem(image[None])[0]
    patches = features.unfold(1, patch, patch).unfold(2, patch, patch).permute(1, 2, 0, 3, 4).reshape(rows * columns, -1)
    tokens = patches @ network.patches.weight.flatten(1).T + network.patches.bias
    if not is_llama:
        quarter = 10_000.0 ** (-torch.arange(network.width // 4) / (network.width // 4 - 1))
        places = torch.tensor([divmod(place, columns) for place in range(rows * columns)]).float()
        angles = [places[:, axis, None] * quarter for axis in (0, 1)]
        tokens = tokens + torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    for number, block in enumerate(network.blocks):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts[6 * number : 6 * number + 6]
        layer = block.attention
        query, key, value = layer.qkv(normalised(tokens, block.first_norm) * (1 + scale) + shift).chunk(3, dim=1)
        if is_llama:
            query, key = normalised(query, layer.query_norm), normalised(key, layer.key_norm)
        mixed = []
        for q, k, v in zip(*(part.chunk(heads, dim=1) for part in (query, key, value)), strict=True):
            if is_llama:
                q, k = turned(q, columns), turned(k, columns)
            mixed.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1) @ v)
        tokens = tokens + gate * layer.output(torch.cat(mixed, dim=1))
        hidden = normalised(tokens, block.second_norm) * (1 + mlp_scale) + mlp_shift
        if is_llama:
            first, second = block.mlp.inputs(hidden).chunk(2, dim=1)
            hidden = block.mlp.output(first * torch.sigmoid(first) * second)
        else:
            hidden = block.mlp[2](F.gelu(block.mlp[0](hidden), approximate="tanh"))
        tokens = tokens + mlp_gate * hidden
    shift, scale = parts[-2:]
    pixels = network.output(normalised(tokens, network.norm) * (1 + scale) + shift)  # [T, C * P * P]
    return pixels.view(rows, columns, 3, patch, patch).permute(2, 0, 3, 1, 4).reshape(3, *size)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_network_is_the_arithmetic_of_its_paper(architecture):
    network = tiny(architecture)
    noisy, time, none = inputs(2, height=6, width=10)
    with torch.no_grad():
        expected = torch.stack([reference(network, n, t, 2, 2) for n, t in zip(noisy, time, strict=True)])
        assert expected.std() > 0.1
        assert torch.allclose(network(noisy, time, none), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_positions_matter(architecture):
    network = tiny(architecture)
    noisy, time, none = inputs(1)
    if architecture == "llama":
        network.stem = nn.Conv2d(3, 8, 1)  # without the neighbours that 5x5 convolutions see
    mirrored = network(noisy.flip(2, 3), time, none)
    swapped = network(noisy, time, none).unfold(2, 2, 2).unfold(3, 2, 2).flip(2, 3)  # [N, C, rows, columns, P, P]
    assert not torch.allclose(mirrored.unfold(2, 2, 2).unfold(3, 2, 2), swapped, atol=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_condition_that_is_not_kept_is_the_zero_vector(architecture):
    network = tiny(architecture, 3)
    noisy, time, labels = inputs(3, 3)
    kept = network(noisy, time, labels)
    assert torch.equal(network(noisy, time, labels, torch.ones(3, dtype=torch.bool)), kept)
    mixed = network(noisy, time, labels, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.allclose(mixed[[0, 2]], kept[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed[1], kept[1], atol=1e-3)
    network.condition.forward = lambda condition: torch.zeros(len(condition), 3)
    assert torch.allclose(network(noisy, time, labels)[1], mixed[1], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_time_label_and_augmentation_change_the_output_and_the_batch_does_not(architecture):
    network = tiny(architecture, 3, num_times=2, augment_dim=2)
    noisy, _, labels = inputs(4, 3)
    time = torch.rand(4, 2)
    plain = network(noisy, time, labels)
    for other in (
        network(noisy, time + torch.tensor([0.1, 0.0]), labels),
        network(noisy, time + torch.tensor([0.0, 0.1]), labels),
        network(noisy, time, (labels + 1) % 3),
        network(noisy, time, labels, None, torch.ones(4, 2)),
    ):
        assert (other - plain).abs().amax((1, 2, 3)).min() > 1e-3
    for row in range(4):
        alone = network(noisy[row : row + 1], time[row : row + 1], labels[row : row + 1])
        assert torch.allclose(alone[0], plain[row], rtol=1e-5, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_near_float32_and_the_result_is_float32(architecture):
    network = tiny(architecture, 3)
    expected = network(*inputs(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        result = network(*inputs(4, 3))
    assert result.dtype == torch.float32
    assert (result - expected).std() < 0.03 * expected.std()  # bfloat16 rounds to 0.4 %


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_activations_give_the_same_gradients(architecture):
    plain, recomputing = tiny(architecture, dropout=0.5), tiny(architecture, dropout=0.5)
    assert recompute_blocks(recomputing) == 2
    for network in (plain, recomputing):
        torch.manual_seed(1)
        network(*inputs(2)).square().sum().backward()
    for one, other in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_forward_on_the_meta_device_gives_the_shape(architecture):
    with torch.device("meta"):
        network = DiT(architecture=architecture, condition=Unconditional(), **TINY)
        assert network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, 0)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"channels": 0}, "channels=0"),
        ({"depth": 0}, "depth=0"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"width": 20}, "width=20"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"patch_size": 3}, "image_size"),
        ({"image_size": [8, 7]}, "image_size"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"num_times": 0}, "num_times=0"),
        ({"augment_dim": -1}, "augment_dim=-1"),
        ({"source_channels": -1}, "source_channels=-1"),
        ({"architecture": "vit"}, "architecture=vit"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, setting):
    with raises(ValueError, setting):
        DiT(condition=Unconditional(), **({"architecture": "dit"} | TINY | changes))
