import copy
import math

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import nn

from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.r3gan import Block, Discriminator, Generator
from genimg.networks.resampling import Downsample, Upsample

SIZES = [(8, 3), (32, 3), (28, 1), ([16, 24], 4)]


def settings_for(num_classes, changes):
    torch.manual_seed(0)
    encoder = OneHot(num_classes=num_classes) if num_classes else Unconditional()
    settings = {
        "condition": encoder,
        "image_size": 16,
        "channels": 3,
        "widths": [8],
        "num_blocks": 2,
        "expansion": 2,
        "group_width": 4,
    }
    return settings | changes


def tiny_generator(num_classes=0, **changes):
    return Generator(**settings_for(num_classes, {"latent_dim": 6, "normalisation": "none"} | changes))


def tiny_discriminator(num_classes=0, **changes):
    return Discriminator(**settings_for(num_classes, {"head": "projection" if num_classes else "none"} | changes))


def conditions(count, num_classes):
    return torch.arange(count) % num_classes if num_classes else torch.zeros(count, 0)


def started(network):
    """With all weights at work: at the start, every block's last ones are 0."""
    for block in network.modules():
        if isinstance(block, Block):
            nn.init.normal_(block.contract.weight, 0.0, 0.2)
            nn.init.normal_(block.expand.bias)
            nn.init.normal_(block.mix.bias)
    return network


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_for_cifar_are_those_of_the_papers_code():
    sizes = {"image_size": 32, "widths": [768], "group_width": 16}
    with torch.device("meta"):
        assert num_parameters(tiny_generator(10, latent_dim=64, **sizes)) == 20_781_952
        assert num_parameters(tiny_discriminator(10, **sizes)) == 21_280_512


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_the_wanted_size_and_one_logit_each(size, channels, num_classes):
    generator = started(tiny_generator(num_classes, image_size=size, channels=channels, widths=[4, 8]))
    discriminator = started(tiny_discriminator(num_classes, image_size=size, channels=channels, widths=[4, 8]))
    height, width = (size, size) if isinstance(size, int) else size
    condition = conditions(5, num_classes)
    image = generator(torch.randn(5, 6), condition)
    assert image.shape == (5, channels, height, width)
    output = discriminator(image, condition)
    assert output.logits.shape == (5,)
    assert output.class_logits is None
    assert discriminator(image[:1], condition[:1]).logits.shape == (1,)


def test_a_block_is_the_identity_at_the_start_and_its_weights_scale_with_the_depth():
    torch.manual_seed(0)
    block = Block(32, expansion=2, group_width=16, depth=16)
    features = torch.randn(2, 32, 5, 4)
    assert torch.equal(block(features), features)
    gain = math.sqrt(2 / 1.04) * 16 ** (-1 / 4)
    assert block.expand.weight.std().item() == pytest.approx(gain / math.sqrt(32), rel=0.05)
    assert block.mix.weight.std().item() == pytest.approx(gain / math.sqrt(16 * 9), rel=0.05)
    assert block.mix.groups == 4
    assert not block.expand.bias.any()
    assert not block.mix.bias.any()


def test_a_block_adds_three_convolutions_around_leaky_relus():
    torch.manual_seed(0)
    block = started(nn.ModuleList([Block(4, expansion=3, group_width=6, depth=1)]))[0]
    features = torch.randn(2, 4, 5, 4)
    inner = F.leaky_relu(
        torch.einsum("oi,nihw->nohw", block.expand.weight[:, :, 0, 0], features) + block.expand.bias[:, None, None], 0.2
    )
    halves = [F.conv2d(inner[:, i : i + 6], block.mix.weight[i : i + 6], padding=1) for i in (0, 6)]
    inner = F.leaky_relu(torch.cat(halves, dim=1) + block.mix.bias[:, None, None], 0.2)
    expected = features + torch.einsum("oi,nihw->nohw", block.contract.weight[:, :, 0, 0], inner)
    assert torch.allclose(block(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_at_the_start_only_the_ends_and_the_resampling_are_at_work(num_classes):
    generator, discriminator = tiny_generator(num_classes), tiny_discriminator(num_classes)
    latent, condition = torch.randn(4, 6), conditions(4, num_classes)
    up, down = Upsample((1, 3, 3, 1)), Downsample((1, 3, 3, 1))  # [1, 2, 1] and a box

    joined = torch.cat([latent, generator.embedding.weight.t()[condition]], dim=1) if num_classes else latent
    features = generator.basis * (joined @ generator.scale.weight.t())[:, :, None, None]
    expected = torch.einsum("oi,nihw->nohw", generator.to_image.weight[:, :, 0, 0], up(up(features)))
    image = generator(latent, condition)
    assert torch.allclose(image, expected, rtol=1e-4, atol=1e-5)

    features = down(down(torch.einsum("oi,nihw->nohw", discriminator.from_image.weight[:, :, 0, 0], image)))
    features = (features * discriminator.basis.weight[:, 0]).sum(dim=(2, 3)) @ discriminator.logit.weight.t()
    expected = (features * discriminator.embedding.weight.t()[condition]).sum(dim=1) if num_classes else features[:, 0]
    assert torch.allclose(discriminator(image, condition).logits, expected, rtol=1e-4, atol=1e-5)


def test_all_weights_start_with_the_variance_of_their_fan_in():
    generator = tiny_generator(3, latent_dim=200, widths=[128], group_width=16, channels=8)
    discriminator = tiny_discriminator(3, widths=[128], group_width=16, channels=8)
    assert generator.basis.std().item() == pytest.approx(1.0, rel=0.06)  # 2,048 values
    assert generator.scale.weight.std().item() == pytest.approx(1 / math.sqrt(400), rel=0.06)
    assert generator.embedding.weight.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.12)  # 600 values
    assert generator.to_image.weight.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.1)
    assert discriminator.from_image.weight.std().item() == pytest.approx(1 / math.sqrt(8), rel=0.1)
    assert discriminator.basis.weight.std().item() == pytest.approx(1 / 4, rel=0.06)
    assert discriminator.logit.weight.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.06)
    assert discriminator.embedding.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.15)  # 384 values
    blocks = [module for module in generator.modules() if isinstance(module, Block)]
    gain = math.sqrt(2 / 1.04) * len(blocks) ** (-1 / 4)
    assert len(blocks) == 6
    assert blocks[3].expand.weight.std().item() == pytest.approx(gain / math.sqrt(128), rel=0.06)


def test_widths_are_counted_from_the_image_and_the_last_holds_beyond():
    def outer_widths(network):
        return [stage_block.expand.in_channels for stage_block in network.modules() if isinstance(stage_block, Block)]

    settings = {"image_size": 32, "widths": [4, 8, 16], "num_blocks": 1}
    assert outer_widths(tiny_generator(**settings)) == [16, 16, 8, 4]
    assert outer_widths(tiny_discriminator(**settings)) == [4, 8, 16, 16]


def networks_and_inputs(num_classes=3, **changes):
    condition = conditions(4, num_classes)
    return [
        (started(tiny_generator(num_classes, **changes)), (torch.randn(4, 6), condition)),
        (started(tiny_discriminator(num_classes, **changes)), (torch.randn(4, 3, 16, 16), condition)),
    ]


def output(network, inputs):
    result = network(*inputs)
    return result if isinstance(result, torch.Tensor) else result.logits


def test_outputs_do_not_depend_on_the_batch():
    for network, (first, condition) in networks_and_inputs():
        whole = output(network, (first, condition))
        alone = torch.cat([output(network, (first[n : n + 1], condition[n : n + 1])) for n in range(4)])
        assert torch.equal(output(network, (first, condition)), whole)
        assert torch.allclose(alone, whole, rtol=1e-4, atol=1e-5)


def test_states_and_copies_give_the_same_outputs():
    for network, inputs in networks_and_inputs(widths=[4, 8]):
        fresh = copy.deepcopy(network)
        for parameter in fresh.parameters():
            nn.init.normal_(parameter)
        fresh.load_state_dict(network.state_dict())
        assert torch.equal(output(fresh, inputs), output(network, inputs))
        assert torch.equal(output(copy.deepcopy(network), inputs), output(network, inputs))


def test_outputs_under_autocast_are_float32_and_near():
    for network, inputs in networks_and_inputs(widths=[4, 8]):
        expected = output(network, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            actual = output(network, inputs)
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() / expected.norm() < 0.03


def test_channels_last_changes_the_memory_only():
    for network, inputs in networks_and_inputs():
        expected = output(network, inputs)
        seen = []
        stage = network.to(memory_format=torch.channels_last).blocks[1]
        stage.register_forward_hook(lambda _, __, result, seen=seen: seen.append(result))
        assert torch.allclose(output(network, inputs), expected, rtol=1e-4, atol=1e-4)
        assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_second_derivatives_of_the_discriminator_are_those_of_finite_differences():
    discriminator = tiny_discriminator(2, image_size=8, channels=1, widths=[2], num_blocks=1, group_width=2)
    discriminator = started(discriminator).double()
    image, condition = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True), conditions(2, 2)
    assert torch.autograd.gradgradcheck(lambda x: discriminator(x, condition).logits, image)

    names = ["blocks.0.0.mix.weight", "blocks.1.0.expand.weight", "logit.weight", "from_image.weight"]
    weights = [discriminator.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def r1(*values):
        parameters = dict(zip(names, values, strict=True))
        output = torch.func.functional_call(discriminator, parameters, (image, condition))
        (gradient,) = torch.autograd.grad(output.logits.sum(), image, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(r1, weights)


def test_every_parameter_learns():
    for network, inputs in networks_and_inputs(widths=[4, 8]):
        output(network, inputs).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_generator(normalisation="batch"), "normalisation=batch"),
        (lambda: tiny_generator(3, normalisation="conditional_batch"), "normalisation=conditional_batch"),
        (lambda: tiny_generator(widths=[8, 8, 8, 8]), "numbers"),
        (lambda: tiny_discriminator(widths=[]), "numbers"),
        (lambda: tiny_generator(group_width=3), "group_width=3"),
        (lambda: tiny_generator(image_size=7), "image_size"),
        (lambda: tiny_discriminator(3, head="concat"), "head=concat"),
        (lambda: tiny_discriminator(3, head="none"), "head=none"),
        (lambda: tiny_discriminator(0, head="projection"), "head=projection"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with raises(ValueError, word=message):
        make()
