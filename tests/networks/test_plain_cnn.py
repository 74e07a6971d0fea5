from functools import partial

import pytest
import torch
from errors import raises
from torch import nn
from torch.nn.utils import parametrize

from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional
from genimg.networks.discriminator import Discriminator
from genimg.networks.layers import ConditionalBatchNorm2d
from genimg.networks.plain_cnn import Features, Generator

SIZES = [(64, 3), (32, 3), (28, 1), (48, 3), ([48, 32], 3), ([16, 40], 4)]


def generator(condition: ConditionEncoder | None = None, **changes) -> Generator:
    torch.manual_seed(0)
    settings = {
        "latent_dim": 6,
        "condition": condition or Unconditional(),
        "image_size": 32,
        "channels": 3,
        "width": 4,
        "bottom_size": 4,
        "activate_start": True,
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
        "width": 4,
        "bottom_size": 4,
        "strided_doubles": True,
        "negative_slope": 0.1,
        "normalisation": "none",
        "pooling": "flatten",
    }
    return Features(**(settings | changes))


def discriminator(condition: ConditionEncoder, head: str, **changes) -> Discriminator:
    return Discriminator(
        features=partial(features, **changes),
        condition=condition,
        head=head,
        bias=True,
        initialisation="default",
        spectral_norm=False,
    )


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_of_studiogans_dcgan():
    """PyTorch-StudioGAN's logs say 3.81M and 2.93M."""
    network = generator(latent_dim=128, width=64, activate_start=False)
    linear = 129 * 512 * 16
    transposed = sum(inputs * outputs * 16 + 3 * outputs for inputs, outputs in ((512, 256), (256, 128), (128, 64)))
    assert num_parameters(network) == linear + transposed + 64 * 3 * 9 + 3 == 3_812_355
    judge = discriminator(
        Unconditional(), "none", width=64, strided_doubles=False, negative_slope=0, normalisation="batch", pooling="sum"
    )
    small = sum(inputs * outputs * 9 + 3 * outputs for inputs, outputs in ((3, 64), (64, 128), (128, 256), (256, 512)))
    strided = sum(width * width * 16 + 3 * width for width in (64, 128, 256))
    assert num_parameters(judge) == small + strided + 512 + 1 == 2_931_009


def test_parameter_counts_of_the_ports():
    assert num_parameters(generator(latent_dim=100, width=64)) == 101 * 512 * 16 + 2 * 512 + 3_812_355 - 129 * 512 * 16
    judge = discriminator(Unconditional(), "none", width=64)
    small = sum(inputs * outputs * 9 + outputs for inputs, outputs in ((3, 64), (128, 128), (256, 256), (512, 512)))
    strided = sum(width * 2 * width * 16 + 2 * width for width in (64, 128, 256))
    assert num_parameters(judge) == small + strided + 512 * 16 + 1


class Reshape(nn.Module):
    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.view(len(latent), -1, 4, 4)


def reference_generator(latent_dim: int, width: int, start: bool) -> nn.Module:
    """Miyato et al. 2018, table 3, at 32 px; with ``start`` as the ports have it."""
    layers = [nn.Linear(latent_dim, 8 * width * 16), Reshape()]
    layers += [nn.BatchNorm2d(8 * width), nn.ReLU()] if start else []
    for multiple in (4, 2, 1):
        outputs = multiple * width
        layers += [nn.ConvTranspose2d(2 * outputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())


def reference_features(width: int, doubles: bool, slope: float, norm: bool) -> nn.Module:
    shapes, inputs = [], 3
    for multiple in (1, 2, 4):
        outputs = width * multiple
        after = outputs * 2 if doubles else outputs
        shapes += [(inputs, outputs, 3, 1), (outputs, after, 4, 2)]
        inputs = after
    shapes.append((inputs, 8 * width, 3, 1))
    layers = []
    for before, outputs, size, stride in shapes:
        layers += [nn.Conv2d(before, outputs, size, stride, 1)] + [nn.BatchNorm2d(outputs)] * norm + [nn.LeakyReLU(slope)]
    return nn.Sequential(*layers)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    values = list(source.state_dict().values())
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))


@pytest.mark.parametrize("start", [True, False])
def test_generator_computes_the_published_network(start):
    network, reference = generator(activate_start=start), reference_generator(6, 4, start)
    copy_weights(network, reference)
    latent = torch.randn(3, 6)
    assert torch.allclose(network(latent, nothing(3)), reference(latent), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("doubles", "slope", "norm"), [(True, 0.1, False), (False, 0.0, True)])
def test_features_are_those_of_the_published_networks(doubles, slope, norm):
    reference = reference_features(4, doubles, slope, norm)
    kind = "batch" if norm else "none"
    image = torch.randn(2, 3, 32, 32)
    for pooling in ("flatten", "sum"):
        network = features(strided_doubles=doubles, negative_slope=slope, normalisation=kind, pooling=pooling)
        copy_weights(network, reference)
        expected = reference(image).flatten(1) if pooling == "flatten" else reference(image).sum(dim=(2, 3))
        assert network.num_features == expected.shape[1]
        assert torch.allclose(network(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["flatten", "sum"])
@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_the_wanted_size_in_range_and_one_logit_each(size, channels, pooling):
    images = generator(image_size=size, channels=channels)(torch.randn(5, 6) * 10, nothing(5))
    judge = discriminator(Unconditional(), "none", image_size=size, channels=channels, pooling=pooling)
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (5, channels, height, width)
    assert images.abs().max() <= 1
    assert judge(images, nothing(5)).logits.shape == (5,)


def test_a_label_changes_the_image_through_conditional_batch_norm_or_beside_the_latent():
    latent, label = torch.randn(2, 6), torch.tensor([0, 1])
    for normalisation in ("conditional_batch", "batch"):
        network = generator(OneHot(num_classes=2), normalisation=normalisation, initialisation="orthogonal").eval()
        assert not torch.allclose(network(latent, label), network(latent, 1 - label), atol=1e-3)
        conditional = [layer for layer in network.modules() if isinstance(layer, ConditionalBatchNorm2d)]
        assert len(conditional) == (4 if normalisation == "conditional_batch" else 0)


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    network = generator(OneHot(num_classes=3), normalisation="conditional_batch", initialisation="orthogonal").eval()
    latent, label = torch.randn(4, 6), torch.tensor([0, 1, 2, 1])
    assert torch.allclose(network(latent, label)[:1], network(latent[:1], label[:1]), rtol=0, atol=1e-5)


def test_spectral_norm_of_the_generator_leaves_the_encoder_alone():
    network = generator(LabelEmbedding(num_classes=3, dim=5), spectral_norm=True)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            assert parametrize.is_parametrized(layer) == (not name.startswith("condition")), name


def test_every_parameter_receives_a_gradient():
    network = generator()
    judge = discriminator(OneHot(num_classes=2), "concat")
    judge(network(torch.randn(4, 6), nothing(4)), torch.tensor([0, 1, 1, 0])).logits.square().sum().backward()
    # A bias before batch norm has no effect; the start has one for every pixel, so that only their mean has none.
    for name, parameter in [*network.named_parameters(), *judge.named_parameters()]:
        assert parameter.grad is not None, name
        if not (name.endswith("bias") and name.startswith("layers")):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [30, 8, [64, 30], [8, 64]])
@pytest.mark.parametrize("build", [generator, features])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size, build):
    with raises(ValueError, "image_size", word="nearest"):
        build(image_size=size)


def test_unknown_pooling_is_refused():
    with raises(ValueError, "pooling=mean"):
        features(pooling="mean")
