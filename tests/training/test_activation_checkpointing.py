import copy
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from genimg.networks.conditioning import Unconditional
from genimg.networks.layers import ConditionalBatchNorm2d
from genimg.networks.resnet_gan import Features, Generator
from genimg.networks.stylegan2 import Generator as StyleGenerator
from genimg.training.activation_checkpointing import recompute_blocks


def residual_generator(spectral_norm: bool) -> Generator:
    return Generator(
        latent_dim=5, condition=Unconditional(), image_size=16, channels=1, widths=[8], bottom_size=4, attention_at=None,
        normalisation="batch", initialisation="xavier", spectral_norm=spectral_norm,
    )  # fmt: skip


def style_generator() -> StyleGenerator:
    return StyleGenerator(
        latent_dim=8, condition=Unconditional(), normalisation="modulation", image_size=16, channels=1, style_dim=8,
        num_mapping_layers=2, channel_base=64, channel_max=8, style_mixing=0.0, style_average_decay=0.9, conv_clamp=256.0,
    )  # fmt: skip


def trained(network: nn.Module, latents: list[torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Gradients of several forwards before one backward, as a discriminator's, and what the forwards left behind."""
    torch.manual_seed(5)
    network.train()
    loss = sum(network(latent, tiny.no_condition(len(latent))).square().mean() for latent in latents)
    gradients = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    return [g for g in gradients if g is not None], network.state_dict()


@pytest.mark.parametrize(
    "make",
    [lambda: residual_generator(False), lambda: residual_generator(True), style_generator],
    ids=["batch norm", "spectral", "style"],
)
def test_gradients_and_buffers_are_those_of_the_plain_forward_bit_for_bit(make):
    torch.manual_seed(0)
    plain = make()
    again = copy.deepcopy(plain)
    assert recompute_blocks(again) == len(plain.blocks)
    latents = [torch.randn(3, 5 if isinstance(plain, Generator) else 8) for _ in range(2)]
    expected, state = trained(plain, latents)
    found, found_state = trained(again, latents)
    assert len(found) == len(expected) > 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found_state.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found_state[name], value), name


def test_less_is_kept_for_the_backward_pass():
    def kept(network: nn.Module) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            network(torch.randn(8, 5), tiny.no_condition(8)).sum()
        return sum(sizes)

    torch.manual_seed(0)
    plain = residual_generator(False)
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    assert kept(again) < 0.5 * kept(plain)


def test_second_derivatives_of_a_penalty_are_the_same():
    torch.manual_seed(0)
    plain = Features(
        image_size=16, channels=1, condition_channels=0, widths=[8], bottom_size=4, num_flat_blocks=1, wide=False,
        attention_at=None, normalisation="none", pooling="sum",
    )  # fmt: skip
    again = copy.deepcopy(plain)
    assert recompute_blocks(again) > 0
    results = []
    for network in (plain, again):
        images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
        weights = list(network.parameters())
        results.append(torch.autograd.grad(gradient.square().sum(), weights, allow_unused=True))
    used = [(a, b) for a, b in zip(*results, strict=True) if a is not None or b is not None]
    assert len(used) > 3
    for a, b in used:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_nothing_is_recomputed_in_evaluation_mode_or_without_gradients():
    network = residual_generator(False)
    before = network.blocks[0].forward
    recompute_blocks(network)
    assert network.blocks[0].forward is not before
    network.eval()
    latent = torch.randn(2, 5)
    with torch.no_grad():
        assert torch.equal(network(latent, tiny.no_condition(2)), network(latent, tiny.no_condition(2)))
    assert not any(isinstance(layer, ConditionalBatchNorm2d) for layer in network.modules())
