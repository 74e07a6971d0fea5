"""Against scipy, which filters one image at a time; tolerances are of float32 arithmetic."""

import math

import numpy as np
import pytest
import torch
from errors import raises
from scipy import ndimage

from genimg.data.tasks.edges import Canny, Sobel
from genimg.data.tasks.filters import dilated, gaussian_blur, gaussian_radius, motion_blur, sobel


def images(count: int = 3, channels: int = 2, height: int = 20, width: int = 27) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (count, channels, height, width)).astype(np.float32))


def shape(kind: str, size: int = 40) -> torch.Tensor:
    """A white square or disc on black: [1, 1, H, W]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    if kind == "square":
        inside = (y >= 10) & (y < 28) & (x >= 12) & (x < 31)
    else:
        inside = (y - 19.5) ** 2 + (x - 18) ** 2 < 11**2
    return torch.where(inside, 1.0, -1.0)[None, None]


# Blurs


def test_gaussian_blur_is_scipys():
    given, sigmas = images(), [0.5, 1.6, 3.0]
    found = gaussian_blur(given, torch.tensor(sigmas), gaussian_radius(3.0))
    for image, result, sigma in zip(given, found, sigmas, strict=True):
        expected = ndimage.gaussian_filter(image.double().numpy(), (0, sigma, sigma), mode="mirror", radius=12)
        assert np.abs(result.numpy() - expected).max() < 1e-5
    assert gaussian_radius(1.6) == int(4 * 1.6 + 0.5)  # scipy's, where no radius is given


@pytest.mark.parametrize(("degrees", "axis"), [(0.0, -1), (90.0, -2)])
def test_motion_blur_along_an_axis_is_a_mean_of_neighbours(degrees, axis):
    given = images(1)
    found = motion_blur(given, torch.tensor([5.0]), torch.tensor([math.radians(degrees)]), 5)
    expected = ndimage.uniform_filter1d(given.double().numpy(), 5, axis=axis, mode="reflect")
    assert np.abs(found.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("degrees", [30.0, 45.0, 120.0])
def test_motion_blur_makes_a_line_of_a_point(degrees):
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1.0
    line = motion_blur(point, torch.tensor([11.0]), torch.tensor([math.radians(degrees)]), 11)[0, 0].double()
    assert abs(line.sum() - 1) < 1e-5
    y, x = torch.meshgrid(15.0 - torch.arange(31), torch.arange(31) - 15.0, indexing="ij")  # upwards, to the right
    direction = math.radians(degrees)
    along, across = x * math.cos(direction) + y * math.sin(direction), y * math.cos(direction) - x * math.sin(direction)
    assert (
        abs((line * along**2).sum() - (11**2 / 12)) < 0.5
    )  # the variance of a line of 11 pixels; bilinear adds up to a quarter
    assert (line * across**2).sum() < 0.26


def test_each_image_is_blurred_by_numbers_of_its_own():
    given, sigmas, radians = images(), torch.tensor([0.5, 1.6, 3.0]), torch.tensor([0.1, 1.0, 3.0])
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(gaussian_blur(given, sigmas, 12)[one], gaussian_blur(given[one], sigmas[one], 12))
        whole = motion_blur(given, 3 * sigmas, radians, 9)
        assert torch.equal(whole[one], motion_blur(given[one], 3 * sigmas[one], radians[one], 9))


def test_even_images_stay_as_they_are():
    even = torch.full((2, 3, 20, 20), 0.3)
    assert torch.allclose(gaussian_blur(even, torch.tensor([1.0, 2.0]), 8), even, atol=1e-6)
    assert torch.allclose(motion_blur(even, torch.tensor([3.0, 9.0]), torch.tensor([1.0, 2.0]), 9), even, atol=1e-6)


# Edges


def test_sobel_is_scipys():
    given = images()
    for found, axis in zip(sobel(given), (-2, -1), strict=True):
        smooth = ndimage.correlate1d(given.double().numpy(), [0.25, 0.5, 0.25], axis=-3 - axis, mode="nearest")
        expected = ndimage.correlate1d(smooth, [-1, 0, 1], axis=axis, mode="nearest")
        assert np.abs(found.numpy() - expected).max() < 1e-5


def test_sobel_edges_are_scikit_images():
    filters = pytest.importorskip("skimage.filters")
    given = images(2, 1)
    for image, found in zip(given, Sobel()(given), strict=True):
        assert np.abs((found[0].numpy() + 1) / 2 - filters.sobel((image[0].double().numpy() + 1) / 2)).max() < 1e-5


def test_sobel_edges_of_a_step_have_its_height():
    edges = Sobel()(torch.tensor([-1.0, -1, -1, 1, 1, 1]).expand(1, 3, 6, 6))
    assert torch.allclose(
        edges[0, 0, 2], torch.tensor([-1, -1, 2 * math.sqrt(0.5) - 1, 2 * math.sqrt(0.5) - 1, -1, -1]), atol=1e-6
    )


def test_dilation_is_scipys():
    given = images(2, 1)
    assert np.array_equal(dilated(given).numpy(), ndimage.grey_dilation(given.numpy(), (1, 1, 3, 3), mode="nearest"))


@pytest.mark.parametrize("sigma", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["square", "disc"])
def test_canny_edges_are_closed_and_thin(kind, sigma):
    edges = Canny(sigma=sigma, low=0.05, high=0.1)(shape(kind))
    assert set(edges.unique().tolist()) == {-1.0, 1.0}
    edge = (edges[0, 0] > 0).numpy()
    _, parts = ndimage.label(~edge)  # of four neighbours: a line with a gap of a corner is closed
    assert parts == 2  # inside and outside
    assert (ndimage.label(edge, np.ones((3, 3)))[1]) == 1
    blocks = edge[1:, 1:] & edge[:-1, 1:] & edge[1:, :-1] & edge[:-1, :-1]
    assert not blocks.any()
    inside = (shape(kind)[0, 0] > 0).numpy()
    border = inside ^ ndimage.binary_erosion(inside) | ndimage.binary_dilation(inside) ^ inside
    assert (border | ~edge).all()  # on one of the two sides of the step


def test_canny_edges_are_near_scikit_images():
    feature = pytest.importorskip("skimage.feature")
    smooth = gaussian_blur(images(1, 1, 64, 64), torch.tensor([3.0]), 12)
    smooth = smooth / smooth.abs().max()
    found = (Canny(sigma=1.0, low=0.05, high=0.1)(smooth)[0, 0] > 0).numpy()[2:-2, 2:-2]
    unit = (smooth[0, 0].double().numpy() + 1) / 2
    theirs = feature.canny(unit, 1.0, 0.2, 0.4, mode="mirror")[2:-2, 2:-2]  # their gradient is four times ours
    near, nearby = (ndimage.binary_dilation(edge, np.ones((3, 3))) for edge in (theirs, found))
    assert found.mean() > 0.05
    assert near[found].mean() > 0.9  # they interpolate between the neighbours that we choose from
    assert nearby[theirs].mean() > 0.9


def test_weak_edges_count_where_they_go_on_from_strong_ones():
    image = torch.full((1, 1, 24, 48), -1.0)
    image[:, :, 12:] = torch.linspace(1.0, -0.8, 48)  # an edge that is strong on the left and weak on the right
    only_weak = image.clone()
    only_weak[..., :32] = image[..., 32:].repeat(1, 1, 1, 2)
    canny = Canny(sigma=1.0, low=0.02, high=0.4)
    assert (canny(image)[0, 0, :, 40] > 0).any()
    assert (canny(only_weak) < 0).all()
    assert (Canny(sigma=1.0, low=0.4, high=0.4)(image)[0, 0, :, 40] < 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"sigma": 0.0}, "sigma=0.0"), ({"low": 0.2}, "low=0.2"), ({"high": 1.5}, "low=0.05"), ({"low": 0.0}, "low=0.0")],
)
def test_settings_out_of_range_are_refused(settings, words):
    with raises(ValueError, words):
        Canny(**({"sigma": 1.0, "low": 0.05, "high": 0.1} | settings))
