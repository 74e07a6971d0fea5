import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genimg.networks.conditioning import OneHot
from genimg.networks.diffusion_unet import DiffusionUNet
from genimg.networks.directional_derivative import directional_derivative
from genimg.networks.dit import DiT

UNET = {
    "channels": 3, "image_size": 8, "width": 16, "multipliers": [1, 2], "num_blocks": 1, "attention_sizes": [8],
    "channels_per_head": None, "dropout": 0.0, "patch_size": 1, "num_times": 2, "augment_dim": 0,
}  # fmt: skip
NETWORKS = {
    "ddpm": lambda condition: DiffusionUNet(condition=condition, architecture="ddpm", resampling="convolution", **UNET),
    "ddpmpp": lambda condition: DiffusionUNet(condition=condition, architecture="ddpmpp", resampling="binomial", **UNET),
    "adm": lambda condition: DiffusionUNet(condition=condition, architecture="adm", resampling="box", **UNET),
    "dit": lambda condition: DiT(
        channels=3, image_size=8, condition=condition, width=16, depth=1, num_heads=2, architecture="dit", dropout=0.0,
        patch_size=2, num_times=2, augment_dim=0,
    ),
    "llama": lambda condition: DiT(
        channels=3, image_size=8, condition=condition, width=16, depth=1, num_heads=2, architecture="llama", dropout=0.0,
        patch_size=2, num_times=2, augment_dim=0,
    ),
}  # fmt: skip


def case(name, dtype=torch.float64):
    """A network whose every layer matters, as a function of the image and its times, with inputs and directions."""
    torch.manual_seed(0)
    network = NETWORKS[name](OneHot(num_classes=3)).to(dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    labels = torch.tensor([0, 2])
    inputs = torch.randn(2, 3, 8, 8, dtype=dtype), torch.rand(2, 2, dtype=dtype)
    directions = torch.randn(2, 3, 8, 8, dtype=dtype), torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=dtype)
    return (lambda image, time: network(image, time, labels)), inputs, directions, network


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_derivative_that_torch_computes(name, memory_format):
    function, (image, time), directions, network = case(name)
    network.to(memory_format=memory_format)
    image = image.contiguous(memory_format=memory_format)
    value, slope = directional_derivative(function, (image, time), directions)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, (image, time), directions)
    torch.testing.assert_close(value, expected[0], rtol=1e-9, atol=1e-11)
    # The embedding of times is float32 in any case.
    torch.testing.assert_close(slope, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpmpp", "dit"])
def test_it_agrees_with_finite_differences(name):
    function, (image, time), (along, _), _ = case(name)
    still = torch.zeros_like(time)  # the embedding of times is float32, too coarse for differences
    _, slope = directional_derivative(function, (image, time), (along, still))
    with torch.no_grad():
        difference = (function(image + 1e-5 * along, time) - function(image - 1e-5 * along, time)) / 2e-5
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


def test_the_result_is_float32_and_has_no_graph_under_autocast():
    function, inputs, directions, _ = case("ddpmpp", torch.float32)
    exact = directional_derivative(function, inputs, directions)
    with torch.autocast("cpu", torch.bfloat16):
        found = directional_derivative(function, inputs, directions)
    assert all(torch.equal(one, other) and not one.requires_grad for one, other in zip(found, exact, strict=True))


def test_a_function_that_ignores_its_inputs_has_the_derivative_zero():
    value, slope = directional_derivative(lambda x: torch.ones(2), (torch.zeros(2),), (torch.ones(2),))
    assert (value.tolist(), slope.tolist()) == ([1.0, 1.0], [0.0, 0.0])
