import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from fake_devices import fake_device
from PIL import Image
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode

from genimg.data.tasks import masks
from genimg.data.tasks.masks import Boxes, Center, Files, Mask, Strokes, brushed
from genimg.errors import DataError

CPU = torch.device("cpu")


def made(mask: Mask, count: int = 400, seed: int = 3, size: tuple[int, int] = (32, 40)) -> torch.Tensor:
    mask.check(*size)
    masks = mask(np.arange(count), seed, height=size[0], width=size[1], device=CPU)
    assert masks.shape == (count, 1, *size)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    return masks


def strokes(**changes: object) -> Strokes:
    return Strokes(**({"num_strokes": 3, "num_legs": [4, 12], "width": [0.05, 0.15]} | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        mask = np.zeros((6, 10), dtype=np.uint8)
        mask[number, : 2 + number] = 255
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
    return tmp_path


def test_the_centre_is_a_quarter_of_the_image_in_its_middle():
    masks = made(Center(size=0.5), 2, size=(32, 32))
    assert masks[:, :, 8:24, 8:24].mean() == 1
    assert masks.sum(dim=(1, 2, 3)).tolist() == [256, 256]
    assert made(Center(size=0.25), 1, size=(16, 40)).sum() == 4 * 10


def test_boxes_have_sides_within_the_range():
    single = made(Boxes(num_boxes=1, side=[0.25, 0.5]), 2000)[:, 0].numpy()
    heights, widths = single.any(axis=2).sum(axis=1), single.any(axis=1).sum(axis=1)
    assert (single.sum(axis=(1, 2)) == heights * widths).all()
    assert (heights.min(), heights.max()) == (8, 16)
    assert (widths.min(), widths.max()) == (10, 20)
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 5 / math.sqrt(2000)
    everywhere = single.mean(axis=0)
    assert (everywhere > 0).all()  # up to the corners
    area = 0.375**2  # the mean of the product of two independent sides
    assert abs(single.mean() - area) < 5 * 0.08 / math.sqrt(2000)


def test_boxes_are_one_to_as_many_as_are_allowed():
    small = made(Boxes(num_boxes=4, side=0.05), 500, size=(100, 100))[:, 0].numpy()
    counts = [ndimage.label(mask)[1] for mask in small]
    assert min(counts) == 1
    assert max(counts) == 4
    assert abs(small.mean() / 0.05**2 - 2.5) < 5 * math.sqrt(1.25 / 500) + 0.05  # some overlap


def test_strokes_cover_a_part_of_the_image():
    shares = made(strokes(), 1000).mean(dim=(1, 2, 3))
    assert shares.min() > 0.005
    assert shares.max() < 0.8
    assert 0.1 < shares.mean() < 0.3
    assert shares.std() > 0.03


def test_masks_of_larger_images_have_the_same_shapes():
    small, large = (made(strokes(), 50, size=(size, size)) for size in (64, 128))
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.02  # along their borders only


def test_a_single_stroke_hangs_together():
    masks = made(strokes(num_strokes=1, num_legs=4, width=0.1), 50, size=(64, 64))[:, 0].numpy()
    assert all(ndimage.label(mask, np.ones((3, 3)))[1] == 1 for mask in masks)


def test_brushes_have_their_width():
    masks = made(strokes(num_strokes=1, num_legs=1, width=0.2), 100, size=(64, 64))[:, 0].numpy()
    inner = [mask for mask in masks if not (mask[[0, -1]].any() or mask[:, [0, -1]].any())]
    radii = np.array([ndimage.distance_transform_edt(mask).max() for mask in inner])
    assert len(inner) > 20
    assert np.abs(radii - 0.1 * 64).max() < 1


def test_brush_is_the_distance_to_a_segment():
    segments = np.array([[5.0, 4.0, 20.0, 30.0, 3.0], [25.0, 25.0, 25.0, 25.0, 2.0], [0.0, 0.0, 9.0, 9.0, -1.0]]).T[:, :, None]
    found = brushed(segments, 32, 40, CPU)[0, 0].numpy() > 0
    y, x = np.mgrid[:32, :40] + 0.5
    expected = np.zeros((32, 40), dtype=bool)
    for from_y, from_x, to_y, to_x, reach in segments[:, :2, 0].T:
        along = np.linspace(0, 1, 2001)[:, None, None]
        distance = np.hypot(y - from_y - along * (to_y - from_y), x - from_x - along * (to_x - from_x)).min(axis=0)
        expected |= distance <= reach
    assert (found == expected).mean() > 0.998


@pytest.mark.parametrize("most", [1, 3 * 2 * 32 * 40, 10**9])
def test_many_segments_at_once_give_the_same_mask(most, monkeypatch):
    random = np.random.default_rng(0)
    segments = np.concatenate([random.uniform(0, 40, (4, 7, 2)), random.uniform(-2, 6, (1, 7, 2))])
    expected = brushed(segments, 32, 40, torch.device("cpu"))
    assert 0 < expected.mean() < 1
    y, x = torch.arange(32)[:, None] + 0.5, torch.arange(40) + 0.5
    numbers = torch.from_numpy(segments[:, (segments[4] >= 0).any(axis=1)].astype(np.float32))[..., None, None]
    at_once = max(1, most // (2 * 32 * 40))
    near = torch.cat([masks._near(some, y, x) for some in numbers.split(at_once, dim=1)])
    assert torch.equal(near.any(dim=0)[:, None].float(), expected)


def test_a_gpu_draws_all_strokes_with_few_kernels(monkeypatch):
    random = np.random.default_rng(0)
    segments = np.concatenate([random.uniform(0, 64, (4, 48, 8)), random.uniform(1, 6, (1, 48, 8))])
    count = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            count[function] += 1
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(masks.torch, "from_numpy", torch.tensor)
    with fake_device(monkeypatch, "cuda") as device, Counting():
        result = brushed(segments, 64, 64, device.device)
    assert result.device.type == "cuda"
    assert result.shape == (8, 1, 64, 64)
    assert sum(count.values()) < 60  # operations, views included; one of the 48 segments at a time takes about 20 each


def test_files_are_chosen_evenly_and_white_is_missing(folder):
    masks = made(Files(folder=str(folder)), 3000, size=(6, 10))
    areas, counts = masks.sum(dim=(1, 2, 3)).unique(return_counts=True)
    assert areas.tolist() == [2, 3, 4]
    assert (counts - 1000).abs().max() < 5 * math.sqrt(3000 * 2 / 9)
    assert masks[masks.sum(dim=(1, 2, 3)) == 3][0, 0, 1].tolist() == [1] * 3 + [0] * 7


@pytest.mark.parametrize("name", ["boxes", "strokes", "files"])
def test_a_mask_is_a_function_of_seed_and_position(name, folder):
    masks = {"boxes": Boxes(num_boxes=4, side=[0.2, 0.5]), "strokes": strokes(width=0.2), "files": Files(folder=str(folder))}
    mask, size = masks[name], {"height": 6, "width": 10, "device": CPU}
    whole = mask(np.arange(100, 130), 7, **size)
    assert torch.equal(torch.cat([mask(np.arange(i, i + 5), 7, **size) for i in range(100, 130, 5)]), whole)
    assert not torch.equal(mask(np.arange(100, 130), 8, **size), whole)
    assert not all(torch.equal(each, whole[0]) for each in whole)


# What is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Center(size=1.0), "size=1.0"),
        (lambda: Center(size=0.01).check(32, 32), "size=0.01"),
        (lambda: Center(size=0.99).check(64, 32), "size=0.99"),
        (lambda: Boxes(num_boxes=0, side=0.5), "num_boxes=0"),
        (lambda: Boxes(num_boxes=1, side=[0.5, 0.2]), "side=[0.5, 0.2]"),
        (lambda: Boxes(num_boxes=1, side=1.5), "side=1.5"),
        (lambda: Boxes(num_boxes=1, side=[0.01, 0.5]).check(32, 64), "side=0.01"),
        (lambda: strokes(num_strokes=0), "num_strokes=0"),
        (lambda: strokes(num_legs=[0, 5]), "num_legs=[0, 5]"),
        (lambda: strokes(num_legs=[1.5, 5]), "num_legs=[1.5, 5]"),
        (lambda: strokes(width=[0.1, 0.2, 0.3]), "width=[0.1, 0.2, 0.3]"),
        (lambda: strokes(width=0.01).check(32, 32), "width=0.01"),
    ],
)
def test_settings_out_of_range_are_refused(make, words):
    with raises(ValueError, words):
        make()


def test_masks_of_another_size_are_refused_with_the_file_and_both_sizes(folder):
    Image.new("L", (12, 6)).save(folder / "wide.png")
    with raises(DataError, "folder", word="wide.png"):
        Files(folder=str(folder)).check(6, 10)


def test_a_mask_that_cannot_be_decoded_is_named(folder):
    (folder / "1.png").write_bytes(b"no image")
    with raises(DataError, "folder", word="decoded"):
        Files(folder=str(folder)).check(6, 10)


@pytest.mark.parametrize(
    ("name", "words"), [("absent", "does not exist"), ("0.png", "is a file"), ("empty", "holds no images")]
)
def test_a_folder_without_masks_is_refused(folder, name, words):
    (folder / "empty").mkdir()
    with raises(DataError, "folder"):
        Files(folder=str(folder / name)).check(6, 10)
