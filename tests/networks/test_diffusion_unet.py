"""U-Nets of diffusion models: parameter counts of published networks, and the arithmetic of their blocks."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genimg.networks.conditioning import LabelEmbedding, OneHot, Unconditional
from genimg.networks.diffusion_unet import ARCHITECTURES, RESAMPLINGS, DiffusionUNet
from genimg.training.activation_checkpointing import recompute_blocks

DDPMPP = {
    "channels": 3, "image_size": 32, "width": 128, "multipliers": [2, 2, 2], "num_blocks": 4, "attention_sizes": [16],
    "architecture": "ddpmpp", "resampling": "box", "channels_per_head": None, "dropout": 0.0, "patch_size": 1,
    "num_times": 1, "augment_dim": 0,
}  # fmt: skip
DDPM = DDPMPP | {"multipliers": [1, 2, 2, 2], "num_blocks": 2, "architecture": "ddpm", "resampling": "convolution"}
FLOW_MNIST = DDPM | {
    "channels": 1, "image_size": 28, "width": 32, "multipliers": [1, 2, 2], "num_blocks": 1, "attention_sizes": [28],
}  # fmt: skip
ADM_64 = DDPMPP | {
    "image_size": 64, "width": 192, "multipliers": [1, 2, 3, 4], "num_blocks": 3, "attention_sizes": [32, 16, 8],
    "architecture": "adm", "channels_per_head": 64,
}  # fmt: skip
MEANFLOW = DDPMPP | {"num_times": 2, "resampling": "binomial"}
NCSNPP = DDPMPP | {"architecture": "ncsnpp", "resampling": "binomial", "augment_dim": 9}
SMALL = DDPMPP | {"multipliers": [1, 2, 2], "num_blocks": 2}
SMALL_28 = SMALL | {"channels": 1, "image_size": 28, "num_blocks": 1, "attention_sizes": []}

NAMED = {  # settings, number of classes, number of parameters, and 10^9 floating-point operations of a forward
    "DDPM, CIFAR-10": (DDPM, 0, 35_746_307, 12.44),
    "torchcfm, CIFAR-10": (DDPM | {"channels_per_head": 64}, 0, 35_746_307, 12.44),
    "torchcfm, MNIST": (FLOW_MNIST, 0, 1_075_361, 0.63),
    "torchcfm, MNIST, labels": (FLOW_MNIST, 10, 1_076_641, None),
    "EDM, CIFAR-10": (DDPMPP | {"augment_dim": 9}, 0, 55_733_891, None),
    "EDM, CIFAR-10, no augmentation": (DDPMPP, 0, 55_732_739, 42.38),
    "EDM, CIFAR-10, labels": (DDPMPP | {"augment_dim": 9}, 10, 55_735_299, None),
    "EDM, NCSN++, CIFAR-10": (NCSNPP, 0, 56_397_827, None),
    "EDM, NCSN++, CIFAR-10, labels": (NCSNPP, 10, 56_400_643, None),
    "EDM, FFHQ 64": (DDPMPP | {"image_size": 64, "multipliers": [1, 2, 2, 2], "augment_dim": 9}, 0, 61_805_571, 83.7),
    "ADM, ImageNet 64": (ADM_64, 1000, 295_899_267, None),
    "ADM, ImageNet 64, a class for no label": (ADM_64, 1001, 295_900_035, None),
    "flow matching, CIFAR-10": (DDPMPP | {"architecture": "adm", "resampling": "pooling"}, 0, 55_676_419, None),
    "MeanFlow, CIFAR-10": (MEANFLOW | {"augment_dim": 6}, 0, 55_932_419, None),
    "MeanFlow, CIFAR-10, no augmentation": (MEANFLOW, 0, 55_929_347, None),
    "width 64": (SMALL | {"width": 64}, 0, 6_989_891, 3.50),
    "width 32": (SMALL | {"width": 32}, 0, 1_754_147, 0.90),
    "width 32, 28 px": (SMALL_28 | {"width": 32}, 0, 1_225_857, 0.46),
    "width 16, 28 px": (SMALL_28 | {"width": 16}, 0, 308_545, 0.116),
}  # fmt: skip

TINY = DDPMPP | {"image_size": 16, "width": 8, "multipliers": [1, 2], "num_blocks": 1, "attention_sizes": [8]}


def encoder(num_classes: int) -> Any:
    return OneHot(num_classes=num_classes) if num_classes else Unconditional()


def tiny(num_classes: int = 0, *, initial: bool = False, **changes: Any) -> DiffusionUNet:
    """A tiny network; all weights are random unless they are to be the ``initial`` ones."""
    torch.manual_seed(0)
    network = DiffusionUNet(**({"condition": encoder(num_classes)} | TINY | changes))
    for parameter in () if initial else network.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return network


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(count: int, num_classes: int = 0, channels: int = 3, height: int = 16, width: int = 16) -> tuple[Tensor, ...]:
    condition = torch.arange(count) % num_classes if num_classes else torch.zeros(count, 0)
    return random(count, channels, height, width), torch.linspace(0.1, 0.9, count), condition


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMED)
def test_named_networks_have_as_many_parameters_as_their_authors_code(name):
    settings, num_classes, expected, billions = NAMED[name]
    with torch.device("meta"):
        network = DiffusionUNet(condition=encoder(num_classes), **settings)
        assert num_parameters(network) == expected
        if billions is not None:
            size = settings["image_size"]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(torch.zeros(1, settings["channels"], size, size), torch.zeros(1), torch.zeros(1, 0))
            assert counter.get_total_flops() / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_size_works_and_every_weight_learns(architecture, resampling):
    network = tiny(
        3, channels=1, source_channels=2, image_size=[16, 32], attention_sizes=[32], architecture=architecture,
        resampling=resampling, channels_per_head=4, num_times=2, augment_dim=4, patch_size=1, dropout=0.1,
    )  # fmt: skip
    assert network.size_divisor == 2
    noisy, _, labels = inputs(3, 3, 3, 16, 32)
    result = network(noisy.to(memory_format=torch.channels_last), random(3, 2), labels, None, random(3, 4))
    assert (result.shape, result.dtype) == ((3, 1, 16, 32), torch.float32)
    (result * random(3, 1, 16, 32)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6] == []
    assert network(*inputs(1, 3, 3, 20, 10)[:1], random(1, 2), labels[:1]).shape == (1, 1, 20, 10)


def test_patches_are_channels_of_a_smaller_image():
    network, plain = tiny(patch_size=2), tiny(channels=12, image_size=8)
    assert (network.size_divisor, plain.size_divisor) == (4, 2)
    plain.load_state_dict(network.state_dict())
    noisy, time, none = inputs(2)
    patches = noisy.view(2, 3, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 8)
    expected = plain(patches, time, none).view(2, 3, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 16)
    assert torch.equal(network(noisy, time, none), expected)


# The arithmetic, written a second time


def norm(layer: nn.GroupNorm, features: Tensor, eps: float) -> Tensor:
    size = features.shape[1] // min(32, features.shape[1] // 4)
    groups = []
    for group in features.split(size, dim=1):
        mean, variance = group.mean((1, 2, 3), keepdim=True), group.var((1, 2, 3), correction=0, keepdim=True)
        groups.append((group - mean) / torch.sqrt(variance + eps))
    return torch.cat(groups, dim=1) * layer.weight[:, None, None] + layer.bias[:, None, None]


def swish(values: Tensor) -> Tensor:
    return values * torch.sigmoid(values)


def halved(features: Tensor) -> Tensor:
    return (features[..., ::2, ::2] + features[..., 1::2, ::2] + features[..., ::2, 1::2] + features[..., 1::2, 1::2]) / 4


def doubled(features: Tensor) -> Tensor:
    return features.repeat_interleave(2, 2).repeat_interleave(2, 3)


def convolved(layer: nn.Conv2d, features: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(features, layer.weight, layer.bias, stride, layer.weight.shape[-1] // 2)


def attended(layer: Any, features: Tensor, heads: int, eps: float) -> Tensor:
    count, channels, height, width = features.shape
    qkv = convolved(layer.qkv, norm(layer.norm, features, eps))
    results = []
    for sample in qkv:
        query, key, value = sample.view(3, heads, channels // heads, height * width)
        weights = torch.softmax(torch.einsum("hdq,hdk->hqk", query, key) / math.sqrt(channels // heads), dim=2)
        results.append(torch.einsum("hqk,hdk->hdq", weights, value).reshape(channels, height, width))
    assert len(results) == count
    return convolved(layer.output, torch.stack(results))


def reference(
    network: Any, noisy: Tensor, time: Tensor, *, kind: str, between: bool, attentions: str, heads: dict[int, int]
) -> Tensor:
    """Two levels of one block. ``attentions`` has a letter for each residual block: ``a`` with attention, ``-`` without."""
    eps, factor = {"ddpm": (1e-6, 1.0), "ddpmpp": (1e-6, 0.5**0.5), "adm": (1e-5, 1.0)}[kind]
    frequencies = 10_000.0 ** (-torch.arange(4) / 3)
    angles = time[:, None] * frequencies
    layers = network.embedding
    hidden = swish(layers.first(torch.cat([angles.sin(), angles.cos()], dim=1)))
    modulation = network.modulation(swish(layers.second(hidden)))
    flags = iter(attentions)

    def residual(block: Any, features: Tensor, resample: Any = None) -> Tensor:
        nonlocal modulation
        hidden = swish(norm(block.first_norm, features, eps))
        if resample is not None:
            hidden, features = resample(hidden), resample(features)
        hidden = convolved(block.first, hidden)
        width = hidden.shape[1]
        if kind == "adm":
            scale, shift, modulation = modulation[:, :width], modulation[:, width : 2 * width], modulation[:, 2 * width :]
            hidden = norm(block.second_norm, hidden, eps) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        else:
            shift, modulation = modulation[:, :width], modulation[:, width:]
            hidden = norm(block.second_norm, hidden + shift[:, :, None, None], eps)
        hidden = convolved(block.second, swish(hidden))
        if features.shape[1] != width or (resample is not None and kind == "ddpmpp"):
            features = convolved(block.skip, features)
        else:
            assert isinstance(block.skip, nn.Identity)
        features = (features + hidden) * factor
        if next(flags) == "a":
            features = (features + attended(block.attention, features, heads[width], eps)) * factor
        else:
            assert isinstance(block.attention, nn.Identity)
        return features

    def resampled(block: Any, features: Tensor, direction: str) -> Tensor:
        if not between:
            return residual(block, features, halved if direction == "down" else doubled)
        if direction == "down":
            return convolved(block.layers[-1], features, 2)
        return convolved(block.layers[-1], doubled(features))

    outer, down, inner, first_middle, second_middle, up_inner, last_inner, up, up_outer, last_outer = network.blocks
    zero = convolved(network.stem, noisy)
    one = residual(outer, zero)
    two = resampled(down, one, "down")
    three = residual(inner, two)
    features = residual(second_middle, residual(first_middle, three))
    features = residual(up_inner, torch.cat([features, three], dim=1))
    features = residual(last_inner, torch.cat([features, two], dim=1))
    features = resampled(up, features, "up")
    features = residual(up_outer, torch.cat([features, one], dim=1))
    features = residual(last_outer, torch.cat([features, zero], dim=1))
    assert modulation.shape[1] == 0
    assert next(flags, None) is None
    return convolved(network.output, swish(norm(network.norm, features, eps)))


@pytest.mark.parametrize(
    ("kind", "resampling", "attentions"),
    [
        ("ddpm", "convolution", "-a" + "a-" + "aa" + "--"),
        ("ddpmpp", "box", "--a" + "a-" + "-a" + "-" + "--"),
        ("adm", "box", "--a" + "a-" + "aa" + "-" + "--"),
    ],
)
def test_the_network_is_the_arithmetic_of_its_paper(kind, resampling, attentions):
    """The letters are those of the encoder, the middle and the decoder; a block that resamples has no attention."""
    network = tiny(architecture=kind, resampling=resampling, channels_per_head=8 if kind == "adm" else None)
    noisy, time, none = inputs(3)
    expected = reference(
        network, noisy, time, kind=kind, between=resampling == "convolution", attentions=attentions,
        heads={16: 2 if kind == "adm" else 1},
    )  # fmt: skip
    assert expected.std() > 0.1
    assert torch.allclose(network(noisy, time, none), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resampling", ["box", "binomial"])
def test_filters_within_blocks_keep_constants_away_from_the_edge(resampling):
    blocks = tiny(resampling=resampling, initial=True).blocks
    down, up = (block.resample for block in blocks if getattr(block, "resample", None) is not None)
    ones = torch.ones(1, 2, 8, 8)
    assert torch.allclose(down(ones)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert torch.allclose(up(ones)[..., 1:-1, 1:-1], torch.ones(1, 2, 14, 14))


def test_binomial_filters_are_1_3_3_1():
    down = next(block.resample for block in tiny(resampling="binomial").blocks if getattr(block, "resample", None))
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[..., 3, 3] = 64.0
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = torch.tensor([[9.0, 3.0], [3.0, 1.0]])
    assert torch.equal(down(impulse)[0, 0], expected)


# NCSN++


def test_the_encoder_of_ncsnpp_adds_the_reduced_image_at_each_smaller_size():
    network = tiny(architecture="ncsnpp", resampling="binomial", multipliers=[1, 2, 2], attention_sizes=[])
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda _, given, result, number=number: seen.update({number: (given[0], result)}))
    noisy, time, labels = inputs(2)
    network(noisy, time, labels)
    first, second = network.image_skips["1"], network.image_skips["3"]
    assert first[1](first[0](noisy)).shape == (2, 8, 8, 8)
    added = (seen[1][1] + first(noisy)) * math.sqrt(0.5)
    assert torch.allclose(seen[2][0], added, atol=1e-5)
    assert torch.allclose(seen[4][0], (seen[3][1] + second(added)) * math.sqrt(0.5), atol=1e-5)


def test_random_frequencies_are_fixed_and_stored():
    network = tiny(architecture="ncsnpp", resampling="binomial", width=256, initial=True)
    frequencies = network.state_dict()["embedding.frequencies"] / (2 * math.pi)
    assert frequencies.shape == (256,)
    assert frequencies.std() == pytest.approx(16.0, rel=0.15)
    assert "embedding.frequencies" not in dict(network.named_parameters())
    assert "embedding.frequencies" not in tiny().state_dict()


# Initial weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_starts_at_or_near_zero_and_residual_branches_too(architecture):
    network = tiny(3, initial=True, architecture=architecture, width=16)
    noisy, time, labels = inputs(4, 3)
    result = network(noisy, time, labels).abs().max()
    block, stem = network.blocks[0], network.stem(noisy)
    branch = network.blocks[0](stem, torch.randn(4, block.modulation_size)) - stem * (
        0.5**0.5 if architecture in ("ddpmpp", "ncsnpp") else 1.0
    )
    if architecture == "adm":
        assert result == 0
        assert branch.abs().max() == 0
    else:
        assert 0 < result < 1e-3
        assert 0 < branch.abs().max() < 1e-3


@pytest.mark.parametrize(("architecture", "gain"), [("ddpm", 1.0), ("ddpmpp", 1.0), ("adm", None)])
def test_initial_weights_have_the_bounds_of_their_paper(architecture, gain):
    network = tiny(3, initial=True, architecture=architecture, width=32, resampling="convolution")
    block = network.blocks[0]

    def bound(fan_in: int, fan_out: int, factor: float = 1.0) -> float:
        return factor * math.sqrt(6 / (fan_in + fan_out)) if gain is not None else 1 / math.sqrt(fan_in)

    attention = network.blocks[2].attention.qkv.weight  # [3 * 64, 64, 1, 1]
    factor = {"ddpm": math.sqrt(2.0), "ddpmpp": math.sqrt(0.2), "adm": 1.0}[architecture]
    rows = network.modulation.weight[: block.modulation_size]
    for weight, expected in [
        (block.first.weight, bound(32 * 9, 32 * 9)),
        (rows, bound(128, 32)),
        (network.embedding.first.weight, bound(32, 128)),
        (attention, bound(64, 192, factor)),
    ]:
        assert expected * 0.98 < weight.abs().max() <= expected * 1.0001
        assert weight.std().item() == pytest.approx(expected / math.sqrt(3), rel=0.05)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias") and "condition" not in name)


def test_labels_start_as_a_table_of_normal_vectors_after_the_first_layers():
    for condition in (OneHot(num_classes=50), LabelEmbedding(num_classes=50, dim=40)):
        network = tiny(initial=True, condition=condition, architecture="ddpm", width=32)
        vectors = network.embedding.condition(condition(torch.arange(50)))
        assert vectors.std().item() == pytest.approx(1.0, rel=0.15)
    table = condition.embedding.weight  # keeps its own initial weights
    assert table.std().item() == pytest.approx(1.0, rel=0.1)


# Properties of the forward


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_condition_that_is_not_kept_is_the_zero_vector(architecture):
    network = tiny(3, architecture=architecture)
    noisy, time, labels = inputs(3, 3)
    kept = network(noisy, time, labels)
    assert torch.equal(network(noisy, time, labels, torch.ones(3, dtype=torch.bool)), kept)
    mixed = network(noisy, time, labels, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.allclose(mixed[[0, 2]], kept[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed[1], kept[1], atol=1e-3)
    network.condition.forward = lambda condition: torch.zeros(len(condition), 3)
    assert torch.allclose(network(noisy, time, labels)[1], mixed[1], atol=1e-5)


@pytest.mark.parametrize("num_times", [1, 2])
def test_every_time_label_and_augmentation_changes_the_output(num_times):
    network = tiny(3, num_times=num_times, augment_dim=2)
    noisy, _, labels = inputs(2, 3)
    time = torch.full((2, num_times), 0.5) if num_times > 1 else torch.full((2,), 0.5)
    plain = network(noisy, time, labels)
    changed = [network(noisy, time, labels + 1), network(noisy, time, labels, None, torch.ones(2, 2))]
    for number in range(num_times):
        other = time.clone().view(2, num_times)
        other[:, number] = 5.0
        changed.append(network(noisy, other.view_as(time), labels))
    for result in changed:
        assert (result - plain).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sample_does_not_depend_on_its_batch(architecture):
    network = tiny(3, architecture=architecture)
    noisy, time, labels = inputs(5, 3)
    batch = network(noisy, time, labels)
    for row in range(5):
        alone = network(noisy[row : row + 1], time[row : row + 1], labels[row : row + 1])
        assert torch.allclose(alone[0], batch[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_near_float32_and_the_result_is_float32(architecture):
    network = tiny(3, architecture=architecture)
    arguments = inputs(4, 3)
    expected = network(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(*arguments)
    assert result.dtype == torch.float32
    assert (result - expected).std() < 0.02 * expected.std()  # bfloat16 rounds to 0.4 %


def test_it_has_a_derivative_along_time_and_image_as_meanflow_needs():
    network = tiny(num_times=2, resampling="binomial").double()
    noisy, _, none = inputs(2)
    noisy, time = noisy.double(), torch.tensor([[0.7, 0.2], [0.5, 0.5]], dtype=torch.float64)
    tangents = (random(2, 3, 16, 16).double(), torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64))

    def run(noisy: Tensor, time: Tensor) -> Tensor:
        return network(noisy, time, none)

    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = torch.func.jvp(run, (noisy, time), tangents)
        step = 1e-3
        ahead, behind = (run(noisy + s * tangents[0], time + s * tangents[1]) for s in (step, -step))
    # The embedding computes in float32, which limits the quotient.
    assert torch.allclose(derivative, (ahead - behind) / (2 * step), rtol=1e-2, atol=1e-2 * derivative.abs().max().item())


def test_recomputed_activations_give_the_same_gradients():
    plain, recomputing = tiny(dropout=0.5), tiny(dropout=0.5)
    assert recompute_blocks(recomputing) == len(plain.blocks)
    for network in (plain, recomputing):
        torch.manual_seed(1)
        network(*inputs(2)).square().sum().backward()
    for one, other in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"channels": 0}, "channels=0"),
        ({"width": 0}, "width=0"),
        ({"width": 7}, "width=7"),
        ({"multipliers": []}, "multipliers"),
        ({"multipliers": [1, 0]}, "multipliers"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"attention_sizes": [4, 32]}, "attention_sizes"),
        ({"architecture": "unet"}, "architecture=unet"),
        ({"resampling": "linear"}, "resampling=linear"),
        ({"channels_per_head": 3}, "channels_per_head=3"),
        ({"channels_per_head": 0}, "channels_per_head=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"num_times": 0}, "num_times=0"),
        ({"augment_dim": -1}, "augment_dim=-1"),
        ({"source_channels": -1}, "source_channels=-1"),
        ({"image_size": 15}, "image_size"),
        ({"image_size": [16, 18], "patch_size": 2}, "image_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, setting):
    with raises(ValueError, setting):
        tiny(**changes)


@pytest.mark.parametrize(
    ("image_size", "word"), [(15, "[16,16]"), ([16, 21], "[16,20]"), ([1, 2], "[4,4]"), ([30, 33], "[32,32]")]
)
def test_the_nearest_size_that_fits_is_named(image_size, word):
    with raises(ValueError, "image_size", word):
        tiny(image_size=image_size, multipliers=[1, 1, 1])
