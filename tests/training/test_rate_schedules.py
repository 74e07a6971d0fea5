"""Learning-rate schedules against hand-computed points and torch's own schedulers."""

import math

import pytest
import torch
from errors import raises
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from genimg.training.schedules import Constant, Cosine, InverseSquareRoot, Linear
from genimg.utils.durations import NumImages

NO_WARMUP = NumImages(0)


def rates_of_torch(make_scheduler, num_steps):
    """The learning rate that each step would use, for a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_is_one_everywhere():
    schedule = Constant(warmup=NO_WARMUP)
    assert [schedule.at(images, 64) for images in (0, 64, 10**9)] == [1.0, 1.0, 1.0]


def test_warmup_rises_in_a_straight_line_and_its_first_step_is_not_lost():
    schedule = Constant(warmup=NumImages(640))
    factors = [schedule.at(step * 64, 64) for step in range(12)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0], rel=1e-12)


def test_linear_passes_through_its_points():
    schedule = Linear(duration=NumImages(1000), start=NumImages(200), final=0.1, warmup=NO_WARMUP)
    points = {0: 1.0, 199: 1.0, 200: 1.0, 400: 0.775, 600: 0.55, 1000: 0.1, 5000: 0.1}
    assert {images: schedule.at(images, 8) for images in points} == pytest.approx(points, rel=1e-12)


def test_cosine_passes_through_its_points():
    schedule = Cosine(duration=NumImages(1200), final=0.0, warmup=NO_WARMUP)
    points = {0: 1.0, 200: (2.0 + math.sqrt(3.0)) / 4.0, 300: (2.0 + math.sqrt(2.0)) / 4.0, 400: 0.75, 600: 0.5, 800: 0.25}
    assert {images: schedule.at(images, 8) for images in points} == pytest.approx(points, rel=1e-12)
    assert schedule.at(1200, 8) == pytest.approx(0.0, abs=1e-15)
    assert schedule.at(9000, 8) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_cosine_equals_that_of_torch(final):
    schedule = Cosine(duration=NumImages(50 * 16), final=final, warmup=NO_WARMUP)
    expected = rates_of_torch(lambda optimizer: CosineAnnealingLR(optimizer, T_max=50, eta_min=final), 50)
    assert [schedule.at(step * 16, 16) for step in range(50)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_linear_equals_that_of_torch(final):
    schedule = Linear(duration=NumImages(50 * 16), start=NumImages(0), final=final, warmup=NO_WARMUP)
    expected = rates_of_torch(lambda optimizer: LinearLR(optimizer, 1.0, final, total_iters=50), 60)
    assert [schedule.at(step * 16, 16) for step in range(60)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_warmup_multiplies_the_decay():
    settings = {"duration": NumImages(1000), "start": NumImages(0), "final": 0.0}
    plain, warmed = Linear(**settings, warmup=NO_WARMUP), Linear(**settings, warmup=NumImages(100))
    assert warmed.at(40, 10) == pytest.approx(0.5 * plain.at(40, 10), rel=1e-12)
    assert warmed.at(90, 10) == plain.at(90, 10)


def test_a_factor_depends_on_images_and_not_on_how_they_were_batched():
    schedule = Cosine(duration=NumImages(1024), final=0.0, warmup=NO_WARMUP)
    assert schedule.at(512, 4) == schedule.at(512, 128) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("start", [1000, 1001])
def test_linear_refuses_a_decay_that_begins_at_the_end_or_later(start):
    with raises(ValueError, f"start={start}"):
        Linear(duration=NumImages(1000), start=NumImages(start), final=0.0, warmup=NO_WARMUP)


def test_cosine_refuses_a_duration_of_nothing():
    with raises(ValueError, "duration=0"):
        Cosine(duration=NumImages(0), final=0.0, warmup=NO_WARMUP)


def test_the_inverse_square_root_is_constant_first_and_then_halves_whenever_the_images_quadruple():
    schedule = InverseSquareRoot(start=NumImages(1000), warmup=NumImages(100))
    points = {0: 0.1, 90: 1.0, 1000: 1.0, 4000: 0.5, 16_000: 0.25}
    assert {images: schedule.at(images, 10) for images in points} == pytest.approx(points, rel=1e-12)
    with pytest.raises(ValueError, match=r"^start="):
        InverseSquareRoot(start=NumImages(0), warmup=NO_WARMUP)
