"""What methods that translate share: the name of the mode, batches together and apart, scales, and pictures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import nn

from genimg.data.tasks.base import Pair
from genimg.losses.adversarial import (
    AdversarialLoss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.image_to_image import (
    checked_mode,
    generator_adversarial_loss,
    in_blocks,
    mean_logit,
    mixes_images,
    over_scales,
    side_by_side,
    together,
)
from genimg.methods.restoration import Restoration
from genimg.networks.layers import ConditionalBatchNorm2d, normalisation_layer

LEAST_SQUARES = AdversarialLoss(discriminator=least_squares_discriminator_loss, generator=least_squares_generator_loss)
RELATIVISTIC = AdversarialLoss(
    discriminator=relativistic_discriminator_loss, generator=relativistic_generator_loss, relativistic=True
)


def images(count: int = 3, channels: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


# The mode


def test_modes_are_eval_and_train():
    assert [checked_mode(mode) for mode in ("eval", "train")] == ["eval", "train"]
    with raises(ValueError, "sampled_mode=test"):
        checked_mode("test")


# A translation


def method(module: nn.Module) -> Restoration:
    loss = ReconstructionLoss(kind="l1", epsilon=None, known_weight=1.0)
    return Restoration(translator=module, loss=loss, residual=False, task=Pair(source_channels=2))


def test_a_translation_has_no_gradient_and_is_float32_whatever_the_precision():
    module = method(nn.Conv2d(2, 2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert module.network(images()).dtype == torch.bfloat16
        found = module.translate(images())
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.allclose(found, module.network(images()), rtol=0, atol=0.05)
    assert torch.equal(found, found.bfloat16().float())


def test_the_sides_sources_need_are_the_translators():
    module = nn.Identity()
    assert method(module).size_divisor == 1
    module.size_divisor = 8
    assert method(module).size_divisor == 8


# Batches in one forward


def normalised(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), normalisation_layer(kind, 4), nn.ReLU(), nn.Conv2d(4, 3, 1))


PARTS = (images(3, seed=1), 2 * images(1, seed=2) + 1, images(2, seed=3) - 1)


@pytest.mark.parametrize("kind", ["none", "instance", "layer"])
@pytest.mark.parametrize("apart", [False, True])
def test_batches_together_answer_as_alone_where_images_are_not_mixed(kind, apart):
    module = normalised(kind)
    assert not mixes_images(module)
    found = together(module, *PARTS, apart=apart)
    assert [len(each) for each in found] == [3, 1, 2]
    for each, part in zip(found, PARTS, strict=True):
        assert torch.allclose(each, module(part), rtol=0, atol=1e-5)


def test_batches_together_answer_otherwise_with_batch_norm():
    module = normalised("batch")
    assert mixes_images(module)
    expected = [module(part) for part in PARTS]
    for each, alone in zip(together(module, *PARTS, apart=True), expected, strict=True):
        assert torch.allclose(each, alone, rtol=0, atol=1e-5)
    for each, alone in zip(together(module, *PARTS, apart=False), expected, strict=True):
        assert not torch.allclose(each, alone, rtol=0, atol=0.05)


@pytest.mark.parametrize("apart", [False, True])
def test_there_is_one_forward_unless_batches_are_kept_apart(apart):
    sizes = []
    module = normalised("none")
    module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    together(module, *PARTS, apart=apart)
    assert sizes == ([3, 1, 2] if apart else [6])


def test_batch_norm_of_any_kind_mixes_images_also_deep_inside():
    assert mixes_images(nn.Sequential(nn.Sequential(nn.BatchNorm2d(2))))
    assert mixes_images(nn.ModuleList([ConditionalBatchNorm2d(2, 3)]))
    assert mixes_images(nn.SyncBatchNorm(2))
    for layer in (nn.InstanceNorm2d(2), nn.GroupNorm(1, 2), nn.Dropout(0.5), nn.Conv2d(1, 1, 1)):
        assert not mixes_images(nn.Sequential(layer))


# Scales


def scales(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1, size, size, generator=random) + 3 * number for number, size in enumerate((5, 2))]


def test_every_scale_counts_the_same_whatever_its_patches():
    real, fake = scales(1), scales(2)
    each = [0.5 * ((r.double() - 1) ** 2).mean() + 0.5 * (f.double() ** 2).mean() for r, f in zip(real, fake, strict=True)]
    found = over_scales(least_squares_discriminator_loss, real, fake)
    assert found.shape == ()
    assert found.item() == pytest.approx((sum(each) / 2).item(), rel=1e-6)
    flat = [torch.cat([scale.flatten() for scale in side]) for side in (real, fake)]
    assert abs(least_squares_discriminator_loss(*flat).item() / found.item() - 1) > 0.1


def test_losses_of_bf16_logits_are_of_float32():
    logits = [each.bfloat16() for each in scales(1)]
    found = over_scales(least_squares_generator_loss, logits)
    assert found.dtype == torch.float32
    expected = sum(0.5 * (each.double() - 1).square().mean() for each in logits) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sides_of_unlike_scales_are_a_mistake():
    with raises(ValueError, word="shorter"):
        over_scales(least_squares_discriminator_loss, scales(1), scales(2)[:1])


def test_the_logged_logit_is_of_the_first_scale_without_graph():
    logits = [each.requires_grad_() for each in scales(1)]
    found = mean_logit(logits)
    assert found.item() == pytest.approx(logits[0].double().mean().item(), rel=1e-5)
    assert not found.requires_grad


class Judge:
    """Two scales of an image; remembers what it was shown."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(image)
        return [image[:, :1], 2 * F.avg_pool2d(image[:, :1], 2) - 1]


def test_a_plain_loss_sees_the_fakes_alone():
    judge, real, fake = Judge(), images(seed=1), images(seed=2)
    found = generator_adversarial_loss(LEAST_SQUARES, judge, real, fake)
    assert len(judge.seen) == 1
    assert judge.seen[0] is fake
    expected = sum(0.5 * (each.double() - 1).square().mean() for each in Judge()(fake)) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_relativistic_loss_compares_every_patch_with_the_real_one():
    judge, real, fake = Judge(), images(seed=1), images(seed=2).requires_grad_()
    found = generator_adversarial_loss(RELATIVISTIC, judge, real, fake)
    assert {id(each) for each in judge.seen} == {id(real), id(fake)}
    pairs = zip(Judge()(real.double()), Judge()(fake.double()), strict=True)
    expected = sum((-(torch.sigmoid(f - r).log())).mean() for r, f in pairs) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    (gradient,) = torch.autograd.grad(expected, fake)
    assert torch.allclose(fake.grad, gradient, rtol=1e-4, atol=1e-8)


# Pictures


def test_grey_images_beside_coloured_ones_have_three_like_channels():
    grey, coloured = images(2, 1), images(2, 3)
    found = side_by_side([grey, coloured])
    assert found.shape == (2, 2, 3, 6, 5)
    assert torch.equal(found[:, 0], grey.repeat(1, 3, 1, 1))
    assert torch.equal(found[:, 1], coloured)
    assert side_by_side([grey, grey, grey]).shape == (2, 3, 1, 6, 5)


def test_images_with_alpha_are_shown_on_white():
    clear, half, opaque = (torch.cat([images(1, 3), torch.full((1, 1, 6, 5), alpha)], dim=1) for alpha in (-1.0, 0.0, 1.0))
    found = side_by_side([torch.cat([clear, half, opaque]), images(3, 1)])
    assert found.shape == (3, 2, 3, 6, 5)
    assert torch.equal(found[:, 1], images(3, 1).expand(-1, 3, -1, -1))
    for picture, expected in zip(found[:, 0], (torch.ones(3, 6, 5), images(1, 3)[0] / 2 + 0.5, images(1, 3)[0]), strict=True):
        assert torch.allclose(picture, expected, rtol=0, atol=1e-6)
    assert side_by_side([opaque, opaque]).shape == (1, 2, 3, 6, 5)


@pytest.mark.parametrize(
    ("count", "width", "expected"), [(1, 3, (1, 3)), (4, 3, (4, 3)), (12, 3, (6, 6)), (7, 3, (4, 6)), (64, 2, (11, 12))]
)
def test_rows_are_in_blocks_about_a_square(count, width, expected):
    rows = torch.arange(count * width).view(count, width, 1, 1, 1).expand(-1, -1, 1, 2, 3) / 1000 - 0.5
    found = in_blocks(rows)
    assert found.shape == (*expected, 1, 2, 3)
    flat = found.reshape(-1, width, 1, 2, 3)  # every row of a grid is whole rows of pictures
    assert torch.equal(flat[:count], rows)
    assert (flat[count:] == 1.0).all()
