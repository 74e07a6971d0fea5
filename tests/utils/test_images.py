from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from genimg.utils.images import class_rows, grid, mirror_and_shift, to_float, to_uint8, write_png


def all_levels() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_uint8_to_float_and_back_is_the_identity_for_all_levels():
    assert torch.equal(to_uint8(to_float(all_levels())), all_levels())


def test_levels_are_spread_evenly_over_minus_one_to_one():
    floats = to_float(all_levels())
    assert floats.dtype == torch.float32
    expected = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(floats.shape)
    assert torch.allclose(floats.double(), expected, rtol=0, atol=1e-7)
    assert floats.min() == -1.0
    assert floats.max() == 1.0


def test_float_images_are_channels_last_and_the_input_is_kept():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    copy = images.clone()
    assert to_float(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, copy)


def test_floats_are_rounded_to_the_nearest_level_and_clamped():
    levels = torch.tensor([-50.0, -1.0001, -1.0, 2 * 10.4 / 255 - 1, 2 * 10.6 / 255 - 1, 1.0, 1.5, 50.0])
    assert to_uint8(levels).tolist() == [0, 0, 0, 10, 11, 255, 255, 255]


def test_bfloat16_images_are_computed_in_float32():
    images = torch.linspace(-1, 1, 97).to(torch.bfloat16)
    assert torch.equal(to_uint8(images), to_uint8(images.float()))


def test_float_images_are_not_changed_by_the_conversion_to_uint8():
    images = torch.rand(1, 3, 2, 2)
    copy = images.clone()
    to_uint8(images)
    assert torch.equal(images, copy)


@pytest.mark.parametrize(("count", "columns", "rows", "used"), [(4, None, 2, 2), (7, None, 4, 2), (6, 6, 1, 6), (5, 2, 3, 2)])
def test_grid_has_two_pixels_of_white_between_and_around_the_images(count, columns, rows, used):
    picture = grid(torch.full((count, 3, 4, 5), -1.0), columns)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, rows * (4 + 2) + 2, used * (5 + 2) + 2)
    assert (picture[:, :2] == 255).all()
    assert (picture == 0).sum() == count * 3 * 4 * 5


def test_grid_places_images_row_by_row():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 3, 2, 2)
    picture = grid(images, 3)
    centres = picture[0, 2::4, 2::4]
    assert centres.tolist() == to_uint8(images[:, 0, 0, 0]).reshape(2, 3).tolist()


def test_grid_shows_one_image_and_grey_images():
    assert (grid(torch.zeros(1, 3, 4, 4)) == 128).any()
    picture = grid(torch.zeros(4, 1, 4, 4))
    assert picture.shape[0] in (1, 3)
    assert torch.equal(picture[0], picture[-1])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_written_pictures_are_read_back_exactly(tmp_path, channels, mode):
    picture = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    write_png(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.mode == mode
        array = np.asarray(image)
    assert np.array_equal(array.reshape(5, 7, channels).transpose(2, 0, 1), picture.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_failed_write_leaves_the_earlier_picture_whole(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    write_png(torch.zeros(3, 4, 4, dtype=torch.uint8), path)
    earlier = path.read_bytes()

    def fail_half_way(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail_half_way)
    with raises(OSError, word="space"):
        write_png(torch.ones(3, 4, 4, dtype=torch.uint8), path)
    assert path.read_bytes() == earlier


def test_images_in_rows_and_columns_stay_where_they_are():
    images = torch.linspace(-1, 1, 6).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 5)
    assert torch.equal(grid(images), grid(images.flatten(0, 1), 3))


@pytest.mark.parametrize(
    ("count", "num_classes", "rows", "columns"),
    [(64, 10, 10, 6), (64, 2, 2, 32), (64, 64, 8, 8), (64, 1000, 8, 8), (3, 10, 1, 2), (1, 10, 1, 1), (4, 2, 2, 2)],
)
def test_rows_of_classes(count, num_classes, rows, columns):
    assert class_rows(count, num_classes).tolist() == [[row] * columns for row in range(rows)]


@pytest.mark.parametrize("reach", [1, 4, 11])
def test_shifts_are_crops_of_the_reflected_image(reach):
    images = torch.randint(256, (5, 3, 12, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    down, right = torch.tensor([0, -reach, reach, -1, 1]), torch.tensor([0, reach, -reach, 1, 0])
    mirrored, upside_down = torch.tensor([0, 1, 0, 0, 1]).bool(), torch.tensor([0, 0, 1, 0, 1]).bool()
    padded = F.pad(images.float(), [reach] * 4, mode="reflect").byte()
    found = mirror_and_shift(images, mirrored, upside_down, down, right)
    for i in range(5):
        expected = TF.crop(padded[i], reach + int(down[i]), reach + int(right[i]), 12, 17)
        expected = TF.hflip(expected) if mirrored[i] else expected
        expected = TF.vflip(expected) if upside_down[i] else expected
        assert torch.equal(found[i], expected)
