import numpy as np
import pytest
import torch
from errors import raises

from genimg.data.tasks.base import Pair, Unpaired
from genimg.errors import ConfigError

IMAGES = torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
POSITIONS = np.array([4, 0, 9])


@pytest.mark.parametrize(("task", "keys"), [(Pair, ("source", "target")), (Unpaired, ("a", "b"))])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_the_first_channels_are_one_image_and_the_others_the_other(task, keys, first):
    made = task(source_channels=first)
    assert made.keys == keys
    assert made.channels((5, 4, 6)) == (first, 5 - first)
    batch = made(IMAGES, POSITIONS, 7)
    assert tuple(batch) == keys
    assert torch.equal(batch[keys[0]], IMAGES[:, :first])
    assert torch.equal(batch[keys[1]], IMAGES[:, first:])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("task", [Pair, Unpaired])
def test_both_are_channels_last_in_memory_however_the_images_come(task, layout):
    batch = task(source_channels=2)(IMAGES.contiguous(memory_format=layout), POSITIONS, 7)
    shapes = {key: tuple(image.shape) for key, image in batch.items()}
    assert list(shapes.values()) == [(3, 2, 4, 6), (3, 3, 4, 6)]
    for image in batch.values():
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert not image.is_contiguous()


@pytest.mark.parametrize("task", [Pair, Unpaired])
def test_nothing_about_pairs_is_random(task):
    batches = [task(source_channels=2)(IMAGES, positions, seed) for positions, seed in ((POSITIONS, 7), (POSITIONS + 1, 8))]
    for key in batches[0]:
        assert torch.equal(batches[0][key], batches[1][key])


def test_images_of_a_user_are_sources_as_they_are_and_a_mask_has_no_use():
    task, images = Pair(source_channels=2), IMAGES[:, :2]
    assert torch.equal(task.given(images), images)
    with raises(ConfigError, "mask", word="pairs"):
        task.given(images, torch.zeros(3, 1, 4, 6))


def test_sources_and_outputs_of_pairs_are_pictures_as_they_are():
    task, (source, output) = Pair(source_channels=3), (IMAGES[:, :3], IMAGES[:, 2:])
    assert torch.equal(task.shown(source), source)
    assert torch.equal(task.result(output, source), output)
