"""Against torchvision's functions, which change one image at a time; tolerances are of float32 arithmetic."""

import math

import numpy as np
import pytest
import torch
from errors import raises
from torchvision.transforms import functional as TF

from genimg.data.transforms import SampleAugment, adjust_brightness, adjust_contrast, adjust_saturation, rotate, shift_hue
from genimg.errors import ConfigError
from genimg.utils.images import to_float

OFF = {
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "crop_padding": 0,
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}
ON = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.3,
    "crop_padding": 3,
    "rotation": 25.0,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.2,
}
ALONE = [{name: value} for name, value in ON.items()]


def augment(**settings: float) -> SampleAugment:
    return SampleAugment(**(OFF | settings))


def pictures(count: int = 8, channels: int = 3, height: int = 12, width: int = 17) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8))


def unit(count: int = 8, channels: int = 3) -> torch.Tensor:
    """Images in [0, 1] in which grey, black and white occur."""
    images = pictures(count, channels).float() / 255
    images[:, :, :3, :3], images[:, :, 3:5], images[:, :, 5] = 0.5, 0.0, 1.0
    return images


# As torchvision does it


@pytest.mark.parametrize("degrees", [0.0, 10.0, -33.0, 90.0, 135.0, 180.0, -180.0])
def test_rotation_is_torchvisions_where_that_has_pixels(degrees):
    images, bilinear = unit(), TF.InterpolationMode.BILINEAR
    expected = torch.stack([TF.rotate(image, degrees, bilinear) for image in images])
    inside = TF.rotate(torch.ones(1, 12, 17), degrees, bilinear)[0] > 1 - 1e-5
    assert inside.float().mean() > 0.3
    found = rotate(images, torch.full((8,), degrees))
    assert (found - expected)[:, :, inside].abs().max() < 1e-5


def test_every_sample_is_rotated_by_its_own_angle():
    images, degrees = unit(3), torch.tensor([0.0, 180.0, -20.0])
    found = rotate(images, degrees)
    assert torch.allclose(found[0], images[0], atol=1e-5)
    assert torch.allclose(found[1], images[1].flip(-1, -2), atol=1e-5)
    assert torch.equal(found[2:], rotate(images[2:], degrees[2:]))


def test_rotation_fills_the_corners_with_reflections():
    assert torch.allclose(rotate(torch.full((2, 3, 9, 9), 0.7), torch.tensor([30.0, 45.0])), torch.tensor(0.7), atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        (adjust_brightness, TF.adjust_brightness, 1),
        (adjust_brightness, TF.adjust_brightness, 3),
        (adjust_contrast, TF.adjust_contrast, 1),
        (adjust_contrast, TF.adjust_contrast, 3),
        (adjust_saturation, TF.adjust_saturation, 3),
    ],
)
def test_colours_are_torchvisions(ours, theirs, channels):
    images, factors = unit(channels=channels), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0, 1.3, 2.0, 5.0])
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)])
    assert torch.allclose(ours(images, factors), expected, atol=1e-6)


def test_a_shift_of_the_hue_copies_nothing_from_the_host(monkeypatch):
    monkeypatch.setattr(torch, "tensor", None)  # such a copy waits for the GPU
    shift_hue(torch.rand(2, 3, 4, 4), torch.zeros(2))


def test_hue_is_torchvisions():
    images, turns = unit(), torch.tensor([-0.5, -0.31, -0.1, 0.0, 0.05, 0.2, 0.333, 0.5])
    expected = torch.stack([TF.adjust_hue(image, turn) for image, turn in zip(images, turns.tolist(), strict=True)])
    assert torch.allclose(shift_hue(images, turns), expected, atol=2e-6)


# A function of (seed, position)


@pytest.mark.parametrize("settings", [ON, *ALONE], ids=lambda settings: "+".join(settings))
@pytest.mark.parametrize("size", [1, 3, 4])
def test_where_a_batch_is_cut_changes_no_bit(settings, size):
    images, positions, change = to_float(pictures(12)), np.arange(100, 112), augment(**settings)
    whole = change(images, positions, 7)
    pieces = [change(images[i : i + size], positions[i : i + size], 7) for i in range(0, 12, size)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("settings", [ON, *ALONE], ids=lambda settings: "+".join(settings))
def test_another_seed_or_position_changes_it(settings):
    images, change = to_float(pictures(1)).expand(32, -1, -1, -1), augment(**settings)
    one, other, later = change(images, np.arange(32), 7), change(images, np.arange(32), 8), change(images, np.arange(1, 33), 7)
    assert torch.equal(one, change(images, np.arange(32), 7))
    assert not torch.equal(one, other)
    assert torch.equal(one[1:], later[:-1])
    assert not all(torch.equal(image, one[0]) for image in one)


def test_it_neither_uses_nor_moves_torchs_random_numbers():
    state = torch.get_rng_state()
    augment(**ON)(pictures(), np.arange(8), 7)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("images", [pictures(), to_float(pictures())], ids=["uint8", "float"])
def test_with_everything_off_images_are_as_they_were(images):
    assert torch.equal(augment()(images, np.arange(8), 7), images)


@pytest.mark.parametrize("settings", ALONE, ids=lambda settings: "+".join(settings))
def test_uint8_images_are_the_float_ones_rounded(settings):
    images, positions = pictures(), np.arange(8)
    rounded, exact = (augment(**settings)(each, positions, 7) for each in (images, to_float(images)))
    assert rounded.dtype == torch.uint8
    assert exact.dtype == torch.float32
    assert ((to_float(rounded) - exact).abs() <= 0.5 / 127.5 + 1e-6).all()


@pytest.mark.parametrize("settings", [ON, *ALONE], ids=lambda settings: "+".join(settings))
def test_changed_images_stay_in_range(settings):
    images = augment(**settings)(to_float(pictures(64)), np.arange(64), 7)
    assert images.shape == (64, 3, 12, 17)
    assert images.min() >= -1
    assert images.max() <= 1


# How often, and how far


def test_settings_are_probabilities_and_ranges():
    count = 20_000
    mirrored, upside_down, down, right, degrees, brightness, contrast, saturation, turns = (
        augment(**ON | {"brightness": 1.5})._draw(np.arange(count), 3).double().numpy()
    )
    for happened, probability in ((mirrored, 0.5), (upside_down, 0.3)):
        assert set(happened) == {0.0, 1.0}
        assert abs(happened.mean() - probability) < 5 * math.sqrt(probability * (1 - probability) / count)
    for shift in (down, right):
        numbers, counts = np.unique(shift, return_counts=True)
        assert numbers.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert np.abs(counts - count / 7).max() < 5 * math.sqrt(count / 7)
    for values, low, high in (
        (degrees, -25, 25),
        (brightness, 0, 2.5),  # not below 0
        (contrast, 0.6, 1.4),
        (saturation, 0.6, 1.4),
        (turns, -0.2, 0.2),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * count)
    drawn = np.stack([mirrored, upside_down, down, right, degrees, brightness, contrast, saturation, turns])
    assert np.abs(np.corrcoef(drawn) - np.eye(9)).max() < 5 / math.sqrt(count)


def test_probability_one_mirrors_every_image():
    images = pictures()
    assert torch.equal(augment(horizontal_flip=1.0)(images, np.arange(8), 7), images.flip(-1))
    assert torch.equal(augment(vertical_flip=1.0)(images, np.arange(8), 7), images.flip(-2))


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizontal_flip": 1.1}, "horizontal_flip=1.1"),
        ({"vertical_flip": -0.1}, "vertical_flip=-0.1"),
        ({"crop_padding": -1}, "crop_padding=-1"),
        ({"rotation": 181.0}, "rotation=181.0"),
        ({"brightness": -1.0}, "brightness=-1.0"),
        ({"contrast": math.inf}, "contrast=inf"),
        ({"saturation": math.nan}, "saturation=nan"),
        ({"hue": 0.6}, "hue=0.6"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with raises(ValueError, words):
        augment(**settings)


@pytest.mark.parametrize("channels", [2, 4, 6])  # 2 and 6: a pair of grey images, and one of coloured ones
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_that_images_do_not_have_are_refused(name, channels):
    change = augment(**{name: 0.25})
    change.check((3, 8, 8))
    with raises(ConfigError, f"{name}=0.25"):
        change.check((channels, 8, 8))
    if name in ("brightness", "contrast"):
        change.check((1, 8, 8))
    else:
        with raises(ConfigError, name, word="grey"):
            change.check((1, 8, 8))


def test_a_shift_across_the_whole_image_is_refused():
    augment(crop_padding=7).check((3, 8, 20))
    with raises(ConfigError, "crop_padding=8"):
        augment(crop_padding=8).check((3, 8, 20))
