"""What a command line takes away from what a model brings is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from genimg.api import usual
from genimg.config.compose import Composition, compose
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.training.state import TrainerSettings
from genimg.utils.paths import config_dir


def command_line(*overrides: str) -> Composition:
    without_local = ["local=null"] if Path(config_dir(), "local").is_dir() else []
    return compose(["run_dir=unused", *without_local, *overrides])


@pytest.mark.parametrize(("overrides", "keys", "is_warned"), [
    (["model.condition_dropout=0.2"], ("image",), True), (["model.condition_dropout=0.2"], ("image", "label"), False),
    ([], ("image",), False),
])  # fmt: skip
def test_a_dropout_of_conditions_without_any_is_warned_of(overrides, keys, is_warned, caplog):
    usual.warn_of_conditioning_without_effect(command_line("model=flow_small", *overrides), SimpleNamespace(batch_keys=keys))
    assert ("model.condition_dropout=0.2" in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["model=stylegan2_small", "penalty=[]"], ["r1_lazy", "path_length"]),
        (["model=stylegan2", "penalty=[r1]"], ["path_length"]),  # r1 is r1_lazy's penalty in another form
        (["model=stylegan2", "penalty=[path_length,r1_lazy]"], []),
        (["model=r3gan", "penalty=[r1]"], ["r2_r3gan"]),
        (["model=wgan_gp", "penalty=[lecam]"], ["gradient_penalty"]),
        (["model=dcgan", "penalty=[]"], []),
        (["model=stylegan2"], []),
        (["experiment=stylegan2_ada_cifar10"], []),
    ],
)
def test_penalties_that_are_taken_away_are_named(overrides, missing, caplog):
    usual.warn_of_missing_penalties(command_line(*overrides))
    assert len(caplog.records) == bool(missing)
    assert not missing or f"omits {' and '.join(missing)}:" in caplog.text


@pytest.mark.parametrize("names", ["r1,r1", "r1,r1_lazy", "r2_r3gan,r2"])
def test_two_forms_of_one_penalty_are_refused(names):
    composition = command_line()
    with pytest.raises(ConfigError, match=names.replace(",", "( and |,)").replace("r1( and |,)r1", "r1", 1)):
        usual.refuse_repeated_options(replace(composition, overrides=(f"penalty=[{names}]",)))
    usual.refuse_repeated_options(replace(composition, overrides=("penalty=[r1_lazy,r2]", "model=dcgan")))


@pytest.mark.parametrize(
    ("overrides", "num_images", "words"),
    [
        ([], 200, ["are 79 steps", "trainer.duration='640k images'"]),
        ([], 10_000, []),
        (["trainer.duration=100 steps"], 200, []),
        (
            ["model=stylegan2_small"],
            200,
            ["are 157 steps", "25M images (781,250 steps of 32", "trainer.duration='320k images'"],
        ),
        (["model=stylegan2_small"], 2_600, []),
        (["model=r3gan"], 18_000, ["are 7,032 steps", "250M images", "trainer.duration='640k images'"]),
        (["model=r3gan"], 60_000, []),
        (["model=pix2pix"], 50, ["are 1,250 steps", "200 epochs (10,000 steps of 1"]),
    ],
)
def test_a_training_too_short_to_learn_says_how_many_steps_it_is(overrides, num_images, words, caplog):
    composition = command_line(*overrides)
    config = OmegaConf.to_container(composition.config, resolve=True)
    builder = Builder(epoch_size=num_images, batch_size=config["trainer"]["batch_size"])
    settings = builder.settings(TrainerSettings, config["trainer"], "trainer")
    usual.warn_of_short_training(composition, settings, config, builder)
    assert len(caplog.records) == bool(words)
    assert all(word in caplog.text for word in words), caplog.text
