"""Pillow's bicubic filter without Pillow, to the last bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from genimg.evaluation.extractors.resizing import pillow_bicubic, pillow_bicubic_crop

PHOTO_SIZES = [28, 32, 64, 224, 256, 333]


def random_images(height, width, num_images=2):
    """Noise, and black and white, where the filter overshoots most."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    images = torch.randint(0, 256, (num_images, 3, height, width), generator=generator, dtype=torch.uint8)
    images[-1] = (images[-1] > 127).to(torch.uint8) * 255
    return images


def by_pillow(images, transform):
    pictures = [transform(Image.fromarray(image)) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def rows_then_columns(height, width):
    """In two calls, because Pillow 13 starts with the columns of some tall images."""
    return lambda picture: picture.resize((width, picture.height), Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


@pytest.mark.parametrize("size", PHOTO_SIZES)
def test_square_images_are_pillows_to_the_last_bit(size):
    images = random_images(size, size)
    expected = by_pillow(images, lambda picture: picture.resize((224, 224), Image.Resampling.BICUBIC))
    assert torch.equal(pillow_bicubic(images, 224, 224), expected)


@pytest.mark.parametrize(
    ("before", "after"), [((1, 1), (5, 7)), ((260, 300), (224, 224)), ((300, 260), (224, 224)), ((37, 41), (29, 97)),
                          ((7, 224), (224, 224)), ((224, 7), (224, 3)), ((90, 3), (31, 31))],
)  # fmt: skip
def test_other_shapes_are_pillows_to_the_last_bit(before, after):
    images = random_images(*before)
    assert torch.equal(pillow_bicubic(images, *after), by_pillow(images, rows_then_columns(*after)))


def test_an_image_of_that_size_already_stays_as_it_is():
    images = random_images(24, 24)
    assert torch.equal(pillow_bicubic(images, 24, 24), images)


@pytest.mark.parametrize("shape", [(20, 20), (45, 45), (45, 61), (20, 33), (33, 20), (33, 90)])
def test_the_middle_is_cut_out_as_torchvision_does_it(shape):
    images = random_images(*shape)
    transform = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])
    assert torch.equal(pillow_bicubic_crop(images, 32), by_pillow(images, transform))
