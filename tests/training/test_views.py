"""Random views: what each change does, and that the strengths say how much of it was done."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from genimg.training.views import CHANGES, DEGRADATIONS, blur, ghost, jpeg, patch, pixelate, random_views


def images(count=4, channels=3, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 2.0 - 1.0
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_a_function_of_the_generators_state(channels):
    given = images(64, channels)
    views, strengths = random_views(given, torch.Generator().manual_seed(1))
    again, same = random_views(given, torch.Generator().manual_seed(1))
    assert torch.equal(views, again)
    assert torch.equal(strengths, same)
    assert views.shape == given.shape
    assert strengths.shape == (64, len(CHANGES))
    assert views.abs().max() <= 1.0
    levels = (views + 1.0) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def test_a_view_without_changes_is_the_image_and_a_third_has_no_degradation():
    given = torch.round((images(900) + 1.0) * 127.5) / 127.5 - 1.0
    views, strengths = random_views(given, torch.Generator().manual_seed(0))
    unchanged = (strengths == 0).all(dim=1)
    assert 0.05 < unchanged.float().mean() < 0.15  # 1/3 x 0.5 x 0.7 x 0.7 = 0.082
    torch.testing.assert_close(views[unchanged], given[unchanged], atol=1e-6, rtol=0)
    number = (strengths[:, -len(DEGRADATIONS) :] > 0).sum(dim=1)
    assert number.max() == 2
    assert all(abs((number == k).float().mean() - 1 / 3) < 0.06 for k in range(3))


def test_blur_is_a_gaussian():
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1.0
    found = blur(point, torch.tensor([0.5]))[0, 0]
    offsets = torch.arange(-16, 17).float()
    line = torch.exp(-offsets.square() / (2 * 1.3**2)) * (offsets.abs() <= 6)
    torch.testing.assert_close(found, torch.outer(line, line) / line.sum() ** 2, atol=1e-6, rtol=0)


def test_pixelation_repeats_means():
    given = images(3, height=24, width=24)
    for strength, factor in ((0.01, 2), (0.3, 3), (0.5, 4), (1.0, 8)):
        found = pixelate(given, torch.full((3,), strength))
        blocks = given.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)).mean(dim=(3, 5))
        torch.testing.assert_close(found, blocks.repeat_interleave(factor, 2).repeat_interleave(factor, 3))


def test_ghosts_and_patches():
    given, others = images(2), images(2, seed=1)
    half = ghost(given, torch.tensor([0.0, 1.0]), others)
    torch.testing.assert_close(half, torch.stack([given[0], (given[1] + others[1]) / 2]))
    centers = torch.tensor([[16.0, 16.0], [8.0, 8.0]])
    patched = patch(given, torch.tensor([0.0, 0.25]), others, centers)  # a side of 0.6 x 32 x 0.5 = 9.6 pixels
    changed = (patched != given).any(dim=1)
    assert not changed[0].any()
    assert changed[1].sum() == 100
    assert changed[1, 11:21, 3:13].all()
    assert torch.equal(patched[1, :, 11:21, 3:13], others[1, :, 11:21, 3:13])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 12), (19, 13)])
def test_jpeg_without_quantisation_is_the_image_whatever_its_size_but_for_small_colours(channels, size):
    given = images(2, channels, *size)
    found = jpeg(given, torch.zeros(2))
    weights = torch.tensor([0.299, 0.587, 0.114] if channels == 3 else [1.0])
    luma, expected = (torch.einsum("c,nchw->nhw", weights, each) for each in (found, given))
    torch.testing.assert_close(luma, expected, atol=1e-3, rtol=0)
    assert (found - given).abs().mean() < (1e-3 if channels == 1 else 0.05)


@pytest.mark.parametrize(("quality", "strength"), [(25, 2.0 / 12.0), (10, 5.0 / 12.0)])
def test_jpeg_is_near_that_of_a_real_encoder(quality, strength):
    """Quality Q below 50 multiplies the tables by 50 / Q."""
    levels = ((images(1, height=64, width=64)[0] + 1.0) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)  # 4:2:0, Pillow's default
    expected = np.asarray(Image.open(file)).astype(float)
    values = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    found = ((jpeg(values, torch.tensor([strength]))[0] + 1.0) * 127.5).permute(1, 2, 0).numpy()
    error = np.abs(expected - levels).mean()  # of the encoder
    assert np.abs(found - expected).mean() < 0.35 * error


@pytest.mark.parametrize("name", ["noise", "blur", "pixelation", "jpeg", "ghost", "patch", "warp"])
def test_stronger_changes_move_images_further(name):
    given = images(2000, seed=3)
    views, strengths = random_views(given, torch.Generator().manual_seed(2))
    column = strengths[:, CHANGES.index(name)].abs()
    alone = (column > 0) & ((strengths != 0).sum(dim=1) == 1)
    distance = (views - given).square().mean(dim=(1, 2, 3)).sqrt()[alone]
    strength = column[alone]
    weak, strong = distance[strength < strength.median()], distance[strength > strength.median()]
    assert len(weak) > 5
    assert strong.mean() > 1.15 * weak.mean()
