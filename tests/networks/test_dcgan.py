import pytest
import tiny
import torch
from errors import raises
from torch import nn

SIZES = [(64, 3), (32, 3), (28, 1), ([48, 32], 3), ([16, 40], 4)]


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_at_64_pixels_are_those_of_pytorch_examples():
    assert num_parameters(tiny.generator(latent_dim=100, image_size=64, channels=3, width=64)) == 3_576_704
    assert num_parameters(tiny.discriminator(image_size=64, channels=3, width=64)) == 2_765_568


def reference_generator(latent_dim: int, width: int) -> nn.Module:
    """The layers of pytorch/examples' dcgan at 64 pixels."""
    layers = []
    inputs = latent_dim
    for multiple, stride, padding in ((8, 1, 0), (4, 2, 1), (2, 2, 1), (1, 2, 1)):
        outputs = width * multiple
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def reference_discriminator(width: int) -> nn.Module:
    layers = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for multiple in (1, 2, 4):
        inputs, outputs = width * multiple, width * multiple * 2
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, 1, 0, bias=False))


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    values = source.state_dict().values()
    state = {name: value.view(old.shape) for (name, old), value in zip(target.state_dict().items(), values, strict=True)}
    target.load_state_dict(state)


def test_generator_computes_what_pytorch_examples_computes():
    torch.manual_seed(0)
    generator, reference = tiny.generator(latent_dim=10, image_size=64, channels=3, width=8), reference_generator(10, 8)
    copy_weights(generator, reference)
    latent = torch.randn(3, 10)
    assert torch.allclose(generator(latent, tiny.no_condition(3)), reference(latent[:, :, None, None]), rtol=1e-5, atol=1e-6)


def test_discriminator_computes_the_logits_of_pytorch_examples():
    torch.manual_seed(0)
    discriminator, reference = tiny.discriminator(image_size=64, channels=3, width=8), reference_discriminator(8)
    copy_weights(discriminator, reference)
    image = torch.rand(3, 3, 64, 64) * 2 - 1
    assert torch.allclose(discriminator(image, tiny.no_condition(3)).logits, reference(image).view(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_the_wanted_size_in_range_and_one_logit_each(size, channels):
    torch.manual_seed(0)
    generator = tiny.generator(latent_dim=6, image_size=size, channels=channels, width=4)
    discriminator = tiny.discriminator(image_size=size, channels=channels, width=4)
    images = generator(torch.randn(5, 6) * 10, tiny.no_condition(5))
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (5, channels, height, width)
    assert images.abs().max() <= 1
    assert discriminator(images, tiny.no_condition(5)).logits.shape == (5,)
    assert discriminator(images[:1], tiny.no_condition(1)).logits.shape == (1,)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_layers_next_to_the_image_have_the_width_at_every_size(size, channels):
    generator = tiny.generator(latent_dim=6, image_size=size, channels=channels, width=4)
    discriminator = tiny.discriminator(image_size=size, channels=channels, width=4)
    transposed = [layer for layer in generator.modules() if isinstance(layer, nn.ConvTranspose2d)]
    convolutions = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]
    widths = [4 * 2**level for level in range(len(convolutions))]
    assert [layer.out_channels for layer in convolutions] == widths
    assert [layer.in_channels for layer in transposed] == [6, *reversed(widths)]


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    generator = tiny.generator(latent_dim=6, image_size=16, channels=1, width=4).eval()
    latent = torch.randn(4, 6)
    assert torch.allclose(
        generator(latent, tiny.no_condition(4))[:1], generator(latent[:1], tiny.no_condition(1)), rtol=0, atol=1e-6
    )


def test_weights_start_as_radford_et_al_say():
    torch.manual_seed(0)
    for network in (
        tiny.generator(latent_dim=100, image_size=32, channels=3, width=32),
        tiny.discriminator(image_size=32, channels=3, width=32),
    ):
        weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        values = torch.cat([weight.flatten() for weight in weights])
        assert values.std().item() == pytest.approx(0.02, rel=0.02)
        scales = torch.cat([layer.weight for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)])
        assert scales.mean().item() == pytest.approx(1.0, abs=0.01)
        assert scales.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("size", [30, 8, [64, 30], [8, 64]])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size):
    for build in (
        lambda: tiny.generator(latent_dim=4, image_size=size, channels=3, width=4),
        lambda: tiny.discriminator(image_size=size, channels=3, width=4),
    ):
        with raises(ValueError, "image_size", word="nearest"):
            build()
