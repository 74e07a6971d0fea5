from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from genimg.networks.biggan import Generator
from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional
from genimg.networks.discriminator import Discriminator
from genimg.networks.layers import ConditionalBatchNorm2d, SelfAttention
from genimg.networks.resnet_gan import Features

SIZES = [(64, 3), (32, 3), (28, 1), (48, 3), ([48, 32], 3), ([16, 40], 4)]


def generator(condition: ConditionEncoder | None = None, **changes) -> Generator:
    torch.manual_seed(0)
    settings = {
        "latent_dim": 12,
        "condition": condition or Unconditional(),
        "image_size": 32,
        "channels": 3,
        "widths": [8],
        "bottom_size": 4,
        "attention_at": None,
        "initialisation": "orthogonal",
        "spectral_norm": False,
    }
    return Generator(**(settings | changes))


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def convolution(inputs: int, outputs: int, size: int) -> int:
    return inputs * outputs * size**2 + outputs


def attention(channels: int) -> int:
    return 2 * channels * channels // 8 + 2 * channels * channels // 2 + 1


def test_parameter_counts_on_cifar_are_pytorch_studiogans():
    """Its logs say 9.42M and 2.42M."""
    network = generator(LabelEmbedding(num_classes=10, dim=128), latent_dim=80, widths=[384], attention_at=16)
    norms = 2 * 2 * (128 + 20) * 384  # two of each block, with scales and shifts
    block = norms + 2 * convolution(384, 384, 3) + convolution(384, 384, 1)
    rest = 10 * 128 + 21 * 384 * 16 + attention(384) + 2 * 384 + convolution(384, 3, 3)
    assert num_parameters(network) == 3 * block + rest == 9_416_196
    features = partial(
        Features,
        image_size=32,
        channels=3,
        widths=[192],
        bottom_size=7,
        num_flat_blocks=2,
        wide=True,
        attention_at=16,
        normalisation="none",
        pooling="sum",
    )
    judge = Discriminator(
        features=features,
        condition=OneHot(num_classes=10),
        head="projection",
        bias=True,
        initialisation="default",
        spectral_norm=False,
    )
    first = convolution(3, 192, 3) + convolution(192, 192, 3) + convolution(3, 192, 1)
    blocks = first + 6 * convolution(192, 192, 3) + convolution(192, 192, 1)
    assert num_parameters(judge) == blocks + attention(192) + 193 + 10 * 192 == 2_415_170


def test_channels_at_128_pixels_are_those_of_the_papers_table():
    network = generator(image_size=128, widths=[2, 4, 8, 16, 32])
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    channels = [(layer.in_channels, layer.out_channels) for layer in layers]
    assert channels == [(32, 32), (32, 16), (16, 8), (8, 4), (4, 2)]


def reference_generator(state: dict[str, torch.Tensor], latent: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """Brock et al. 2019, appendix B, in training mode at 32 px, without attention."""

    def norm(x, name, vector):
        scale = 1 + vector @ state[f"{name}.scale.weight"].t()
        shift = vector @ state[f"{name}.shift.weight"].t()
        return F.batch_norm(x, None, None, training=True) * scale[:, :, None, None] + shift[:, :, None, None]

    def conv(x, name):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def upsample(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    parts = latent.chunk(4, dim=1)
    x = F.linear(parts[0], state["linear.weight"], state["linear.bias"]).view(len(latent), -1, 4, 4)
    for level, part in enumerate(parts[1:]):
        block, vector = f"blocks.{level}.0", torch.cat([embedded, part], dim=1)
        h = conv(upsample(torch.relu(norm(x, f"{block}.residual.0", vector))), f"{block}.residual.3")
        h = conv(torch.relu(norm(h, f"{block}.residual.4", vector)), f"{block}.residual.6")
        x = h + conv(upsample(x), f"{block}.shortcut.0")
    x = F.batch_norm(x, None, None, state["output.0.weight"], state["output.0.bias"], training=True)
    return torch.tanh(conv(torch.relu(x), "output.2"))


def test_generator_computes_the_published_network():
    network = generator(LabelEmbedding(num_classes=3, dim=5), widths=[4, 8])
    latent, label = torch.randn(3, 12), torch.tensor([0, 2, 1])
    state = network.state_dict()
    expected = reference_generator(state, latent, state["condition.embedding.weight"][label])
    assert torch.allclose(network(latent, label), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_the_wanted_size_in_range(size, channels):
    images = generator(image_size=size, channels=channels)(torch.randn(5, 12) * 10, nothing(5))
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (5, channels, height, width)
    assert images.abs().max() <= 1


@pytest.mark.parametrize(
    ("latent_dim", "size", "parts"),
    [(80, 32, [20, 20, 20, 20]), (120, 128, [20] * 6), (80, 28, [28, 26, 26]), (4, 32, [1] * 4)],
)
def test_the_latent_is_split_evenly_and_the_linear_layer_gets_what_is_left_over(latent_dim, size, parts):
    network = generator(latent_dim=latent_dim, image_size=size, condition=LabelEmbedding(num_classes=3, dim=5))
    assert network.linear.in_features == parts[0]
    norms = [layer for layer in network.modules() if isinstance(layer, ConditionalBatchNorm2d)]
    assert [norm.scale.in_features for norm in norms] == [5 + part for part in parts[1:] for _ in range(2)]
    assert network(torch.randn(2, latent_dim), torch.tensor([0, 1])).shape == (2, 3, size, size)


def test_every_part_of_the_latent_and_the_label_change_the_image():
    network = generator(LabelEmbedding(num_classes=2, dim=5)).eval()
    latent, label = torch.randn(1, 12), torch.tensor([0])
    image = network(latent, label)
    assert not torch.allclose(network(latent, 1 - label), image, atol=1e-3)
    for start in (0, 3, 6, 9):
        changed = latent.clone()
        changed[:, start : start + 3] += 1
        assert not torch.allclose(network(changed, label), image, atol=1e-3)


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    network = generator(LabelEmbedding(num_classes=3, dim=5), attention_at=16, spectral_norm=True).eval()
    latent, label = torch.randn(4, 12), torch.tensor([0, 1, 2, 1])
    assert torch.allclose(network(latent, label)[:1], network(latent[:1], label[:1]), rtol=0, atol=1e-5)


def test_spectral_norm_is_on_every_layer_but_the_embedding():
    network = generator(LabelEmbedding(num_classes=3, dim=5), attention_at=16, spectral_norm=True)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            assert parametrize.is_parametrized(layer) == (not name.startswith("condition")), name


def test_every_parameter_receives_a_gradient():
    network = generator(LabelEmbedding(num_classes=2, dim=5), attention_at=16, spectral_norm=True)
    nn.init.ones_(next(layer for layer in network.modules() if isinstance(layer, SelfAttention)).gamma)
    network(torch.randn(4, 12), torch.tensor([0, 1, 1, 0])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [30, 8, [64, 30], [8, 64]])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size):
    with pytest.raises(ValueError, match=r"^image_size=\[.*; the nearest is \["):
        generator(image_size=size)


def test_other_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^latent_dim=3 must be at least 4, one for each of 4 parts"):
        generator(latent_dim=3)
    with pytest.raises(ValueError, match=r"^attention_at=64 is not the size of .*: choose 8, 16, 32 or null"):
        generator(attention_at=64)
    with pytest.raises(ValueError, match=r"^widths=\[1, 2, 3, 4, 5\] must be a list of 1 to 4 numbers"):
        generator(widths=[1, 2, 3, 4, 5])
