import copy
import math

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from errors import raises
from scipy import stats
from torch import nn
from torch.func import functional_call

from genimg.methods.gan import GAN
from genimg.methods.latent import Normal
from genimg.methods.options import LatentOptions, StyleOptions
from genimg.networks import stylegan2
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.stylegan2 import Discriminator, Generator
from genimg.networks.stylegan2_layers import (
    FILTER,
    EqualisedConv2d,
    EqualisedLinear,
    MinibatchStandardDeviation,
    ModulatedConv2d,
    normalise_second_moment,
)
from genimg.utils.rng import hash_integers

SIZES = [(8, 3), (32, 3), (28, 1), ([16, 24], 4)]


def encoder(num_classes):
    return OneHot(num_classes=num_classes) if num_classes else Unconditional()


def tiny_generator(num_classes=0, **changes):
    torch.manual_seed(0)
    settings = {
        "latent_dim": 6,
        "normalisation": "modulation",
        "image_size": 16,
        "channels": 3,
        "style_dim": 5,
        "num_mapping_layers": 2,
        "channel_base": 64,
        "channel_max": 8,
        "style_mixing": 0.0,
        "style_average_decay": 0.9,
        "conv_clamp": 256.0,
    }
    generator = Generator(condition=encoder(num_classes), **settings | changes)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.3)
    return generator


def tiny_discriminator(num_classes=0, **changes):
    torch.manual_seed(0)
    settings = {
        "head": "projection" if num_classes else "none",
        "image_size": 16,
        "channels": 3,
        "architecture": "plain",
        "channel_base": 64,
        "channel_max": 8,
        "group_size": 4,
        "conv_clamp": 256.0,
    }
    return Discriminator(condition=encoder(num_classes), **settings | changes)


def conditions(count, num_classes):
    return torch.arange(count) % num_classes if num_classes else torch.zeros(count, 0)


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_for_cifar_are_those_of_the_papers_code():
    with torch.device("meta"):
        generator = tiny_generator(10, image_size=32, latent_dim=512, style_dim=512, channel_base=32768, channel_max=512)
        discriminator = tiny_discriminator(10, image_size=32, channel_base=32768, channel_max=512)
    assert num_parameters(generator) == 20_215_315
    assert num_parameters(discriminator) == 23_089_664


# Layers


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_equalised_layers_scale_by_fan_in_rate_and_gain_and_start_with_unit_variance(rate):
    torch.manual_seed(0)
    linear = EqualisedLinear(400, 300, bias=2.0, rate=rate, gain=3.0)
    features = torch.randn(200, 400)
    expected = 3.0 * (F.linear(features, linear.weight * rate / 20.0) + 2.0 * rate)
    assert torch.allclose(linear(features), expected, rtol=1e-4, atol=1e-4)
    assert (linear(features) / 3.0).std().item() == pytest.approx(1.0, abs=0.02)  # 60,000 values, 400 weights each


def test_an_equalised_convolution_scales_by_fan_in_and_gain():
    torch.manual_seed(0)
    layer = EqualisedConv2d(4, 5, 3, gain=3.0)
    nn.init.normal_(layer.bias)
    features = torch.randn(2, 4, 6, 6)
    expected = 3.0 * F.conv2d(features, layer.weight / 6.0, layer.bias, padding=1)
    assert torch.allclose(layer(features), expected, rtol=1e-5, atol=1e-5)
    assert layer(features).shape == (2, 5, 6, 6)
    assert EqualisedConv2d(4, 5, 3, stride=2)(features).shape == (2, 5, 2, 2)


@pytest.mark.parametrize(("inputs", "rate"), [(16, 1.0), (64, 1.0), (16, 0.01)])
def test_an_adam_step_moves_the_weights_in_use_by_the_rate_over_the_root_of_the_fan_in(inputs, rate):
    torch.manual_seed(0)
    layer = EqualisedLinear(inputs, 3, rate=rate)
    before = layer.weight.detach() * layer.weight_scale
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(8, inputs)).square().sum().backward()
    optimizer.step()
    moved = (layer.weight.detach() * layer.weight_scale - before).abs()
    assert torch.allclose(moved, torch.tensor(0.1 * rate / math.sqrt(inputs)), rtol=1e-2)


def spread(features):
    """Zeros between the pixels: [C, H, W] -> [C, 2H, 2W]."""
    result = features.new_zeros(features.shape[0], 2 * features.shape[1], 2 * features.shape[2])
    result[:, ::2, ::2] = features
    return result


def reference_modulated(layer, features, style, upsample):
    """Sample by sample with weights of its own: equations 1 and 3 of the paper."""
    scales = F.linear(style, layer.affine.weight / math.sqrt(style.shape[1]), layer.affine.bias)
    row = torch.tensor(FILTER, dtype=features.dtype) / 4.0
    fir = torch.outer(row, row)
    images = []
    for sample, scale in zip(features, scales, strict=True):
        weight = layer.weight * scale[None, :, None, None]
        if layer.demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        else:
            weight = weight / math.sqrt(weight[0].numel())
        if upsample:
            turned = weight.flip(2, 3)  # a convolution in the mathematical sense
            wide = F.conv2d(F.pad(spread(sample), (2, 1, 2, 1))[None], turned)
            channels = wide.shape[1]
            image = F.conv2d(F.pad(wide, (1, 1, 1, 1)), fir.expand(channels, 1, 4, 4), groups=channels)[0]
        else:
            image = F.conv2d(sample[None], weight, padding=weight.shape[2] // 2)[0]
        images.append(
            layer.gain * (image + layer.bias[:, None, None]) if layer.demodulate else image + layer.bias[:, None, None]
        )
    return torch.stack(images)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel_size", "upsample"), [(3, False), (1, False), (3, True)])
def test_a_modulated_convolution_equals_one_with_weights_of_its_own_for_each_sample(kernel_size, upsample, demodulate):
    torch.manual_seed(0)
    gain = 1.7 if demodulate else 1.0
    layer = ModulatedConv2d(4, 6, kernel_size, style_dim=5, upsample=upsample, demodulate=demodulate, gain=gain).double()
    nn.init.normal_(layer.bias)
    features, style = torch.randn(3, 4, 5, 7, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    actual, expected = layer(features, style), reference_modulated(layer, features, style, upsample)
    assert actual.shape == ((3, 6, 10, 14) if upsample else (3, 6, 5, 7))
    assert torch.allclose(actual, expected, rtol=1e-7, atol=1e-7)  # the filter is made in float32


def test_demodulated_outputs_have_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    layer = ModulatedConv2d(64, 64, 3, style_dim=4, upsample=False, demodulate=True, gain=1.0)
    output = layer(torch.randn(8, 64, 16, 16), 5.0 * torch.randn(8, 4))[:, :, 1:-1, 1:-1]
    assert torch.allclose(output.std(dim=(1, 2, 3)), torch.tensor(1.0), atol=0.05)


def test_demodulation_is_as_exact_under_autocast():
    torch.manual_seed(0)
    layer = ModulatedConv2d(64, 8, 3, style_dim=4, upsample=False, demodulate=True, gain=1.0)
    features, style = torch.randn(2, 64, 8, 8), torch.randn(2, 4)
    expected = layer(features, style)
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(features, style)
    assert (actual - expected).std() / expected.std() < 0.01  # eight bits of weights, features and result


@pytest.mark.parametrize(("count", "group_size", "size"), [(6, 4, 3), (8, 4, 4), (7, 4, 1), (3, 32, 3), (1, 4, 1)])
def test_the_minibatch_standard_deviation_equals_a_loop_over_its_groups(count, group_size, size):
    torch.manual_seed(0)
    features = torch.randn(count, 3, 2, 4, dtype=torch.float64)
    result = MinibatchStandardDeviation(group_size)(features)
    assert torch.equal(result[:, :3], features)
    num_groups = count // size
    for sample in range(count):
        group = features[sample % num_groups :: num_groups]
        assert len(group) == size
        total = 0.0
        for value in group.flatten(1).T:
            total += math.sqrt(float(((value - value.mean()) ** 2).mean()) + 1e-8)
        assert torch.allclose(result[sample, 3], torch.tensor(total / 24, dtype=torch.float64), rtol=1e-9)


# Generator


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_the_wanted_size_and_one_logit_each(size, channels, num_classes):
    generator = tiny_generator(num_classes, image_size=size, channels=channels)
    height, width = (size, size) if isinstance(size, int) else size
    latent, condition = torch.randn(5, 6), conditions(5, num_classes)
    image = generator(latent, condition)
    assert image.shape == (5, channels, height, width)
    assert generator.map_latents(latent, condition).shape == (5, 2 * len(generator.blocks), 5)
    for architecture in ("plain", "residual"):
        discriminator = tiny_discriminator(num_classes, image_size=size, channels=channels, architecture=architecture)
        output = discriminator(image, condition)
        assert output.logits.shape == (5,)
        assert output.class_logits is None
        assert discriminator(image[:1], condition[:1]).logits.shape == (1,)


def test_channels_grow_away_from_the_image_up_to_the_limit():
    generator = tiny_generator(image_size=32, channel_base=128, channel_max=20)
    assert [block.to_image.weight.shape[1] for block in generator.blocks] == [20, 16, 8, 4]
    discriminator = tiny_discriminator(image_size=32, channel_base=128, channel_max=20)
    assert [block.main[0].weight.shape[1] for block in discriminator.blocks] == [4, 8, 16]


def test_normalisation_makes_the_second_moment_one():
    vector = normalise_second_moment(torch.randn(7, 50) * torch.logspace(-2, 2, 7)[:, None])
    assert torch.allclose(vector.square().mean(dim=1), torch.ones(7), rtol=1e-3)  # the least latent is 100 x 1e-4


@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_mapping_is_normalised_inputs_and_linear_layers_of_a_hundredth_of_the_rate(num_classes):
    generator = tiny_generator(num_classes).eval()
    latent, condition = torch.randn(4, 6), conditions(4, num_classes)
    joined = latent / latent.square().mean(dim=1, keepdim=True).sqrt()
    if num_classes:
        embedded = F.one_hot(condition, 3).float() @ generator.embedding.weight.t() / math.sqrt(3) + generator.embedding.bias
        joined = torch.cat([joined, embedded / embedded.square().mean(dim=1, keepdim=True).sqrt()], dim=1)
    for layer in (generator.styles[0], generator.styles[2]):
        joined = F.leaky_relu(0.01 * (joined @ layer.weight.t() / math.sqrt(joined.shape[1]) + layer.bias), 0.2) * math.sqrt(2)
    styles = generator.map_latents(latent, condition)
    assert torch.allclose(styles, joined[:, None].expand(-1, 6, -1), rtol=1e-4, atol=1e-6)
    assert torch.allclose(generator.map_latents(latent * 7.0, condition), styles, rtol=1e-4, atol=1e-6)


def test_the_average_style_follows_training_only():
    generator = tiny_generator()
    latent, condition = torch.randn(4, 6), conditions(4, 0)
    style = generator.eval().map_latents(latent, condition)[:, 0].mean(dim=0)
    assert not generator.style_average.any()
    generator.train()
    for _ in range(3):
        generator(latent, condition)
    assert torch.allclose(generator.style_average, (1 - 0.9**3) * style, rtol=1e-4, atol=1e-7)
    assert not generator.style_average.requires_grad


def test_the_average_style_is_that_of_all_processes(monkeypatch):
    generator = tiny_generator()
    latent, condition = torch.randn(4, 6), conditions(4, 0)
    monkeypatch.setattr(stylegan2, "sum_over_ranks", lambda tensor: tensor + 3.0)
    monkeypatch.setattr(stylegan2, "world_size", lambda: 2)
    style = generator.map_latents(latent, condition)[:, 0].mean(dim=0)
    assert torch.allclose(generator.style_average, 0.1 * (style + 3.0) / 2, rtol=1e-5)


def test_truncation_goes_from_the_average_styles_image_to_the_latents():
    generator = tiny_generator(3)
    latent, condition = torch.randn(4, 6), conditions(4, 3)
    generator(latent, condition)
    generator.eval()
    average = generator.synthesize(generator.style_average.expand(1, 6, -1))
    truncated = generator.synthesize(generator.map_latents(latent, condition, 0.0))
    assert torch.allclose(truncated, average.expand(4, -1, -1, -1), atol=1e-6)
    assert torch.equal(generator.map_latents(latent, condition, 1.0), generator.map_latents(latent, condition))
    half = 0.5 * (generator.style_average + generator.map_latents(latent, condition))
    assert torch.allclose(generator.map_latents(latent, condition, 0.5), half, atol=1e-6)


def mixed_styles(probability, count=64):
    """Whether each layer has its sample's own style, and whether it has that of the other latent: [N, L] twice."""
    generator = tiny_generator(3, style_mixing=probability)
    latent, condition = torch.randn(count, 6), conditions(count, 3)
    torch.manual_seed(1)
    other = torch.randn_like(latent)
    torch.manual_seed(1)
    styles = generator.map_latents(latent, condition)
    generator.eval()
    own, others = generator.map_latents(latent, condition), generator.map_latents(other, condition)
    return (styles == own).all(dim=2), (styles == others).all(dim=2)


def test_style_mixing_with_probability_one_gives_finer_layers_another_latents_style():
    own, other = mixed_styles(1.0)
    assert torch.equal(own, ~other)
    assert own[:, 0].all()
    assert other[:, -1].all()
    assert (own.int().diff(dim=1) <= 0).all()
    assert set(own.sum(dim=1).tolist()) == {1, 2, 3, 4, 5}  # a crossover for each sample


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_style_mixing_happens_as_often_as_its_probability(probability):
    own, _ = mixed_styles(probability, count=1000)
    assert (~own.all(dim=1)).float().mean().item() == pytest.approx(probability, abs=0.06)  # 4 standard deviations


def test_evaluation_neither_mixes_nor_follows_and_does_not_depend_on_the_batch():
    generator = tiny_generator(3, style_mixing=1.0).eval()
    latent, condition = torch.randn(5, 6), conditions(5, 3)
    image = generator(latent, condition)
    assert torch.equal(generator(latent, condition), image)
    alone = torch.cat([generator(latent[n : n + 1], condition[n : n + 1]) for n in range(5)])
    assert torch.allclose(alone, image, rtol=1e-4, atol=1e-5)
    assert not generator.style_average.any()


def test_noise_is_new_for_each_image_in_training():
    generator = tiny_generator()
    latent, condition = torch.randn(1, 6).expand(2, -1), conditions(2, 0)
    first, second = generator(latent, condition)
    assert not torch.allclose(first, second, atol=1e-3)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.zeros_(parameter)
    first, second = generator(latent, condition)
    assert torch.allclose(first, second, atol=1e-5)


# Both


def networks_and_inputs(num_classes=3):
    condition = conditions(4, num_classes)
    return [
        (tiny_generator(num_classes), (torch.randn(4, 6), condition)),
        (tiny_discriminator(num_classes), (torch.randn(4, 3, 16, 16), condition)),
        (tiny_discriminator(num_classes, architecture="residual"), (torch.randn(4, 3, 16, 16), condition)),
    ]


def output(network, inputs):
    result = network(*inputs)
    return result if isinstance(result, torch.Tensor) else result.logits


def test_states_and_copies_give_the_same_outputs():
    for network, inputs in networks_and_inputs():
        output(network, inputs)  # moves the average style
        network.eval()
        torch.manual_seed(5)
        fresh = copy.deepcopy(network)
        for parameter in fresh.parameters():
            nn.init.normal_(parameter)
        twin = copy.deepcopy(network)
        fresh.load_state_dict(network.state_dict())
        assert torch.equal(output(fresh, inputs), output(network, inputs))
        assert torch.equal(output(twin, inputs), output(network, inputs))
        if isinstance(network, Generator):
            assert torch.equal(fresh.map_latents(*inputs, 0.3), network.map_latents(*inputs, 0.3))


def test_outputs_under_autocast_are_float32_and_near():
    for network, inputs in networks_and_inputs():
        network.eval()
        expected = output(network, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            actual = output(network, inputs)
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() / expected.norm() < 0.05


def test_channels_last_changes_the_memory_only():
    for network, inputs in networks_and_inputs():
        network.eval()
        expected = output(network, inputs)
        seen = []
        block = network.to(memory_format=torch.channels_last).blocks[-1]
        block.register_forward_hook(lambda _, __, result, seen=seen: seen.append(result))
        assert torch.allclose(output(network, inputs), expected, rtol=1e-4, atol=1e-4)
        features = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_second_derivatives_of_the_discriminator_are_those_of_finite_differences(architecture):
    discriminator = tiny_discriminator(
        2, image_size=8, channels=1, architecture=architecture, channel_base=16, channel_max=2, group_size=2
    ).double()
    image, condition = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True), conditions(2, 2)
    assert torch.autograd.gradgradcheck(lambda x: discriminator(x, condition).logits, image)

    names = ["blocks.0.main.3.weight", "epilogue.1.weight", "embedding.weight"]
    weights = [discriminator.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def r1(*values):
        output = functional_call(discriminator, dict(zip(names, values, strict=True)), (image, condition))
        (gradient,) = torch.autograd.grad(output.logits.sum(), image, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(r1, weights)


def test_second_derivatives_of_the_synthesis_are_those_of_finite_differences():
    generator = tiny_generator(image_size=8, channels=1, style_dim=2, channel_base=16, channel_max=2).double().eval()
    styles = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(generator.synthesize, styles)
    assert torch.autograd.gradgradcheck(generator.synthesize, styles)


def test_every_parameter_learns():
    for network, inputs in networks_and_inputs():
        output(network, inputs).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_generator(normalisation="batch"), "normalisation=batch"),
        (lambda: tiny_generator(3, normalisation="conditional_batch"), "normalisation=conditional_batch"),
        (lambda: tiny_generator(style_mixing=1.5), "style_mixing=1.5"),
        (lambda: tiny_generator(num_mapping_layers=0), "num_mapping_layers=0"),
        (lambda: tiny_generator(image_size=7), "image_size"),
        (lambda: tiny_generator(channel_base=15), "channel_base"),
        (lambda: tiny_discriminator(3, head="concat"), "head=concat"),
        (lambda: tiny_discriminator(3, head="auxiliary_classifier"), "head=auxiliary_classifier"),
        (lambda: tiny_discriminator(3, head="none"), "head=none"),
        (lambda: tiny_discriminator(0, head="projection"), "head=projection"),
        (lambda: tiny_discriminator(architecture="skip"), "residual"),
        (lambda: tiny_discriminator(image_size=[16, 9]), "image_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with raises(ValueError, word=message):
        make()


# Noise of every pixel when sampling


def sampled_gan(strength: float = 0.3) -> GAN:
    generator = tiny_generator()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, strength)
    return tiny.gan(generator=generator, discriminator=tiny_discriminator(), latent=Normal(dim=6))


def test_a_samples_noise_depends_on_seed_and_index_alone():
    gan = sampled_gan()
    whole = gan.sample(gan.draw(range(6), 3))
    for indices in ([0], [4, 1], [5, 0, 2]):
        part = gan.sample(gan.draw(indices, 3))
        torch.testing.assert_close(part, whole[indices], rtol=0, atol=1e-5)
    assert torch.equal(gan.sample(gan.draw(range(6), 3)), whole)


def test_the_same_latent_has_other_noise_at_another_index_and_seed():
    gan = sampled_gan()
    drawn = gan.draw(range(2), 3)
    one = {"latent": drawn["latent"][:1].repeat(3, 1)}
    keys = torch.cat([drawn["noise_key"], gan.draw([0], 4)["noise_key"]])
    images = gan.sample(one | {"noise_key": keys})
    fixed = gan.sample(one)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (images[first] - images[second]).abs().mean() > 1e-3
    torch.testing.assert_close(fixed[0], fixed[1], rtol=0, atol=1e-5)


def test_noise_modes_of_a_draw():
    gan, still = sampled_gan(), sampled_gan(0.0)
    drawn = gan.draw(range(3), 5)
    assert torch.equal(gan.sample(drawn), gan.sample(drawn, StyleOptions()))
    expected = copy.deepcopy(gan.generator).eval()(drawn["latent"], torch.empty(3, 0))  # the buffers
    assert torch.equal(gan.sample(drawn, StyleOptions(noise="const")), expected)
    torch.testing.assert_close(gan.sample(drawn, StyleOptions(noise="none")), still.sample(drawn), rtol=0, atol=1e-5)
    assert not torch.allclose(gan.sample(drawn), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"^noise=loud"):
        StyleOptions(noise="loud")
    assert (gan.sampling_options, tiny.gan().sampling_options) == (StyleOptions(), LatentOptions())


def test_noise_is_normal_and_of_its_own_for_every_layer_pixel_and_sample():
    generator = tiny_generator()
    keys = torch.from_numpy(hash_integers(1, np.arange(400)).view(np.int64))
    fields = [field for number in range(len(generator.blocks)) for field in generator._noise(number, keys, 1.0)]
    assert [tuple(field.shape[1:]) for field in fields] == [
        (1, *layer.noise.shape[2:]) for block in generator.blocks for layer in block.layers
    ]
    for field in fields:
        assert stats.kstest(field.double().flatten().numpy()[:20_000], stats.norm.cdf).pvalue > 1e-3
    flat = torch.cat([field.flatten(1)[:, :16] for field in fields], dim=1)  # [400, layers x 16]
    correlation = torch.corrcoef(flat.t()).fill_diagonal_(0).abs().max()
    assert correlation < 5 / 400**0.5
    assert len(torch.unique(flat[:, 0])) == 400
    halved = generator._noise(1, keys, 0.5)
    assert all(torch.equal(half, 0.5 * whole) for half, whole in zip(halved, generator._noise(1, keys, 1.0), strict=True))
