"""What is drawn for changed copies keeps to its settings, and each operation does what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genimg.data.copies import RANGES, apply, draw, draw_mix, mix

OFF = dict.fromkeys(RANGES, 0.0) | {"crop": 1.0}
SHAPE = (3, 20, 24)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def drawn(count: int, shape: tuple[int, int, int] = SHAPE, **settings: float) -> list[dict[str, Any]]:
    return [draw(np.random.default_rng(seed), OFF | settings, shape)[0] for seed in range(count)]


# What each operation does


def test_flips_and_quarter_turns_move_pixels_exactly() -> None:
    image = noise(3, 17, 17)
    assert torch.equal(apply(image, {"horizontal_flip": True}), image.flip(2))
    assert torch.equal(apply(image, {"vertical_flip": True}), image.flip(1))
    for quarters in (-1, 1, 2):
        assert torch.equal(apply(image, {"rotation": 90.0 * quarters}), image.rot90(quarters, (1, 2)))
    assert torch.equal(apply(image, {"rotation": 0.0}), image)


def test_a_crop_is_resized_to_the_whole_as_pillow_does_it() -> None:
    image = noise(*SHAPE)
    top, left, height, width = box = [3, 4, 15, 16]
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    expected = np.asarray(pillow.resize((SHAPE[2], SHAPE[1]), Image.Resampling.BILINEAR)).astype(int)
    found = apply(image, {"crop": box}).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1  # levels; both round


def test_colours_follow_their_formulas() -> None:
    image = noise(*SHAPE)
    as_float = image.double()
    grey = (as_float * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    formulas = {
        "brightness": lambda x: x * as_float,
        "contrast": lambda x: grey.floor().mean() + x * (as_float - grey.floor().mean()),
        "saturation": lambda x: grey + x * (as_float - grey),
    }
    for name, formula in formulas.items():
        for factor in (0.6, 1.0, 1.5):
            expected = formula(factor).clamp(0, 255)
            assert (apply(image, {name: factor}).double() - expected).abs().max() <= 2, name  # levels: grey is rounded too
    red = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    assert apply(red, {"hue": 1 / 3})[:, 0, 0].tolist() == pytest.approx([0, 200, 0], abs=1)
    assert apply(red, {"hue": -1 / 3})[:, 0, 0].tolist() == pytest.approx([0, 0, 200], abs=1)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
def test_a_cutout_hides_a_square_of_that_side_and_nothing_else(share: float) -> None:
    image = torch.full(SHAPE, 9, dtype=torch.uint8)
    for operations in drawn(20, cutout=share):
        top, left, height, width = operations["cutout"]
        assert height == width == max(1, round(share * 20))
        changed = apply(image, operations)
        assert (changed == 127).sum() == 3 * height * width
        assert (changed[:, top : top + height, left : left + width] == 127).all()
        assert (changed == 9).sum() == image.numel() - 3 * height * width


def test_mixup_is_linear_and_cutmix_is_a_patchwork() -> None:
    image, other = noise(*SHAPE), noise(*SHAPE, seed=1)
    expected = 0.7 * image.double() + 0.3 * other.double()
    assert (mix(image, other, "mixup", {"share": 0.7}).double() - expected).abs().max() <= 0.5 + 1e-9
    assert torch.equal(mix(image, other, "mixup", {"share": 1.0}), image)
    pasted = mix(torch.zeros(SHAPE, dtype=torch.uint8), torch.ones(SHAPE, dtype=torch.uint8), "cutmix", {"box": [2, 3, 5, 7]})
    assert pasted.sum() == 3 * 5 * 7
    assert (pasted[:, 2:7, 3:10] == 1).all()


def test_the_greater_share_of_a_mix_is_the_images_own_and_what_is_recorded() -> None:
    zeros, ones = torch.zeros(SHAPE), torch.ones(SHAPE)
    shares = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        chance = draw(random, OFF, SHAPE)[1]
        name, value = draw_mix(random, OFF | {"cutmix": 1.0}, chance, (20, 24))
        assert name == "cutmix"
        assert mix(zeros, ones, name, value).mean().item() == pytest.approx(1 - value["share"], abs=1e-4)
        shares.append(value["share"])
    assert min(shares) >= 0.5
    assert np.mean(shares) == pytest.approx(0.75, abs=0.05)  # of a Beta(1, 1), the greater part; boxes are rounded down
    draws = [draw(np.random.default_rng(seed), OFF, SHAPE)[1] for seed in range(200)]
    both = OFF | {"mixup": 0.2, "cutmix": 1.0}
    names = [draw_mix(np.random.default_rng(0), both, chance, (20, 24))[0] for chance in draws]
    assert 70 <= names.count("mixup") <= 130


def test_grey_images_and_alpha() -> None:
    assert set(drawn(1, (1, 8, 8), brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)[0]) == {"brightness", "contrast"}
    image = noise(4, 8, 8)
    changed = apply(image, {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2})
    assert torch.equal(changed[3], image[3])
    assert not torch.equal(changed[:3], image[:3])
    assert (apply(image, {"cutout": [0, 0, 8, 8]})[3] == 255).all()


# What is drawn


def test_draws_keep_to_their_ranges_and_use_them() -> None:
    assert sum(bool(operations) for operations in drawn(1000, horizontal_flip=0.3)) == pytest.approx(300, abs=60)
    degrees = [operations["rotation"] for operations in drawn(300, rotation=30.0)]
    assert -30 <= min(degrees) < -28
    assert 28 < max(degrees) <= 30
    for name in ("brightness", "contrast", "saturation"):
        factors = [operations[name] for operations in drawn(300, **{name: 0.2})]
        assert 0.8 <= min(factors) < 0.81
        assert 1.19 < max(factors) <= 1.2
        assert min(operations[name] for operations in drawn(300, **{name: 3.0})) >= 0
    areas, ratios = [], []
    for operations in drawn(500, (3, 200, 400), crop=0.3):
        top, left, height, width = operations["crop"]
        assert top >= 0
        assert left >= 0
        assert top + height <= 200
        assert left + width <= 400
        areas.append(height * width / (200 * 400))
        ratios.append(width / height / 2)
    assert 0.29 <= min(areas) < 0.33
    assert 0.97 < max(areas) <= 1
    assert math.exp(np.abs(np.log(ratios)).max()) == pytest.approx(4 / 3, abs=0.03)


def test_a_setting_changes_nothing_about_the_other_operations() -> None:
    alone = drawn(50, rotation=30.0)
    beside = drawn(50, rotation=30.0, horizontal_flip=0.5, crop=0.5, hue=0.1, cutout=0.2)
    assert [operations["rotation"] for operations in alone] == [operations["rotation"] for operations in beside]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 40), (4, 2, 3)])
def test_tiny_images_can_be_changed_in_every_way(shape: tuple[int, int, int]) -> None:
    settings = dict.fromkeys(OFF, 0.5) | {"rotation": 90.0, "crop": 0.2}
    for seed in range(20):
        random = np.random.default_rng(seed)
        operations, chance = draw(random, settings, shape)
        name, value = draw_mix(random, settings, chance, shape[1:])
        image = noise(*shape)
        assert mix(apply(image, operations), image, name, value).shape == shape
