"""The nearest real images to generated ones."""

import numpy as np
import pytest
import torch
from torch import nn

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.nearest import nearest_images
from genimg.utils.images import to_float

CPU = torch.device("cpu")


class PixelExtractor(Extractor):
    """Some of the pixels are the features; remembers the sizes of its batches."""

    def __init__(self):
        super().__init__(
            name="pixels", network=nn.Identity(), weights_sha256=None, resize="none", channels="as they are", has_logits=False
        )
        self.sizes = []

    def extract(self, images):
        self.sizes.append(len(images))
        return images[:, 0, :3, :3].flatten(1).double(), None


def random_pixels(count, seed, shape=(3, 4, 4)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def images_of(pixels):
    source = ArrayDataset("pixels", np.ascontiguousarray(pixels))
    return DatasetImages(ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU))


def search(real, fake, **changes):
    settings = {"count": 5, "neighbors": 3, "batch_size": 8}
    return nearest_images(images_of(real), images_of(fake), PixelExtractor(), **{**settings, **changes})


def all_distances(real, fake):
    """[fake, real], in numpy."""
    x, y = (side[:, 0, :3, :3].reshape(len(side), -1).astype(np.float64) for side in (real, fake))
    return np.sqrt(((y[:, None] - x[None]) ** 2).sum(axis=2))


def test_a_copy_of_a_real_image_is_found_at_distance_zero():
    real, fake = random_pixels(37, 0), random_pixels(5, 1)
    fake[1], fake[4] = real[36], real[0]
    distances, indices, _ = search(real, fake)
    assert distances[1, 0] == 0.0
    assert distances[4, 0] == 0.0
    assert indices[1, 0] == 36
    assert indices[4, 0] == 0
    assert (distances[[0, 2, 3], 0] > 10.0).all()
    assert (distances[:, 1:] > 10.0).all()


def test_neighbours_are_those_of_all_real_images_nearest_first():
    real, fake = random_pixels(37, 0), random_pixels(6, 1)
    distances, indices, _ = search(real, fake, count=6, neighbors=4)
    expected = all_distances(real, fake)
    order = np.argsort(expected, axis=1)[:, :4]
    assert np.array_equal(indices.numpy(), order)
    np.testing.assert_allclose(distances.numpy(), np.take_along_axis(expected, order, axis=1), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 37, 100])
def test_the_batch_size_does_not_matter(batch_size):
    real, fake = random_pixels(37, 0), random_pixels(5, 1)
    fake[2] = real[20]
    expected, found = search(real, fake, batch_size=10), search(real, fake, batch_size=batch_size)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_the_real_images_come_in_batches():
    extractor = PixelExtractor()
    real, fake = images_of(random_pixels(20, 0)), images_of(random_pixels(4, 1))
    nearest_images(real, fake, extractor, count=3, neighbors=2, batch_size=8)
    assert extractor.sizes == [3, 8, 8, 4]


def test_the_picture_shows_each_generated_image_before_its_neighbours():
    real, fake = random_pixels(37, 0), random_pixels(5, 1)
    _, indices, picture = search(real, fake, count=4, neighbors=2)
    assert picture.shape == (4 * 3, 3, 4, 4)
    for i in range(4):
        assert torch.equal(picture[3 * i], to_float(torch.from_numpy(fake[[i]]))[0])
        for j in range(2):
            assert torch.equal(picture[3 * i + 1 + j], to_float(torch.from_numpy(real[[int(indices[i, j])]]))[0])


def test_no_more_are_shown_than_there_are():
    real, fake = random_pixels(3, 0), random_pixels(2, 1)
    distances, indices, picture = search(real, fake, count=10, neighbors=7)
    assert distances.shape == indices.shape == (2, 3)
    assert picture.shape == (2 * 4, 3, 4, 4)
    assert [sorted(row) for row in indices.tolist()] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(("real_shape", "fake_shape"), [((1, 4, 4), (3, 8, 8)), ((3, 4, 4), (1, 4, 4)), ((3, 6, 6), (3, 3, 3))])
def test_both_sides_are_shown_in_the_real_images_size_and_in_colour_where_one_has_it(real_shape, fake_shape):
    real, fake = random_pixels(9, 0, real_shape), random_pixels(2, 1, fake_shape)
    _, indices, picture = search(real, fake, count=2, neighbors=1)
    assert picture.shape == (4, 3, *real_shape[1:])
    shown = torch.from_numpy(real[[int(indices[1, 0])]])
    assert torch.equal(picture[3], to_float(shown).expand(1, 3, -1, -1)[0])
    assert picture[0].min() >= -1.0
    assert picture[0].max() <= 1.0
