"""Checks that the commands and the Python API share: each names the option at fault and takes what is just right."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from errors import raises

from genimg.errors import CheckpointError, ConfigError
from genimg.inference.checks import require_finite
from genimg.inference.conditions import Condition, require_condition, require_one
from genimg.inference.interpolation import Loop
from genimg.inference.tiling import check_tiles
from genimg.methods.options import LatentOptions, StyleOptions
from genimg.methods.sampling_options import listed, sampling_options


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_a_diverged_model_makes_is_no_image(value: float) -> None:
    images = torch.zeros(2, 3, 4, 4)
    assert require_finite(images) is images
    images[1, 2, 3, 0] = value
    with pytest.raises(CheckpointError):
        require_finite(images)


@pytest.mark.parametrize("given", [{}, {"truncation": None}, {"truncation": 0}, {"truncation": 0.7}, {"truncation": 3}])
def test_sampling_options_are_an_object_of_the_models(given: dict[str, float]) -> None:
    assert sampling_options(tiny.gan(), given) == LatentOptions(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [("truncation", -0.1), ("truncation", math.nan), ("truncation", "much"), ("truncation", [1.0]), ("noise", "const")],
)
def test_other_sampling_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        sampling_options(tiny.gan(), {name: value})
    assert caught.value.key == name


def test_options_are_listed_with_type_default_and_help() -> None:
    assert [(name, kind, default) for name, kind, default, _ in listed(StyleOptions())] == [
        ("truncation", "a whole number or a number or null", None), ("noise", "text", "random")
    ]  # fmt: skip
    assert all(told for *_, told in listed(StyleOptions()))


@pytest.mark.parametrize(("tile", "overlap"), [(None, 0), (None, 99), (8, 0), (8, 3), (12, 5)])
def test_tiles_that_fit_a_network(tile: int | None, overlap: int) -> None:
    check_tiles(tile, overlap, multiple=4, least=8)


@pytest.mark.parametrize(
    ("tile", "overlap", "key", "fix"),
    [(None, -1, "overlap", ""), (0, 0, "tile", ""), (10, 2, "tile", "tile=8"),
     (4, 1, "tile", "tile=8"), (8, 4, "overlap", "overlap=3")],
)  # fmt: skip
def test_other_tiles_are_refused_with_what_fits(tile: int | None, overlap: int, key: str, fix: str) -> None:
    with raises(ConfigError, word=fix) as caught:
        check_tiles(tile, overlap, multiple=4, least=8)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "value"), [("num_images", 1), ("frames", 1), ("frames_per_second", 0), ("frames_per_second", 1001)]
)
def test_a_loop_refuses_what_makes_no_animation(key: str, value: int) -> None:
    fitting = {"num_images": 2, "frames": 2, "frames_per_second": 1000}
    Loop(interpolate="linear", **fitting)
    with pytest.raises(ConfigError) as caught:
        Loop(interpolate="linear", **{**fitting, key: value})
    assert caught.value.key == key


def test_a_model_with_labels_needs_one_condition() -> None:
    model = tiny.conditional_gan("projection", 5)
    with raises(ConfigError, "label", word="near") as caught:
        require_condition(model, {}, "near=a.png")
    assert caught.value.key == "label"
    several = [Condition(str(label), {"label": torch.tensor([label])}) for label in range(2)]
    assert require_one(model, several[:1], "near=a.png") is several[0]
    with raises(ConfigError, "near", word="one"):
        require_one(model, several, "near=a.png")
