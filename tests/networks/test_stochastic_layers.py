import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.networks.stochastic_layers import StochasticLayer


def layer(**changes) -> StochasticLayer:
    torch.manual_seed(0)
    return StochasticLayer(**({"below": 5, "latent_dim": 3, "widths": [8, 6], "activation": "tanh"} | changes))


def test_both_ways_are_perceptrons_whose_outputs_are_means_and_then_log_variances():
    network = layer()
    below, above = torch.randn(4, 5), torch.randn(4, 3)
    for way, start, found, dim in (
        (network.up, below, network.infer(below), 3),
        (network.down, above, network.generate(above), 5),
    ):
        linear = [module for module in way if isinstance(module, nn.Linear)]
        x = start
        for each in linear[:-1]:
            x = torch.tanh(x @ each.weight.T + each.bias)
        x = x @ linear[-1].weight.T + linear[-1].bias
        assert [each.shape for each in found] == [(4, dim)] * 2
        assert torch.allclose(torch.cat(found, dim=1), x, rtol=1e-5, atol=1e-6)
    assert (network.below, network.latent_dim) == (5, 3)


def test_parameter_counts_by_hand():
    counts = [sum(parameter.numel() for parameter in way.parameters()) for way in (layer().up, layer().down)]
    assert counts == [6 * 8 + 9 * 6 + 7 * 6, 4 * 8 + 9 * 6 + 7 * 10]


def test_without_hidden_layers_both_ways_are_linear():
    assert [len(way) for way in (layer(widths=[]).up, layer(widths=[]).down)] == [1, 1]


def test_moments_are_float32_whatever_the_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert [each.dtype for each in layer().infer(torch.randn(4, 5))] == [torch.float32] * 2
        assert [each.dtype for each in layer().generate(torch.randn(4, 3))] == [torch.float32] * 2


@pytest.mark.parametrize("latent_dim", [0, -2])
def test_a_layer_without_latents_is_refused(latent_dim):
    with raises(ConfigError, f"latent_dim={latent_dim}"):
        layer(latent_dim=latent_dim)


def test_an_unknown_activation_is_refused():
    with raises(ValueError, "activation=maxout"):
        layer(activation="maxout")
