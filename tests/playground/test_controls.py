"""The controls of the page follow from the options of the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from errors import raises
from test_diffusion import build

from genimg.data.facts import DataFacts
from genimg.errors import ConfigError
from genimg.methods.consistency import ConsistencyOptions
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.mean_flow import MeanFlowOptions
from genimg.methods.options import CodeOptions, LatentOptions, OtherModel, SamplingOptions, StyleOptions
from genimg.methods.sampling_options import Lookup
from genimg.playground.controls import Control, checked_values, chosen_sampling, option_controls
from genimg.playground.model import PlayedModel
from genimg.playground.tasks import tasks_of

OPTIONS = [CodeOptions(), ConsistencyOptions(), DiffusionOptions(), LatentOptions(), MeanFlowOptions(), StyleOptions()]


def by_name(options: SamplingOptions, start: dict[str, Any] | None = None) -> dict[str, Control]:
    return {each.name: each for each in option_controls(options, start or {}, [("index:0", "cat"), ("index:1", "dog")])}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: type(each).__name__)
def test_sliders_and_choices_hold_values_that_the_options_accept(options: SamplingOptions) -> None:
    needed = {"variance": {"sampler": "ancestral"}}
    for name, control in by_name(options).items():
        values = list(control.usual or ()) + [each for each, _ in control.choices if not str(each).startswith("index:")]
        for value in values:
            options.replaced(**needed.get(name, {}), **{name: value})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: type(each).__name__)
def test_choices_are_all_that_the_options_accept(options: SamplingOptions) -> None:
    for name, control in by_name(options).items():
        if control.choices and name not in ("negative", "spacing"):  # the class and the path check these
            with pytest.raises(ValueError, match=name):
                options.replaced(**{name: "another"})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: type(each).__name__)
def test_the_defaults_change_nothing(options: SamplingOptions) -> None:
    controls = list(by_name(options).values())
    assert chosen_sampling(controls, checked_values(controls, {}), options) == {}
    names = {field.name for field in dataclasses.fields(options)} - {"autoguidance"}
    assert {control.name for control in controls} == names


def test_an_option_that_names_another_model_needs_the_command_line() -> None:
    assert "autoguidance" not in by_name(DiffusionOptions())
    control = by_name(DiffusionOptions(), {"autoguidance": "outputs/weak"})["autoguidance"]
    assert control.checked("outputs/weak") == "outputs/weak"
    assert control.checked(None) is None
    with raises(ConfigError, "autoguidance"):
        control.checked("/etc/passwd")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 2.0), ("steps", True), ("steps", None), ("guidance", "1"), ("guidance", float("nan")), ("sampler", "hun"),
        ("sampler", None), ("clip", 1), ("negative", 1), ("eta", []),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(name: str, value: Any) -> None:
    with raises(ConfigError, name):
        checked_values(list(by_name(DiffusionOptions()).values()), {name: value})


def test_long_text_is_refused_and_shortened_in_the_message() -> None:
    with raises(ConfigError, "text") as caught:
        Control(name="text", label="Caption", kind="text").checked("a" * 2001)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("num_classes", "start", "shown"), [
    (0, {}, False), (3, {}, True), (0, {"guidance": 2.0}, True),  # what the user sets is not hidden, but refused
])  # fmt: skip
def test_options_without_an_effect_on_the_model_have_no_control(num_classes: int, start: dict[str, Any], shown: bool) -> None:
    method = build("flow", num_classes=num_classes, condition_dropout=0.1)
    lookup = Lookup(lambda name, path: OtherModel(None, path, {}), lambda name, value: 0)
    facts = DataFacts(image_size=8, channels=3, num_classes=num_classes)
    model = PlayedModel(method, torch.device("cpu"), facts, {}, ["a"] * num_classes, lookup)
    names = {each.name for task in tasks_of(model, start) for each in task.controls}
    assert ("guidance" in names) == shown
    assert ("negative" in names) == shown
    assert {"steps", "sampler"} <= names
