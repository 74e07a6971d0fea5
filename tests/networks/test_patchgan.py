from typing import Any

import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.networks.patchgan import PatchDiscriminator

PAPER = {
    "target_channels": 3, "source_channels": 0, "width": 64, "num_strided": 3, "num_scales": 1, "normalisation": "instance",
    "initialisation": "normal", "spectral_norm": False,
}  # fmt: skip


def build(**changes: Any) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(**(PAPER | {"width": 4} | changes))


def count(**changes: Any) -> float:
    return sum(parameter.numel() for parameter in PatchDiscriminator(**(PAPER | changes)).parameters()) / 1e6


def test_published_discriminators_have_as_many_parameters_as_their_authors_code_prints():
    """In millions, from the logs of pytorch-CycleGAN-and-pix2pix."""
    assert round(count(), 3) == 2.765
    assert round(count(source_channels=3, normalisation="batch"), 3) == 2.769


@pytest.mark.parametrize(("num_strided", "side"), [(0, 1), (1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field_by_gradient(num_strided, side):
    discriminator = build(num_strided=num_strided, normalisation="none", initialisation="default", width=2).double()
    image = torch.randn(1, 3, 2 * side + 64, 2 * side + 48, dtype=torch.float64, requires_grad=True)
    (logits,) = discriminator(image)
    middle = logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle, image)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (side, side)


def test_a_patchs_logit_is_a_function_of_its_patch_alone():
    discriminator = build(normalisation="none")
    image = torch.randn(1, 3, 160, 160)
    (logits,) = discriminator(image)
    changed = image.clone()
    changed[..., 80:] += 1.0
    (other,) = discriminator(changed)
    different = (other != logits).any(dim=2).squeeze()
    assert not different[:5].any()
    assert different[-5:].all()


def test_the_condition_stands_in_front_of_the_image():
    discriminator = build(source_channels=1)
    image, condition = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 64, 64)
    (logits,) = discriminator(image, condition)
    assert torch.equal(logits, discriminator.scales[0](torch.cat([condition, image], 1)))
    assert logits.shape == (2, 1, 6, 6)
    (others,) = discriminator(image, condition.flip(0))
    assert not torch.allclose(logits, others)


def test_every_scale_sees_half_the_size_and_has_weights_of_its_own():
    discriminator = build(num_scales=3, num_strided=2)
    flat = torch.ones(1, 3, 64, 96)
    shapes = [tuple(logits.shape[2:]) for logits in discriminator(flat)]
    assert shapes == [(14, 22), (6, 10), (2, 4)]
    seen = []
    for scale in discriminator.scales:
        scale.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    discriminator(flat)
    assert [tuple(each.shape[2:]) for each in seen] == [(64, 96), (32, 48), (16, 24)]
    assert all(torch.equal(each, torch.ones_like(each)) for each in seen)  # borders are averages of what is there
    first, second = (next(scale.parameters()) for scale in list(discriminator.scales)[:2])
    assert not torch.equal(first, second)


def test_spectral_norm_holds_every_convolution():
    for layer in build(spectral_norm=True, normalisation="none").modules():
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("changes", [{"num_strided": -1}, {"num_scales": 0}, {"width": 0}])
def test_numbers_out_of_range_are_refused(changes):
    ((name, value),) = changes.items()
    with raises(ConfigError, f"{name}={value}"):
        build(**changes)
