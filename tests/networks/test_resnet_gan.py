import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional
from genimg.networks.discriminator import Discriminator
from genimg.networks.layers import ConditionalBatchNorm2d, SelfAttention
from genimg.networks.resnet_gan import Features, Generator

SIZES = [(64, 3), (32, 3), (28, 1), (48, 3), ([48, 32], 3), ([16, 40], 4)]


def generator(condition: ConditionEncoder | None = None, **changes) -> Generator:
    torch.manual_seed(0)
    settings = {
        "latent_dim": 6,
        "condition": condition or Unconditional(),
        "image_size": 32,
        "channels": 3,
        "widths": [8],
        "bottom_size": 4,
        "attention_at": None,
        "normalisation": "batch",
        "initialisation": "default",
        "spectral_norm": False,
    }
    return Generator(**(settings | changes))


def features(**changes) -> Features:
    torch.manual_seed(0)
    settings = {
        "image_size": 32,
        "channels": 3,
        "condition_channels": 0,
        "widths": [8],
        "bottom_size": 7,
        "num_flat_blocks": 2,
        "wide": False,
        "attention_at": None,
        "normalisation": "none",
        "pooling": "sum",
    }
    return Features(**(settings | changes))


def discriminator(
    condition: ConditionEncoder, head: str, bias: bool, initialisation: str = "default", **changes
) -> Discriminator:
    return Discriminator(
        features=partial(features, **changes),
        condition=condition,
        head=head,
        bias=bias,
        initialisation=initialisation,
        spectral_norm=False,
    )


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def convolution(inputs: int, outputs: int, size: int) -> int:
    return inputs * outputs * size**2 + outputs


def test_parameter_counts_of_cifars_generator():
    residual = 2 * convolution(256, 256, 3) + convolution(256, 256, 1)
    rest = 129 * 256 * 16 + 2 * 256 + convolution(256, 3, 3)  # linear layer, last norm, last convolution
    plain = generator(latent_dim=128, widths=[256])
    assert num_parameters(plain) == rest + 3 * (residual + 2 * 2 * 256) == 4_276_739
    conditional = generator(OneHot(num_classes=10), latent_dim=128, widths=[256], normalisation="conditional_batch")
    # PyTorch-StudioGAN's 4.30M are the conditional one's: no affine batch norm, but 10 scales and 10 shifts.
    assert num_parameters(conditional) == rest + 3 * (residual + 2 * 2 * 10 * 256) == 4_304_387


def test_parameter_counts_of_cifars_discriminator():
    first = convolution(3, 128, 3) + convolution(128, 128, 3) + convolution(3, 128, 1)
    down = 2 * convolution(128, 128, 3) + convolution(128, 128, 1)
    flat = 2 * convolution(128, 128, 3)
    blocks = first + down + 2 * flat
    assert num_parameters(discriminator(Unconditional(), "none", False, widths=[128])) == blocks + 128 == 1_053_824
    # PyTorch-StudioGAN's 1.055M: with a bias and a projection of 10 classes.
    conditional = discriminator(OneHot(num_classes=10), "projection", True, widths=[128])
    assert num_parameters(conditional) == blocks + 129 + 10 * 128 == 1_055_105


def reference_generator(state: dict[str, torch.Tensor], latent: torch.Tensor, num_blocks: int, training: bool) -> torch.Tensor:
    """Miyato et al. 2018, table 4, in the published order of the shortcut: first the upsampling, then the convolution."""

    def norm(x, name):
        statistics = (state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone())
        return F.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training=training)

    def conv(x, name):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def upsample(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = F.linear(latent, state["linear.weight"], state["linear.bias"]).view(len(latent), -1, 4, 4)
    for level in range(num_blocks):
        block = f"blocks.{level}.0"
        h = conv(upsample(torch.relu(norm(x, f"{block}.residual.0"))), f"{block}.residual.3")
        h = conv(torch.relu(norm(h, f"{block}.residual.4")), f"{block}.residual.6")
        x = h + conv(upsample(x), f"{block}.shortcut.0")
    return torch.tanh(conv(torch.relu(norm(x, "output.0")), "output.2"))


@pytest.mark.parametrize("training", [True, False])
def test_generator_computes_the_published_network(training):
    network = generator(widths=[4, 8, 12]).train(training)
    for name, value in network.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 2.0)
    latent = torch.randn(3, 6)
    expected = reference_generator(network.state_dict(), latent, 3, training)
    assert torch.allclose(network(latent, nothing(3)), expected, rtol=1e-4, atol=1e-5)


def reference_features(state: dict[str, torch.Tensor], image: torch.Tensor, downs: list[bool], pooling: str) -> torch.Tensor:
    """Miyato et al. 2018, table 4; after the first block the shortcut's convolution comes before its pooling, as published."""

    def conv(x, name):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    h = conv(torch.relu(conv(image, "blocks.0.residual.0")), "blocks.0.residual.3")
    x = F.avg_pool2d(h, 2) + conv(F.avg_pool2d(image, 2), "blocks.0.shortcut.1")
    for level, down in enumerate(downs, start=1):
        h = conv(torch.relu(x), f"blocks.{level}.residual.2")
        h = conv(torch.relu(h), f"blocks.{level}.residual.5")
        if down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(conv(x, f"blocks.{level}.shortcut.1"), 2)
        elif f"blocks.{level}.shortcut.0.weight" in state:
            x = conv(x, f"blocks.{level}.shortcut.0")
        x = h + x
    return getattr(torch.relu(x), pooling)(dim=(2, 3))


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("widths", [[8], [4, 6, 6, 10]])
def test_features_are_those_of_the_published_network(widths, pooling):
    network = features(widths=widths, pooling=pooling)
    image = torch.randn(2, 3, 32, 32)
    expected = reference_features(network.state_dict(), image, [True, False, False], pooling)
    assert network.num_features == expected.shape[1] == widths[-1]
    assert torch.allclose(network(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_the_wanted_size_in_range_and_one_logit_each(size, channels):
    images = generator(image_size=size, channels=channels)(torch.randn(5, 6) * 10, nothing(5))
    judge = discriminator(Unconditional(), "none", True, image_size=size, channels=channels)
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (5, channels, height, width)
    assert images.abs().max() <= 1
    assert judge(images, nothing(5)).logits.shape == (5,)


def convolutions(network: nn.Module) -> list[tuple[int, int]]:
    """Channels of the 3x3 convolutions."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    return [(layer.in_channels, layer.out_channels) for layer in layers]


def test_widths_are_listed_from_the_image_inwards_and_the_last_one_repeats():
    assert convolutions(generator(image_size=64, widths=[2, 4, 6])) == [
        *[(6, 6), (6, 6)],
        *[(6, 6), (6, 6)],
        *[(6, 4), (4, 4)],
        *[(4, 2), (2, 2)],
        (2, 3),
    ]
    assert convolutions(features(widths=[2, 4, 6])) == [*[(3, 2), (2, 2)], *[(2, 2), (2, 4)], *[(4, 4), (4, 6)], *[(6, 6)] * 2]
    wide = convolutions(features(widths=[2, 4, 6], wide=True))
    assert wide == [*[(3, 2), (2, 2)], *[(2, 4), (4, 4)], *[(4, 6), (6, 6)], *[(6, 6)] * 2]


@pytest.mark.parametrize(
    ("size", "bottom_size", "num_flat_blocks", "last"),
    [(32, 7, 2, 8), (28, 7, 2, 7), (48, 3, 1, 3), (64, 2, 0, 2), (128, 4, 1, 4), ([48, 32], 7, 2, 12)],
)
def test_the_discriminators_of_sngans_tables(size, bottom_size, num_flat_blocks, last):
    network = features(image_size=size, bottom_size=bottom_size, num_flat_blocks=num_flat_blocks)
    image = torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size))
    for block in network.blocks:
        image = block(image)
    assert image.shape[2] == last


def attended(network: nn.Module, *inputs: torch.Tensor) -> list[tuple[int, ...]]:
    """Shapes of what self-attention sees."""
    seen = []
    for layer in network.modules():
        if isinstance(layer, SelfAttention):
            layer.register_forward_hook(lambda module, arguments, result: seen.append(tuple(arguments[0].shape)))
    network(*inputs)
    return seen


@pytest.mark.parametrize(("at", "width"), [(8, 24), (16, 16), (32, 8)])
def test_attention_sees_the_feature_map_of_the_wanted_size(at, width):
    network = generator(widths=[8, 16, 24], attention_at=at)
    assert attended(network, torch.zeros(2, 6), nothing(2)) == [(2, width, at, at)]
    network = features(image_size=64, widths=[8, 16, 24], attention_at=at)
    assert attended(network, torch.zeros(2, 3, 64, 64)) == [(2, {32: 8, 16: 16, 8: 24}[at], at, at)]


def test_attention_at_a_size_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"^attention_at=7 is not the size of .*: choose 8, 16, 32 or null"):
        generator(attention_at=7)
    with pytest.raises(ValueError, match=r"^attention_at=32 is not the size of a feature map: choose 8, 16 or null"):
        features(attention_at=32)


def test_a_label_changes_the_image_through_conditional_batch_norm_or_beside_the_latent():
    latent, label = torch.randn(2, 6), torch.tensor([0, 1])
    for normalisation in ("conditional_batch", "batch"):
        network = generator(
            OneHot(num_classes=2), image_size=16, normalisation=normalisation, initialisation="orthogonal"
        ).eval()
        assert not torch.allclose(network(latent, label), network(latent, 1 - label), atol=1e-3)
        conditional = [layer for layer in network.modules() if isinstance(layer, ConditionalBatchNorm2d)]
        assert len(conditional) == (4 if normalisation == "conditional_batch" else 0)
        assert type(network.output[0]) is nn.BatchNorm2d
        assert network.linear.in_features == (6 if normalisation == "conditional_batch" else 8)


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    network = generator(
        OneHot(num_classes=3), attention_at=16, normalisation="conditional_batch", initialisation="orthogonal"
    ).eval()
    latent, label = torch.randn(4, 6), torch.tensor([0, 1, 2, 1])
    assert torch.allclose(network(latent, label)[:1], network(latent[:1], label[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalisation", ["none", "layer"])
def test_features_of_an_image_do_not_depend_on_its_batch(normalisation):
    network, images = features(normalisation=normalisation), torch.randn(4, 3, 32, 32)
    assert torch.allclose(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-4)


def test_the_first_block_is_not_normalised_and_the_others_are():
    network = features(normalisation="layer")
    norms = [name for name, layer in network.named_modules() if isinstance(layer, nn.GroupNorm)]
    assert norms == [f"blocks.{level}.residual.{place}" for level in (1, 2, 3) for place in (0, 3)]


def test_spectral_norm_of_the_generator_leaves_the_encoder_alone():
    network = generator(LabelEmbedding(num_classes=3, dim=5), attention_at=16, spectral_norm=True)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            assert parametrize.is_parametrized(layer) == (not name.startswith("condition")), name


def test_xavier_gives_residual_convolutions_a_gain_of_the_root_of_two():
    judge = discriminator(Unconditional(), "none", False, initialisation="xavier", widths=[32])
    for name, layer in [*generator(initialisation="xavier", widths=[32]).named_modules(), *judge.named_modules()]:
        if isinstance(layer, nn.Conv2d):
            area = math.prod(layer.kernel_size)
            bound = math.sqrt(6 / (area * (layer.in_channels + layer.out_channels)))
            gain = math.sqrt(2) if "residual" in name else 1
            # Of n uniform numbers the largest exceeds 1 - 12/n of the bound with a probability of 1 - exp(-12).
            assert layer.weight.abs().max().item() / bound == pytest.approx(gain, rel=12 / layer.weight.numel()), name


def test_every_parameter_receives_a_gradient():
    network = generator(attention_at=16)
    judge = discriminator(OneHot(num_classes=2), "concat", True, attention_at=16, normalisation="layer")
    for layer in [*network.modules(), *judge.modules()]:
        if isinstance(layer, SelfAttention):
            nn.init.ones_(layer.gamma)
    judge(network(torch.randn(4, 6), nothing(4)), torch.tensor([0, 1, 1, 0])).logits.square().sum().backward()
    for name, parameter in [*network.named_parameters(), *judge.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [30, 8, [64, 30], [8, 64]])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size):
    with pytest.raises(ValueError, match=r"^image_size=\[.*; the nearest is \["):
        generator(image_size=size)


@pytest.mark.parametrize("size", [31, 12])
def test_features_refuse_sizes_that_cannot_be_halved_once(size):
    with pytest.raises(ValueError, match=r"multiples of 2 and at least 14; the nearest is \["):
        features(image_size=size)


@pytest.mark.parametrize("widths", [[], [1, 2, 3, 4, 5]])
def test_lists_of_widths_that_do_not_fit_are_refused(widths):
    with pytest.raises(ValueError, match=r"^widths=\[.*\] must be a list of 1 to 4 numbers"):
        generator(widths=widths)
    with pytest.raises(ValueError, match=r"^widths=\[.*\] must be a list of 1 to 4 numbers"):
        features(widths=widths)


def test_other_settings_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match=r"^pooling=max is unknown: choose one of sum, mean"):
        features(pooling="max")
    with pytest.raises(ValueError, match=r"^num_flat_blocks=-1 must be 0 or more"):
        features(num_flat_blocks=-1)


def test_an_in_place_shortcut_is_what_in_place_relus_make_of_the_published_blocks():
    """PyTorch-StudioGAN's and mimicry's blocks: the residual's first ReLU overwrites the tensor that the shortcut reads."""
    network = features(in_place_shortcut=True)
    network.blocks[0].requires_grad_(False)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.blocks[0](image)
        for block in network.blocks[1:]:
            convolutions = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)]
            residual = F.relu(expected, inplace=True)  # before the shortcut
            residual = convolutions[1](F.relu(convolutions[0](residual)))
            shortcut = expected
            for layer in block.shortcut:
                shortcut = layer(shortcut)
            expected = (F.avg_pool2d(residual, 2) if residual.shape != shortcut.shape else residual) + shortcut
        expected = torch.relu(expected).sum(dim=(2, 3))
        torch.testing.assert_close(network(image), expected)
        assert not torch.allclose(features()(image), expected)
    with pytest.raises(ValueError, match=r"^in_place_shortcut=true"):
        features(in_place_shortcut=True, normalisation="batch")


def test_bilinear_upsampling_interpolates_both_ways_of_a_block():
    network = generator(upsampling="bilinear")
    (block,) = network.blocks[0]
    start = torch.randn(2, 8, 4, 4)
    convolutions = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in block.residual if isinstance(layer, nn.BatchNorm2d)]

    def double(values: torch.Tensor) -> torch.Tensor:
        return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)

    with torch.no_grad():
        residual = convolutions[0](double(F.relu(norms[0](start))))
        expected = convolutions[1](F.relu(norms[1](residual))) + block.shortcut[0](double(start))  # mimicry's order
        torch.testing.assert_close(block(start, nothing(2)), expected)
    with pytest.raises(ValueError, match=r"^upsampling=cubic"):
        generator(upsampling="cubic")


def test_batch_norm_eps_is_that_of_every_batch_norm():
    network = generator(batch_norm_eps=1e-4)
    assert {layer.eps for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-4}
    conditional = generator(OneHot(num_classes=3), normalisation="conditional_batch", batch_norm_eps=1e-4)
    assert {layer.eps for layer in conditional.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-4}
    assert {layer.eps for layer in generator().modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-5}
    with pytest.raises(ValueError, match=r"^batch_norm_eps="):
        generator(batch_norm_eps=0.0)
