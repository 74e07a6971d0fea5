import math
import random
from fractions import Fraction

import pytest
from errors import raises

from genimg.errors import ConfigError
from genimg.utils.durations import to_images, to_seconds, to_share


def convert(text: object, *, epoch_size: int = 60_000, batch_size: int = 64) -> int:
    return to_images(text, epoch_size=epoch_size, batch_size=batch_size, key="trainer.duration")


@pytest.mark.parametrize(
    ("text", "epoch_size", "batch_size", "images"),
    [
        ("5M images", 50_000, 64, 5_000_000),
        ("100k steps", 50_000, 64, 6_400_000),
        ("25 epochs", 60_000, 100, 1_500_000),
        ("1 epoch", 60_000, 64, 60_032),  # 937.5 steps, rounded up
        ("1 image", 60_000, 64, 64),
        ("64 images", 60_000, 64, 64),
        ("65 images", 60_000, 64, 128),
        ("0.5 epochs", 60_000, 100, 30_000),
        (".5 epochs", 60_000, 100, 30_000),
        ("1.5k steps", 60_000, 8, 12_000),
        ("0 steps", 60_000, 64, 0),
        ("1 step", 10, 64, 64),
    ],
)
def test_durations_worked_out_by_hand(text, epoch_size, batch_size, images):
    assert convert(text, epoch_size=epoch_size, batch_size=batch_size) == images


def test_a_share_of_the_training_is_rounded_up_to_whole_steps():
    settings = {"epoch_size": 1000, "batch_size": 64, "key": "evaluation.interval"}
    assert to_images("20 %", training="10 epochs", **settings) == 32 * 64  # 10,048 images are 157 steps, a fifth of them 31.4
    assert to_images("33.4%", training="3 steps", **settings) == 2 * 64
    assert to_images("50 %", training="10 seconds", images_per_second=128.0, **settings) == 10 * 64
    assert to_share("12.5 %") == Fraction(1, 8)
    with raises(ConfigError, "evaluation.interval=20 %"):
        to_images("20 %", **settings)
    with raises(ConfigError, "trainer.duration=10 %"):
        to_images("20 %", training="10 %", **settings)


@pytest.mark.parametrize("text", ["1.1 epochs", "2.2 epochs", "0.3 epochs", "0.7 epochs"])
def test_binary_rounding_never_costs_an_extra_step(text):
    # 1.1 * 100 is 110.00000000000001 in binary floating point.
    assert convert(text, epoch_size=100, batch_size=1) == Fraction(text.split()[0]) * 100


@pytest.mark.parametrize("number", ["4.1", "32.2", "33.2", "99.9"])
def test_millions_of_steps_are_exact(number):
    assert convert(f"{number}M steps", batch_size=64) == Fraction(number) * 1_000_000 * 64


def test_every_duration_is_the_exact_amount_rounded_up_to_whole_steps():
    draw = random.Random(0)
    for _ in range(2000):
        number = f"{draw.randrange(0, 10_000)}.{draw.randrange(0, 100):02d}"
        unit = draw.choice(["epochs", "steps", "images"])
        factor = draw.choice(["", "k"])
        epoch_size, batch_size = draw.randrange(1, 100_000), draw.randrange(1, 1025)
        per_unit = {"epochs": epoch_size, "steps": batch_size, "images": 1}[unit]
        exact = Fraction(number) * {"": 1, "k": 1000}[factor] * per_unit
        if exact / batch_size > 1_000_000:
            continue
        expected = math.ceil(exact / batch_size) * batch_size
        assert convert(f"{number}{factor} {unit}", epoch_size=epoch_size, batch_size=batch_size) == expected


@pytest.mark.parametrize("text", ["2k steps", "2K steps", "2k step", "2 k steps", "2ksteps", "  2000   steps ", "2000.0 steps"])
def test_spacing_plural_and_case_of_k_do_not_matter(text):
    assert convert(text) == 128_000


@pytest.mark.parametrize(
    "text",
    [
        "25",
        "epochs",
        "",
        "-1 epochs",
        "1e3 steps",
        "5B images",
        "5m images",
        "1.2.3 steps",
        "10 stepss",
        "3 weeks",
        25,
        2.5,
        None,
    ],
)
def test_what_is_not_a_duration_is_refused_with_the_key_and_the_value(text):
    with raises(ConfigError, "trainer.duration") as caught:
        convert(text)
    assert str(caught.value).startswith(f"trainer.duration={text} ")
    assert "'25 epochs'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300 seconds", 300), ("1 second", 1), ("3 minutes", 180), ("1.5 hours", 5400), (" .5 minutes ", 30)],
)
def test_times_worked_out_by_hand(text, seconds):
    assert to_seconds(text) == seconds
    images = to_images(text, epoch_size=10, batch_size=64, key="trainer.duration", images_per_second=100.0)
    assert images == math.ceil(seconds * 100 / 64) * 64


@pytest.mark.parametrize("text", ["25 epochs", "100k steps", "5M images", "3 min", "3", 3, None])
def test_other_durations_are_no_times(text):
    assert to_seconds(text) is None


def test_a_time_without_a_rate_is_refused_by_its_key():
    with raises(ConfigError, "trainer.log_interval=10 seconds"):
        to_images("10 seconds", epoch_size=10, batch_size=64, key="trainer.log_interval")
