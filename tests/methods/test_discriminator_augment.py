import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from omegaconf import OmegaConf
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck

from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.methods import augment_operations as operations
from genimg.methods import discriminator_augment
from genimg.methods.augment_operations import SYM6
from genimg.methods.discriminator_augment import AdaptiveAugment, DiffAugment, FixedAugment, Pipeline
from genimg.schedules import Linear, ScheduledNumbers
from genimg.utils.paths import config_dir

ALL = {"blit": 1.0, "geometric": 1.0, "color": 1.0, "cutout": 1.0}
BGC = {"blit": 1.0, "geometric": 1.0, "color": 1.0}
TAPS = Pipeline(groups={"blit": 1.0}).taps
MANY = torch.zeros(40_000, 1, 64, 32)  # to draw parameters for: a frequency's standard deviation is at most 0.0025


def noise_images(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def adaptive(p=0.0, *, groups=BGC, target=0.6, interval=4, speed=1000, batch_size=10):
    module = AdaptiveAugment(groups=groups, target=target, interval=interval, speed=speed)
    module.p.fill_(p)
    module.begin(batch_size)
    return module


KINDS = {
    "diffaugment": DiffAugment(policy=["color", "translation", "cutout"]),
    "adaptive": adaptive(0.8),
    "fixed": FixedAugment(groups=ALL, p=0.8),
}


def seeded(module, seed=0):
    """The module as a function without randomness."""

    def function(images):
        torch.manual_seed(seed)
        return module(images)

    return function


# DiffAugment


def color_by_hand(image, draws):
    brightness, saturation, contrast = (draw.flatten() for draw in draws)
    for n in range(len(image)):
        image[n] += float(brightness[n]) - 0.5
        for y, x in itertools.product(range(image.shape[2]), range(image.shape[3])):
            grey = sum(image[n, :, y, x]) / image.shape[1]
            image[n, :, y, x] = [grey + 2 * float(saturation[n]) * (value - grey) for value in image[n, :, y, x]]
        mean = image[n].sum() / image[n].size
        image[n] = mean + (float(contrast[n]) + 0.5) * (image[n] - mean)
    return image


def translation_by_hand(image, draws):
    moved = np.zeros_like(image)
    _, channels, height, width = image.shape
    for n, c, y, x in itertools.product(range(len(image)), range(channels), range(height), range(width)):
        target_y, target_x = y + int(draws[0][n]), x + int(draws[1][n])
        if 0 <= target_y < height and 0 <= target_x < width:
            moved[n, c, target_y, target_x] = image[n, c, y, x]
    return moved


def cutout_by_hand(image, draws, sides):
    for n in range(len(image)):
        top, left = int(draws[0][n]) - sides[0] // 2, int(draws[1][n]) - sides[1] // 2
        for y, x in itertools.product(range(top, top + sides[0]), range(left, left + sides[1])):
            if 0 <= y < image.shape[2] and 0 <= x < image.shape[3]:
                image[n, :, y, x] = 0
    return image


@pytest.mark.parametrize("policy", itertools.permutations(["color", "translation", "cutout"]))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_diffaugment_is_what_loops_over_pixels_compute(policy, channels, shape):
    # 12 px move by up to int(1.5 + 0.5) = 2 and 9 px by up to int(1.125 + 0.5) = 1. A cutout of 6 px has its middle between
    # pixels or at an end, 0..12, and one of int(4.5 + 0.5) = 5 px on a pixel, 0..8.
    moves, middles, sides = ([{12: a, 9: b}[side] for side in shape] for a, b in ((2, 1), (12, 8), (6, 5)))
    images = noise_images(20, channels, *shape)
    result = seeded(DiffAugment(policy=policy))(images)
    torch.manual_seed(0)
    expected = images.double().numpy().copy()
    for name in policy:
        if name == "color":
            expected = color_by_hand(expected, [torch.rand(20) for _ in range(3)])
        elif name == "translation":
            expected = translation_by_hand(expected, [torch.randint(-most, most + 1, (20,)) for most in moves])
        else:
            expected = cutout_by_hand(expected, [torch.randint(0, most + 1, (20,)) for most in middles], sides)
    assert np.abs(result.numpy() - expected).max() < 1e-5


# The geometric operations


def test_quarter_turns_and_flips_are_exactly_torchs():
    images = noise_images(8, 3, 7, 7)
    turns, mirror = torch.tensor([0.0, 1, 2, 3] * 2), torch.tensor([1.0] * 4 + [-1.0] * 4)
    result = operations.resample(images, operations.blit_matrix(mirror, turns), torch.zeros(8, 2), TAPS)
    for n in range(8):
        flipped = images[n].flip(2) if n >= 4 else images[n]  # the flip comes first
        assert torch.equal(result[n], torch.rot90(flipped, int(turns[n]), (1, 2))), n


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6)])
@pytest.mark.parametrize("turns", [1, 3])
def test_a_quarter_turn_of_a_rectangle_turns_its_reflection(height, width, turns):
    images = noise_images(1, 1, height, width)
    result = operations.resample(
        images, operations.blit_matrix(torch.ones(1), torch.full((1,), turns)), torch.zeros(1, 2), TAPS
    )
    square = np.pad(images[0, 0].numpy(), [((8 - height) // 2,) * 2, ((8 - width) // 2,) * 2], mode="reflect")
    turned = np.rot90(square, turns)
    inside = turned[(8 - height) // 2 :][:height, (8 - width) // 2 :][:, :width]
    assert np.array_equal(result[0, 0].numpy(), inside)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-4, 1), (15, 13)])
def test_a_whole_translation_is_exactly_a_roll_of_the_reflection(right, down):
    images = noise_images(2, 3, 5, 8)
    shift = -torch.tensor([[right, down]]).float().expand(2, 2)  # back from the output to the input
    result = operations.resample(images, torch.eye(2).expand(2, 2, 2), shift, TAPS)
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (20, 20), (20, 20)], mode="reflect")
    assert np.array_equal(result.numpy(), np.roll(padded, (down, right), (2, 3))[:, :, 20:25, 20:28])


def test_a_hundredth_of_a_pixel_is_not_rounded_away():
    images = noise_images(1, 3, 8, 8)
    result = operations.resample(images, torch.eye(2).unsqueeze(0), torch.tensor([[0.01, 0.0]]), TAPS)
    assert 0.005 < (result - images).abs().max() < 0.1


def by_hand(name, amount):
    """(matrix of the operation alone, its inverse as complex arithmetic on x + iy)."""
    one, zero, value = torch.ones(1), torch.zeros(1), torch.full((1,), amount)
    if name == "scale":
        return operations.geometric_matrix(value, zero, one, zero), lambda z: z / amount
    if name == "before":
        return operations.geometric_matrix(one, value, one, zero), lambda z: z * np.exp(1j * amount)
    if name == "after":
        return operations.geometric_matrix(one, zero, one, value), lambda z: z * np.exp(1j * amount)
    return operations.geometric_matrix(one, zero, value, zero), lambda z: z.real / amount + 1j * z.imag * amount


@pytest.mark.parametrize(
    ("name", "amount"),
    [("scale", 1.4), ("scale", 0.8), ("before", 0.4), ("after", -2.5), ("stretch", 1.3), ("stretch", 0.8), ("none", 1.0)],
)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -2.7)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 24)])
def test_a_wave_that_is_its_own_reflection_is_moved_as_its_formula_says(name, amount, shift, height, width):
    def wave(z):
        x, y = z.real + (width - 1) / 2, z.imag + (height - 1) / 2
        return np.cos(np.pi * 3 * x / (width - 1)) * np.cos(np.pi * 2 * y / (height - 1))

    y, x = np.mgrid[0:height, 0:width]
    z = x - (width - 1) / 2 + 1j * (y - (height - 1) / 2)
    matrix, inverse = by_hand(name, amount)
    images = torch.from_numpy(wave(z)).float().view(1, 1, height, width)
    result = operations.resample(images, matrix, torch.tensor([shift]), TAPS)
    # Interpolation is not exact, and the filter, whose mean is at tap 5.1 rather than 5, moves an image by 0.05 px: by 0.1 px
    # when it is turned round, which is 0.04 where the wave is steepest (0.41 a pixel). A wrong half pixel is 0.2 off.
    assert np.abs(result[0, 0].numpy() - wave(inverse(z) + complex(*shift))).max() < 0.04


def test_all_geometric_operations_together_are_the_papers_product_of_homogeneous_matrices(monkeypatch):
    def matrix(a, b, c, d, x=0.0, y=0.0):
        return np.array([[a, b, x], [c, d, y], [0, 0, 1]])

    def rotation(angle):
        return matrix(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))

    first = operations.blit_matrix(-torch.ones(1), torch.full((1,), 3.0))
    second = operations.geometric_matrix(*(torch.full((1,), value) for value in (1.3, 0.7, 0.8, -1.9)))
    monkeypatch.setattr(discriminator_augment, "draw_blit", lambda images, p: (first, torch.tensor([[3.0, -2.0]])))
    monkeypatch.setattr(discriminator_augment, "draw_geometric", lambda images, p: (second, torch.tensor([[0.6, 1.7]])))
    linear, shift = Pipeline(groups=BGC)._draw_placement(torch.zeros(1, 3, 8, 8), torch.ones(()))
    # Operations on the image from right to left, each undone from left to right. Appendix B, with y pointing down.
    forward = rotation(1.9) @ matrix(0.8, 0, 0, 1 / 0.8) @ rotation(-0.7) @ matrix(1.3, 0, 0, 1.3)
    forward = matrix(1, 0, 0, 1, 0.6, 1.7) @ forward @ matrix(1, 0, 0, 1, 3, -2)
    inverse = np.linalg.inv(forward @ rotation(-3 * math.pi / 2) @ matrix(-1, 0, 0, 1))
    assert np.abs(linear[0].numpy() - inverse[:2, :2]).max() < 1e-6
    assert np.abs(shift[0].numpy() - inverse[:2, 2]).max() < 1e-5


def resampled_by_hand(image, matrix, shift):
    """The paper's three steps by scipy: insert zeros and filter, interpolate, filter and drop every other sample."""
    height, width = image.shape
    h = np.array(SYM6) / sum(SYM6)
    pad = 60
    fine = np.zeros((2 * (height + 2 * pad), 2 * (width + 2 * pad)))
    fine[::2, ::2] = np.pad(image, pad, mode="reflect")
    for axis in (0, 1):
        fine = np.apply_along_axis(lambda line: np.convolve(line, 2 * h), axis, fine)
    q_y, q_x = np.meshgrid(*[(np.arange(2 * side + 10) - 5) / 2 - (side - 1) / 2 for side in (height, width)], indexing="ij")
    x = matrix[0, 0] * q_x + matrix[0, 1] * q_y + shift[0] + (width - 1) / 2
    y = matrix[1, 0] * q_x + matrix[1, 1] * q_y + shift[1] + (height - 1) / 2
    read = map_coordinates(fine, [2 * (y + pad) + 5, 2 * (x + pad) + 5], order=1)
    for axis in (0, 1):
        read = np.apply_along_axis(lambda line: np.correlate(line, h, "valid")[::2], axis, read)
    return read


@pytest.mark.parametrize("shape", [(16, 16), (9, 14), (2, 5)])
def test_resampling_is_upsampling_interpolating_and_downsampling(shape):
    images = noise_images(6, 1, *shape)
    generator = torch.Generator().manual_seed(2)
    matrix = torch.eye(2) + 0.5 * torch.randn(6, 2, 2, generator=generator)
    shift = 3 * torch.randn(6, 2, generator=generator)
    result = operations.resample(images, matrix, shift, TAPS).numpy()
    for n in range(6):
        expected = resampled_by_hand(images[n, 0].numpy(), matrix[n].numpy(), shift[n].numpy())
        assert np.abs(result[n, 0] - expected).max() < 1e-4, n


def test_the_filter_is_a_symlet():
    h = np.array(SYM6)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-11)
    for k in range(6):  # orthogonal to its own even shifts
        assert h[2 * k :] @ h[: 12 - 2 * k] == pytest.approx(float(k == 0), abs=1e-11)
    for moment in range(6):  # its high-pass partner has six vanishing moments
        assert h @ ((-1.0) ** np.arange(12) * np.arange(12) ** moment) == pytest.approx(0.0, abs=1e-5)
    assert TAPS.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 31, 32])
def test_up_and_down_again_is_the_identity(size):
    up, down = operations._upsampling(TAPS, size), operations._downsampling(TAPS, size)
    period = max(4 * (size - 1), 1)
    assert up.shape == (4 * size - 3, size)
    assert torch.equal(up[0], up[-1]) == (size > 0)  # the ends of a period
    assert (down @ up[torch.arange(-5, 2 * size + 5) % period] - torch.eye(size)).abs().max() < 1e-6


# The colour operations


def test_colours_are_those_of_one_operation_after_another():
    generator = torch.Generator().manual_seed(3)
    brightness, contrast, hue, saturation = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    contrast, saturation, sign = contrast.exp(), saturation.exp(), torch.tensor([1.0, -1.0] * 3)
    images = noise_images(6, 3, 4, 5, dtype=torch.float64)
    result = operations.recolor(images, brightness, operations.color_matrix(contrast, sign, hue, saturation))
    axis = np.ones(3) / math.sqrt(3)
    for n, y, x in itertools.product(range(6), range(4), range(5)):
        color = (images[n, :, y, x].numpy() + brightness[n].item()) * contrast[n].item()
        if sign[n] < 0:  # a reflection in the plane of no luma
            color = color - 2 * axis * (axis @ color)
        color = Rotation.from_rotvec(axis * hue[n].item()).apply(color)
        grey = np.full(3, color.mean())
        color = grey + saturation[n].item() * (color - grey)
        assert np.abs(result[n, :, y, x].numpy() - color).max() < 1e-7  # the sign is float32


def test_grey_images_take_the_mean_of_the_three_channels_they_stand_for():
    images = noise_images(16, 1, 4, 4)
    result = seeded(FixedAugment(groups={"color": 1.0}, p=1.0))(images)
    in_color = seeded(FixedAugment(groups={"color": 1.0}, p=1.0))(images.expand(-1, 3, -1, -1))
    assert (result - in_color.mean(1, keepdim=True)).abs().max() < 1e-5
    assert not torch.allclose(result, images, atol=0.1)


def test_erased_are_the_pixels_whose_centres_are_inside():
    top, left, bottom, right = torch.tensor([[0.5, 2.5], [-3.0, 0.0], [4.6, 3.0], [1.6, 0.0]])
    result = operations.erase(torch.ones(2, 1, 6, 5), top, left, bottom, right)
    expected = torch.ones(2, 1, 6, 5)
    expected[0, 0, 1:5, 0:2] = 0  # rows 1.5 (0.5 is on the edge) to 4.5, columns up to 1.5; the second is empty
    assert torch.equal(result, expected)


# What is drawn


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0, 1.7])
def test_blits_have_the_papers_probabilities(p):
    torch.manual_seed(0)
    matrix, moved = operations.draw_blit(MANY, torch.tensor(p))
    p = min(p, 1.0)
    flipped = torch.det(matrix) < 0
    assert flipped.float().mean().item() == pytest.approx(p / 2, abs=0.012)
    turned = matrix.clone()
    turned[flipped, 0] *= -1
    for turn in range(1, 4):
        cos, sin = math.cos(turn * math.pi / 2), math.sin(turn * math.pi / 2)
        is_turn = (turned[:, 1] - torch.tensor([sin, cos])).abs().amax(1)
        assert (is_turn < 1e-3).float().mean().item() == pytest.approx(p / 4, abs=0.012)
    assert torch.equal(moved, moved.round())
    for axis, reach in ((0, 4), (1, 8)):  # an eighth of 32 px wide and 64 px high
        counts = [(moved[:, axis] == pixel).float().mean().item() for pixel in range(-reach - 1, reach + 2)]
        expected = [0.0, 0.5, *[1.0] * (2 * reach - 1), 0.5, 0.0]  # the ends round from half as wide an interval
        expected = [p * each / (2 * reach) for each in expected]
        expected[reach + 1] += 1 - p
        assert counts == pytest.approx(expected, abs=0.012)
    assert ((moved[:, 0] != 0) & (moved[:, 1] == 0)).float().mean().item() == pytest.approx(p * 7 / 128, abs=0.012)  # together


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_geometric_operations_have_the_papers_probabilities_and_deviations(p):
    torch.manual_seed(0)
    matrix, moved = operations.draw_geometric(MANY, torch.tensor(p))
    log_scale = -0.5 * torch.det(matrix).log2()  # the others keep areas
    assert (log_scale.abs() > 1e-5).float().mean().item() == pytest.approx(p, abs=0.012)
    assert log_scale.square().mean().item() == pytest.approx(p * 0.2**2, rel=0.05)
    assert log_scale.mean().item() == pytest.approx(0.0, abs=0.005)
    singular = torch.linalg.svdvals(matrix)
    log_stretch = 0.5 * (singular[:, 0] / singular[:, 1]).log2()
    assert (log_stretch > 1e-4).float().mean().item() == pytest.approx(p, abs=0.012)
    assert log_stretch.square().mean().item() == pytest.approx(p * 0.2**2, rel=0.05)
    straight = (log_stretch < 1e-4) & (matrix[:, 0, 1].abs() < 1e-4) & (matrix[:, 0, 0] > 0)
    assert straight.float().mean().item() == pytest.approx((1 - p) ** 2, abs=0.012)  # neither stretched nor turned
    for axis, side in ((0, 32), (1, 64)):
        assert moved[:, axis].square().mean().item() == pytest.approx(p * (side / 8) ** 2, rel=0.05)
        assert (moved[:, axis] != 0).float().mean().item() == pytest.approx(p, abs=0.012)
    if p == 1:  # an angle is spread over the whole circle
        assert matrix.mean(0).abs().max() < 0.02


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_colours_have_the_papers_probabilities_and_deviations(p):
    torch.manual_seed(0)
    brightness, matrix = operations.draw_color(MANY, torch.tensor(p))
    assert (brightness != 0).float().mean().item() == pytest.approx(p, abs=0.012)
    assert brightness.square().mean().item() == pytest.approx(p * 0.2**2, rel=0.05)
    luma = matrix.sum((1, 2)) / 3  # contrast, with the flip's sign
    assert (luma < 0).float().mean().item() == pytest.approx(p / 2, abs=0.012)
    assert ((luma.abs() - 1).abs() > 1e-5).float().mean().item() == pytest.approx(p, abs=0.012)
    assert luma.abs().log2().square().mean().item() == pytest.approx(p * 0.5**2, rel=0.05)
    across = torch.linalg.det(matrix / luma.view(-1, 1, 1)).abs().sqrt()  # saturation
    assert ((across - 1).abs() > 1e-4).float().mean().item() == pytest.approx(p, abs=0.012)
    assert across.log2().square().mean().item() == pytest.approx(p, rel=0.05)
    u, w = torch.tensor([1.0, -1, 0]) / math.sqrt(2), torch.tensor([1.0, 1, -2]) / math.sqrt(6)
    angle = torch.atan2(w @ matrix.mT @ u, u @ matrix.mT @ u)
    assert (angle.abs() > 1e-4).float().mean().item() == pytest.approx(p, abs=0.012)
    assert angle.square().mean().item() == pytest.approx(p * math.pi**2 / 3, rel=0.05)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_a_cutout_has_half_of_each_side_and_its_middle_in_the_image(p):
    torch.manual_seed(0)
    top, left, bottom, right = operations.draw_cutout(MANY, torch.tensor(p))
    drawn = bottom > top
    assert drawn.float().mean().item() == pytest.approx(p, abs=0.012)
    for low, high, side in ((top, bottom, 64), (left, right, 32)):
        assert (high - low)[drawn].sub(side / 2).abs().max() < 1e-4
        assert (high - low)[~drawn].abs().sum() == 0
        middle = (low + high) / 2 / side
        assert 0 <= middle.min() < 0.01
        assert 0.99 < middle.max() <= 1
        assert middle.var().item() == pytest.approx(1 / 12, rel=0.03)


@pytest.mark.parametrize("group", ALL)
def test_a_groups_factor_multiplies_the_probability_of_its_operations(group, monkeypatch):
    drawn, seen = getattr(operations, f"draw_{group}"), []
    monkeypatch.setattr(discriminator_augment, f"draw_{group}", lambda images, p: seen.append(p.item()) or drawn(images, p))
    FixedAugment(groups=ALL | {group: 0.5}, p=0.6)(torch.ones(2, 1, 4, 4))
    assert seen == pytest.approx([0.3])


def test_groups_that_are_left_out_do_nothing():
    images = noise_images(500, 3, 4, 4)
    assert torch.equal(FixedAugment(groups={"blit": 1.0}, p=1.0)(images).flatten(2).unique(), images.unique())
    erased = FixedAugment(groups={"cutout": 1.0}, p=1.0)(images)
    assert torch.equal(erased, images * (erased != 0))
    color = FixedAugment(groups={"color": 1.0}, p=1.0)(images[:, :, :1, :1].expand(-1, -1, 4, 4))
    assert (color - color[:, :, :1, :1]).abs().max() < 1e-6


# What holds for every kind


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 9, 12)])
def test_at_probability_zero_images_stay_exactly_the_same(shape):
    images = noise_images(*shape)
    assert torch.equal(adaptive(0.0, groups=ALL)(images), images)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_random_numbers_are_used_whatever_p_is_and_the_input_is_left_alone(name):
    images = noise_images(4, 3, 8, 8)
    before = images.clone()
    torch.manual_seed(5)
    first = KINDS[name](images)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    if name != "diffaugment":
        (adaptive(0.0) if name == "adaptive" else FixedAugment(groups=ALL, p=1e-6))(2 * images)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(5)
    assert torch.equal(KINDS[name](images), first)
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert not torch.allclose(first, images, atol=0.1)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_first_and_second_derivatives_are_right(name, channels):
    images = noise_images(3, channels, 5, 6, dtype=torch.float64).requires_grad_()
    # Along random directions; resampling is checked in every one below.
    assert gradcheck(seeded(KINDS[name]), images, fast_mode=True)
    # The third power, because the second derivative of what is linear in the images is 0.
    assert gradgradcheck(lambda each: seeded(KINDS[name])(each).pow(3), images, fast_mode=True)


def test_derivatives_of_resampling_are_right():
    images = noise_images(2, 1, 3, 4, dtype=torch.float64).requires_grad_()
    matrix = torch.tensor([[[0.8, -0.5], [0.7, 1.1]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)  # one is picked
    shift = torch.tensor([[0.3, 5.2], [1.0, 0.0]], dtype=torch.float64)
    assert gradcheck(lambda each: operations.resample(each, matrix, shift, TAPS), images)
    assert gradgradcheck(lambda each: operations.resample(each, matrix, shift, TAPS).pow(3), images)


@pytest.mark.parametrize("name", KINDS)
def test_an_images_gradient_does_not_come_from_another_image(name):
    images = noise_images(4, 3, 8, 8).requires_grad_()
    seeded(KINDS[name])(images)[1].square().sum().backward()
    assert images.grad[[0, 2, 3]].abs().sum() == 0
    assert images.grad[1].abs().sum() > 1


@pytest.mark.parametrize("name", KINDS)
def test_under_autocast_everything_is_computed_in_float32(name):
    def penalty(images):
        images = images.clone().requires_grad_()
        changed = seeded(KINDS[name])(images)
        (gradient,) = torch.autograd.grad(changed.pow(3).sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), images)
        return changed.detach(), gradient.detach(), second

    images = noise_images(4, 3, 8, 8)
    plain = penalty(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = penalty(images)
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))
    assert all(each.dtype == torch.float32 for each in mixed)
    half = seeded(KINDS[name])(images.bfloat16())
    assert torch.equal(half, seeded(KINDS[name])(images.bfloat16().float()).bfloat16())


# The controller


def signs(num_positive, num_negative):
    return torch.tensor([2.5] * num_positive + [-0.1] * num_negative)


def test_p_follows_the_sign_of_the_real_logits_as_by_hand():
    module = adaptive(speed=1000, interval=2, batch_size=10)  # a step of 2 * 10 / 1000
    p = []
    for num_positive in (10, 10, 9, 8, 9, 7, 8, 7, 0, 0, 0, 0, 10, 10):
        module.observe(signs(num_positive, 10 - num_positive))
        p.append(round(module.p.item(), 6))
    # r of the pairs: 1, 0.7, 0.6 (16 of 20 positive: the target, so p rests), 0.5, -1, -1 (stops at 0), 1
    assert p == [0.0, 0.02, 0.02, 0.04, 0.04, 0.04, 0.04, 0.02, 0.02, 0.0, 0.0, 0.0, 0.0, 0.02]
    assert module.metrics().keys() == {"discriminator_augment/p", "discriminator_augment/real_sign"}
    assert module.metrics()["discriminator_augment/real_sign"].item() == 1.0


def test_p_rises_above_one_and_a_logit_of_zero_counts_as_neither():
    module = adaptive(0.99, speed=100, interval=1, batch_size=4)
    module.observe(torch.tensor([1.0, 1.0, 1.0, 0.0]))  # r = 0.75
    assert module.p.item() == pytest.approx(1.03, abs=1e-6)
    module.observe(torch.tensor([1.0, 1.0, 0.0, 0.0]))  # r = 0.5
    assert module.p.item() == pytest.approx(0.99, abs=1e-6)


def test_p_goes_from_zero_to_one_over_as_many_images_as_speed_says():
    module = adaptive(speed=960, interval=4, batch_size=8)
    for _ in range(120):
        assert module.p.item() < 1 - 1e-5
        module.begin(8)
        module.observe(torch.ones(8))
    assert module.p.item() == pytest.approx(1.0, abs=1e-5)


def test_it_makes_no_difference_where_the_logits_are_cut():
    whole, cut = adaptive(interval=2), adaptive(interval=2)
    for _ in range(3):
        whole.observe(signs(9, 1))
        cut.observe(signs(5, 0))
        cut.observe(signs(4, 1))
        assert torch.equal(whole.p, cut.p)
        assert torch.equal(whole.sums, cut.sums)


def test_a_checkpoint_in_the_middle_of_an_interval_continues_to_the_bit():
    updates = [torch.randn(10, generator=torch.Generator().manual_seed(i)) + 0.9 for i in range(30)]
    straight = adaptive(0.3, interval=4)
    for logits in updates:
        straight.observe(logits)
    first = adaptive(0.3, interval=4)
    for logits in updates[:14]:
        first.observe(logits)
    assert first.sums[1] == 20
    second = adaptive(interval=4)
    second.load_state_dict(first.state_dict())
    for logits in updates[14:]:
        second.observe(logits)
    assert straight.p not in (0.0, 0.3)
    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_the_sums_are_those_of_all_ranks(monkeypatch):
    own, other = signs(5, 0), signs(1, 4)  # r = 1 here, 0.2 over both
    there = torch.tensor([other.sign().sum(), 5.0])
    monkeypatch.setattr(discriminator_augment, "sum_over_ranks", lambda tensor: tensor + there)
    module = adaptive(0.5, interval=2, batch_size=10)
    module.observe(own)
    assert module.sums.tolist() == [2.0, 10.0]
    module.observe(own)
    assert module.p.item() == pytest.approx(0.48)
    assert module.metrics()["discriminator_augment/real_sign"].item() == pytest.approx(0.2)


def test_metrics_do_not_change_after_they_were_taken():
    module = adaptive(0.5, interval=1)
    taken = module.metrics()["discriminator_augment/p"]
    module.observe(signs(10, 0))
    assert taken.item() == 0.5
    assert module.metrics()["discriminator_augment/p"].item() == pytest.approx(0.51)


# The schedule


@pytest.mark.parametrize(("images", "expected"), [(0, 0.0), (250, 0.15), (1000, 0.6), (5000, 0.6)])
def test_a_schedule_drives_the_probability(images, expected):
    module = FixedAugment(groups=ALL, p=Linear(start=0.0, end=0.6, duration=1000))
    assert module.metrics()["discriminator_augment/p"].item() == 0.0
    ScheduledNumbers(module).advance(images, 10)
    module.begin(10)
    assert module.metrics()["discriminator_augment/p"].item() == pytest.approx(expected)
    assert module.state_dict() == {}


def test_a_fixed_probability_stays():
    module = FixedAugment(groups={"cutout": 1.0}, p=1)
    module.begin(10)
    assert module.metrics()["discriminator_augment/p"].item() == 1.0
    assert (seeded(module)(torch.ones(5, 1, 8, 8)).amin((1, 2, 3)) == 0).all()


# What is refused, and the files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffAugment(policy=["color", "cut"]), "policy=[color,cut]"),
        (lambda: DiffAugment(policy=["color", "color"]), "policy=[color,color]"),
        (lambda: DiffAugment(policy=[]), "policy=[]"),
        (lambda: DiffAugment(policy="color"), "policy=color"),
        (lambda: adaptive(groups={"blitt": 1.0}), "groups.blitt"),
        (lambda: adaptive(groups={"blit": 0.0}), "groups.blit=0.0"),
        (lambda: adaptive(groups={"blit": 1.5}), "groups.blit=1.5"),
        (lambda: adaptive(groups={"blit": "much"}), "groups.blit=much"),
        (lambda: adaptive(groups={}), "groups={}"),
        (lambda: adaptive(groups=["blit"]), "groups=['blit']"),
        (lambda: adaptive(speed=0), "speed=0"),
        (lambda: adaptive(speed=-5), "speed=-5"),
        (lambda: adaptive(interval=0), "interval=0"),
        (lambda: adaptive(target=1.0), "target=1.0"),
        (lambda: adaptive(target=-0.1), "target=-0.1"),
        (lambda: FixedAugment(groups=ALL, p=0.0), "p=0.0"),
        (lambda: FixedAugment(groups=ALL, p=1.1), "p=1.1"),
        (lambda: FixedAugment(groups=ALL, p=Linear(start=0.0, end=1.5, duration=9)), "p=0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with raises(ValueError, word=message):
        make()


def test_colour_of_images_that_are_neither_grey_nor_rgb_is_refused_and_the_rest_is_not():
    with raises(ConfigError, "groups.color", word="these") as caught:
        adaptive()(torch.zeros(2, 4, 8, 8))
    assert caught.value.key == "groups.color"
    assert adaptive(0.9, groups={"geometric": 1.0, "cutout": 1.0})(torch.zeros(2, 4, 8, 8)).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("name", "kind"), [("none", type(None)), ("diffaugment", DiffAugment), ("ada", AdaptiveAugment), ("r3gan", FixedAugment)]
)
def test_the_files_build(name, kind):
    config = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "discriminator_augment" / f"{name}.yaml"))
    module = Builder(epoch_size=50_000, batch_size=64).build_group({"discriminator_augment": config}, "discriminator_augment")
    assert type(module) is kind
    if kind is AdaptiveAugment:
        assert (module.speed, module.p.item()) == (500_032, 0.0)  # whole batches of 64
    if kind is FixedAugment:
        numbers, found = ScheduledNumbers(module), []
        for images in (0, 10_000_000, 20_000_000):
            numbers.advance(images, 64)
            found.append(module.probability)
        assert found == pytest.approx([0, 0.275, 0.55], abs=1e-5)  # 20M images are whole batches
