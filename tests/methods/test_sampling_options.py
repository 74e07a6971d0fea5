"""Sampling options that have no effect on a model."""

import logging
import time
from dataclasses import dataclass

import pytest
import tiny
from test_diffusion import build

from genimg.errors import ConfigError
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.options import OtherModel, SamplingOptions, setting
from genimg.methods.sampling_options import without_effect

GUIDANCE = {"guidance", "negative", "guidance_from", "guidance_until"}
CHURN = {"churn", "churn_noise", "churn_from", "churn_until"}


@pytest.mark.parametrize(("changes", "useless"), [
    ({"recipe": "edm"}, GUIDANCE), ({"recipe": "edm", "num_classes": 3, "condition_dropout": 0.1}, set()),
    ({"recipe": "edm", "num_classes": 3, "condition_dropout": 0.0}, set()),  # guidance may lead away from a negative class
    ({"recipe": "flow"}, GUIDANCE | CHURN), ({"recipe": "flow", "num_classes": 3, "condition_dropout": 0.1}, CHURN),
])  # fmt: skip
def test_guidance_and_churn_have_an_effect_on_some_models_only(changes, useless):
    method = build(**changes)
    assert without_effect(method.check_options, DiffusionOptions()) == useless


def test_guidance_by_a_weaker_model_needs_no_condition():
    method = build("edm")
    usual = DiffusionOptions(guidance=2.0, autoguidance=OtherModel(build("edm"), "weak.pt", {}))
    assert without_effect(method.check_options, usual) == set()
    assert without_effect(method.check_options, DiffusionOptions(guidance=2.0)) == set()  # refused as a whole


def test_latents_of_a_gan_can_be_truncated():
    method = tiny.gan()
    assert without_effect(method.check_options, method.sampling_options) == set()


def test_nothing_is_logged_and_it_is_quick(caplog):
    method = build("ddpm", num_classes=2)
    with caplog.at_level(logging.INFO):
        start = time.perf_counter()
        found = without_effect(method.check_options, DiffusionOptions())
    assert time.perf_counter() - start < 1
    assert not caplog.text
    assert not found & {"variance", "eta", "steps", "sampler", "clip"}
    method.check_options(DiffusionOptions(sampler="ancestral", variance="large", steps=2))
    assert "variance=large" in caplog.text


def test_an_option_whose_valid_values_are_unknown_counts_as_having_an_effect():
    @dataclass(frozen=True)
    class Options(SamplingOptions):
        rare: int = setting("A number of 7 or more", 7)
        refused: bool = setting("Refused by the model", False)

        def __post_init__(self) -> None:
            if self.rare < 7:
                raise ValueError(f"rare={self.rare} must be 7 or more")

    def check(options: Options) -> None:
        if options.refused:
            raise ConfigError("refused=true has no effect on this model")

    assert without_effect(check, Options()) == {"refused"}
