import numpy as np
import pytest
import torch
from PIL import Image

from genimg.data.tasks.colorspaces import lab_to_rgb, luma, rgb_to_lab
from genimg.utils.images import to_float, to_uint8

# sRGB, and its CIELAB under D65: of white and of the primaries (L, a, b to two decimals, as published tables have them)
KNOWN = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
}


def every_color() -> torch.Tensor:
    """A lattice of colours with all the darkest ones, where sRGB and CIELAB are linear: uint8 [1, 3, 1, M]."""
    levels = torch.tensor([*range(16), *range(16, 256, 16), 255], dtype=torch.uint8)
    return torch.cartesian_prod(levels, levels, levels).T[None, :, None]


def test_published_colours():
    rgb = torch.tensor([list(each) for each in KNOWN], dtype=torch.uint8).T[None, :, None]
    expected = torch.tensor([list(each) for each in KNOWN.values()]).T[None, :, None]
    assert torch.allclose(rgb_to_lab(to_float(rgb)), expected, atol=0.02)


def test_lab_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    rgb = every_color()
    lab = color.rgb2lab(rgb[0].permute(1, 2, 0).numpy())
    found = rgb_to_lab(to_float(rgb))[0].permute(1, 2, 0).numpy()
    assert np.abs(found - lab).max() < 1e-3
    back = lab_to_rgb(torch.from_numpy(lab).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs((back + 1) / 2 - color.lab2rgb(lab)).max() < 1e-3


def test_there_and_back_changes_nothing():
    rgb = to_float(every_color())
    assert (lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs().max() < 3e-5  # a level is 8e-3


def test_all_colours_of_srgb_are_in_the_range_that_networks_answer():
    lab = rgb_to_lab(to_float(every_color()))
    assert lab[:, 0].min() >= -1e-4
    assert lab[:, 0].max() <= 100 + 1e-4
    assert lab[:, 1:].abs().max() < 110


def test_colours_that_srgb_does_not_have_are_clipped():
    rgb = lab_to_rgb(torch.tensor([[50.0, 110, 110], [100, -110, 0], [0, 110, -110], [120, 0, 0]]).T[None, :, None])
    assert rgb.isfinite().all()
    assert rgb.min() >= -1
    assert rgb.max() <= 1


def test_luma_is_pillows():
    rgb = every_color()
    expected = np.asarray(Image.fromarray(rgb[0].permute(1, 2, 0).numpy()).convert("L"))
    found = to_uint8(luma(to_float(rgb)))[0, 0].numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.995  # Pillow's coefficients have 16 bits
    grey = to_float(rgb[:, :1])
    assert torch.equal(luma(grey), grey)
