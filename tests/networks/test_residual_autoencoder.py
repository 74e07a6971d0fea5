import pytest
import torch
from errors import raises
from torch import nn

from genimg.losses.likelihoods import Gaussian, GaussianPerPixel
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.residual_autoencoder import Decoder, Encoder, ResidualBlock

SIZES = [(64, 3), (32, 3), (28, 1), ([48, 32], 3), ([16, 40], 4)]
NONE = Unconditional()


def pair(size=16, channels: int = 1, condition=NONE, likelihood=None, **changes) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    settings = {
        "image_size": size, "channels": channels, "condition": condition, "latent_dim": 6, "widths": [4, 8],
        "num_blocks": 2, "normalisation": "batch",
    } | changes  # fmt: skip
    likelihood = likelihood or Gaussian(scale=1.0, learnt=False)
    return Encoder(**settings, moments=2), Decoder(**settings, likelihood=likelihood)


def images(count: int, channels: int, size) -> torch.Tensor:
    return torch.rand(count, channels, *((size, size) if isinstance(size, int) else size)) * 2 - 1


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("normalisation", ["batch", "none"])
@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_encoder_gives_two_moments_and_decoder_an_image(size, channels, normalisation):
    encoder, decoder = pair(size, channels, normalisation=normalisation)
    image = images(3, channels, size)
    moments = encoder(image, torch.empty(3, 0))
    assert moments.shape == (3, 2, 6)
    assert decoder(moments[:, 0], torch.empty(3, 0)).shape == image.shape


def test_the_likelihood_decides_about_the_outputs():
    _, decoder = pair(channels=3, likelihood=GaussianPerPixel(least_scale=0.1))
    assert decoder(torch.randn(2, 6), torch.empty(2, 0)).shape == (2, 6, 16, 16)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_parameter_counts_by_hand(num_blocks):
    encoder, decoder = pair(28, 1, widths=[4, 8, 16], num_blocks=num_blocks)  # 28 -> 14 -> 7

    def convolution(inputs, outputs, size=3):
        return (inputs * size * size + 1) * outputs

    def block(inputs, outputs):
        norms = 2 * inputs + 2 * outputs
        shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
        return norms + convolution(inputs, outputs) + convolution(outputs, outputs) + shortcut

    flat, same = 16 * 7 * 7, (num_blocks - 1) * (block(4, 4) + block(8, 8) + block(16, 16))
    norm = {"encoder": 2 * 16, "decoder": 2 * 4}
    down, up = block(4, 8) + block(8, 16), block(16, 8) + block(8, 4)
    assert num_parameters(encoder) == convolution(1, 4) + same + down + norm["encoder"] + (flat + 1) * 2 * 6
    assert num_parameters(decoder) == (6 + 1) * flat + same + up + norm["decoder"] + convolution(4, 1)
    assert len(encoder.blocks) == len(decoder.blocks) == 3 * (num_blocks - 1) + 2


@pytest.mark.parametrize("resampling", ["none", "down", "up"])
def test_a_block_begins_as_its_shortcut_and_is_the_papers_sum(resampling):
    torch.manual_seed(1)
    block = ResidualBlock(3, 5, normalisation="batch", resampling=resampling).eval()
    features = torch.randn(2, 3, 8, 8)
    project = next(layer for layer in block.shortcut if isinstance(layer, nn.Conv2d))
    shortcut = project(features)
    resample = {"none": lambda x: x, "down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2)}[resampling]
    assert torch.allclose(
        block(features), resample(shortcut) + block.residual[-1 if resampling != "down" else -2].bias[:, None, None], atol=1e-6
    )
    first, second = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)]
    nn.init.normal_(second.weight)
    inner = torch.relu(features / (1 + 1e-5) ** 0.5)
    inner = first(resample(inner) if resampling == "up" else inner)
    inner = second(torch.relu(inner / (1 + 1e-5) ** 0.5))
    expected = (resample(inner) if resampling == "down" else inner) + resample(shortcut)
    assert torch.allclose(block(features), expected, atol=1e-4)


def test_a_block_that_changes_nothing_has_a_plain_shortcut():
    block = ResidualBlock(4, 4, normalisation="none", resampling="none")
    assert len(block.shortcut) == 0
    features = torch.randn(2, 4, 8, 8)
    last = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)][-1]
    assert torch.allclose(block(features), features + last.bias[:, None, None], atol=1e-6)


def test_decoder_output_is_unbounded():
    _, decoder = pair()
    nn.init.constant_(decoder.output[-1].bias, 7.0)
    assert decoder(torch.randn(4, 6), torch.empty(4, 0)).mean().item() > 5


def test_labels_reach_both_networks():
    encoder, decoder = pair(condition=OneHot(num_classes=3))
    image, labels = images(2, 1, 16)[:1].repeat(2, 1, 1, 1), torch.tensor([0, 2])
    one, other = encoder.eval()(image, labels)
    assert not torch.allclose(one, other)
    one, other = decoder.eval()(torch.zeros(2, 6), labels)
    assert not torch.allclose(one, other)


def test_in_evaluation_mode_an_image_does_not_depend_on_its_batch():
    encoder, decoder = (network.eval() for network in pair(16, 3))
    image, nothing = images(4, 3, 16), torch.empty(4, 0)
    assert torch.allclose(encoder(image, nothing)[:1], encoder(image[:1], nothing[:1]), rtol=0, atol=1e-6)
    latent = torch.randn(4, 6)
    assert torch.allclose(decoder(latent, nothing)[:1], decoder(latent[:1], nothing[:1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_every_parameter_receives_a_gradient(normalisation):
    encoder, decoder = pair(16, 3, normalisation=normalisation)
    for network in (encoder, decoder):
        for block in network.blocks:  # they begin at 0, which keeps gradients from what lies before
            nn.init.normal_([layer for layer in block.residual if isinstance(layer, nn.Conv2d)][-1].weight, 0.0, 0.1)
    nothing = torch.empty(4, 0)
    decoder(encoder(images(4, 3, 16), nothing).sum(dim=1), nothing).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        if normalisation == "none" or not name.endswith("bias"):  # batch norm takes away the biases before it
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [30, 8, [64, 30]])
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size):
    with raises(ValueError, "image_size", word="nearest"):
        pair(size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"normalisation": "layer"}, "normalisation=layer"),
        ({"widths": []}, "widths=[]"),
        ({"widths": [4, 4, 4, 4]}, "widths"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with raises(ValueError, word=message):
        pair(**changes)
