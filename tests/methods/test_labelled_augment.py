"""Augmentation with labels, against the positions that its labels say."""

import math

import numpy as np
import pytest
import torch

from genimg.methods.labelled_augment import LabelledAugment
from genimg.utils.rng import Stream, keys_of

ALL = ["x_flip", "y_flip", "scale", "rotate", "stretch", "translate"]


def keys(count: int) -> torch.Tensor:
    return torch.from_numpy(keys_of(0, Stream.DENOISING, np.arange(count)).view(np.int64))


def blobs(count: int, x: float, y: float, size: int = 96) -> torch.Tensor:
    """Return a small bright spot, (x, y) pixels right of and below the centre of each image."""
    line = torch.arange(size) - (size - 1) / 2
    spot = torch.exp(-((line[None, :] - x) ** 2 + (line[:, None] - y) ** 2) / (2 * 1.5**2))
    return spot.expand(count, 1, size, size).clone()


def centre(images: torch.Tensor) -> torch.Tensor:
    """Return the (x, y) of the spot from the centre of each image, in pixels: [N, 2]."""
    size = images.shape[-1]
    line = torch.arange(size) - (size - 1) / 2
    mass = images.sum((1, 2, 3))
    return torch.stack([(images * line).sum((1, 2, 3)), (images * line[:, None]).sum((1, 2, 3))], dim=1) / mass[:, None]


def rotation(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def test_the_spot_moves_as_the_labels_of_table_6_say():
    augment = LabelledAugment(p=1.0, operations=ALL)
    assert augment.num_labels == 9
    images, labels = augment(blobs(200, 5.0, -3.0), keys(200))
    found = centre(images)
    checked = 0
    for number, (flip_x, flip_y, scale, cos, sin, along, across, right, down) in enumerate(labels.tolist()):
        axis, turned = math.atan2(across, along), torch.tensor([5.0, -3.0])
        turned = turned * torch.tensor([1 - 2 * flip_x, 1 - 2 * flip_y]) * 2 ** (0.2 * scale)
        turned = rotation(-axis) @ (rotation(-math.atan2(sin, cos + 1)) @ turned)
        amount = math.hypot(along, across)
        expected = [  # the labels of a stretch along an axis are those of its inverse along the opposite direction
            rotation(axis) @ (torch.tensor([2 ** (0.2 * sign), 2 ** (-0.2 * sign)]) * turned)
            + torch.tensor([right, down]) * 96 / 8
            for sign in (amount, -amount)
        ]
        mass = float(images[number].sum() / blobs(1, 5.0, -3.0).sum()) / 4 ** (0.2 * scale)
        if abs(mass - 1) < 0.002:  # otherwise the spot is cut, or its reflection at a border is seen as well
            checked += 1
            tolerance = 0.1 * (
                1 + 2 ** (0.2 * (abs(scale) + amount))
            )  # pixels: the filters shift by up to 0.05 px, then enlarged
            assert any(torch.allclose(found[number], each, atol=tolerance) for each in expected), number
    assert checked > 100


def test_flips_copy_pixels_and_images_without_augmentation_stay():
    images = torch.randn(400, 3, 8, 8)
    flipped, labels = LabelledAugment(p=0.1, operations=["x_flip"])(images, keys(400))
    mirrored = labels[:, 0] == 1
    assert 150 < mirrored.sum() < 250
    assert flipped[mirrored].equal(images[mirrored].flip(3))
    assert flipped[~mirrored].equal(images[~mirrored])
    augmented, labels = LabelledAugment(p=0.1, operations=ALL[1:])(images, keys(400))
    plain = (labels == 0).all(dim=1)
    assert augmented[plain].equal(images[plain])
    shares = (labels[:, [1, 3, 4, 7]] != 0).float().mean(dim=0)  # scale, rotate, stretch, translate
    assert ((shares - 0.1).abs() < 0.05).all()


def test_an_image_does_not_depend_on_the_others_in_the_batch_and_widths_may_differ():
    augment = LabelledAugment(p=0.8, operations=ALL)
    images = torch.randn(6, 3, 8, 12)
    whole, labels = augment(images, keys(6))
    first, first_labels = augment(images[:2], keys(6)[:2])
    assert torch.allclose(first, whole[:2], atol=1e-6)
    assert first_labels.equal(labels[:2])


@pytest.mark.parametrize(("changes", "name"), [
    ({"p": 0.0}, "p"), ({"p": 1.5}, "p"), ({"operations": []}, "operations"), ({"operations": ["flip"]}, "operations"),
    ({"operations": ["scale", "scale"]}, "operations"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes, name):
    with pytest.raises(ValueError, match=f"^{name}="):
        LabelledAugment(**({"p": 0.1, "operations": ["scale"]} | changes))
