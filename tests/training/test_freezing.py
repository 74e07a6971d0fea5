"""``freeze``: parts of the networks that training does not change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg import train
from genimg.errors import ConfigError
from genimg.methods.base import trained_groups
from genimg.methods.modes import eval_mode, take_standing_statistics, train_mode
from genimg.training.freezing import freeze

GAN = ("data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
       "model=dcgan_small", *tiny.SIZES["dcgan_small"], "evaluation=none", "device=cpu", "precision=fp32")  # fmt: skip
PARTS = "freeze=[generator.layers.0,generator.layers.1,discriminator.features]"


def trained(folder: Path, *overrides: str, base: tuple[str, ...] = GAN) -> dict[str, Any]:
    train([*base, *overrides, f"run_dir={folder}"])
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return state


def is_frozen(name: str) -> bool:
    return name.startswith(("generator.layers.0.", "generator.layers.1.", "discriminator.features."))


@pytest.mark.parametrize("more", [(), ("trainer.accumulation=2",), ("penalty=[r1_lazy,weight_clipping]", "optimizer=adamw")])
def test_frozen_parts_keep_their_bits_and_all_others_are_trained(more: tuple[str, ...], tmp_path: Path) -> None:
    before = trained(tmp_path / "first", "trainer.duration=1 steps")
    after = trained(tmp_path / "second", "trainer.duration=3 steps", f"init_from={tmp_path / 'first'}", PARTS, *more)
    start = {**before["method"], **before["averages"]["exponential"]}
    for state in (after["method"], after["averages"]["exponential"]):
        for name, value in state.items():
            assert not value.numel() or torch.equal(value, start[name]) == is_frozen(name), name
    names = [name for name in after["method"] if not is_frozen(name) and name.endswith((".weight", ".bias"))]
    for group, optimizer in after["optimizers"].items():
        assert len(optimizer["param_groups"][0]["params"]) == sum(name.startswith(group) for name in names)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    arguments = (PARTS, "penalty=[r1_lazy]", "trainer.accumulation=2")
    whole = trained(tmp_path / "whole", "trainer.duration=4 steps", *arguments)
    trained(tmp_path / "parts", "trainer.duration=2 steps", *arguments)
    again = "freeze=[discriminator.features,generator.layers.1,generator.layers.0,generator.layers.0]"  # the same parameters
    parts = trained(tmp_path / "parts", "trainer.duration=4 steps", again, *arguments[1:])
    for name, value in whole["method"].items():
        assert torch.equal(value, parts["method"][name]), name
    for changed in ("freeze=[]", "freeze=[generator.layers.0]"):
        for force in ("true", "false"):
            with raises(ConfigError, word="freeze"):
                trained(tmp_path / "parts", "trainer.duration=6 steps", *arguments[1:], changed, f"resume_force={force}")


def test_random_frozen_weights_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path / "run", "trainer.duration=1 steps", PARTS)
    assert [record for record in caplog.records if record.levelname == "WARNING" and "freeze" in record.getMessage()]


@pytest.mark.parametrize(
    ("value", "listed"),
    [
        ("[generator.layer]", "generator.layers"),  # only whole components
        ("[generator.layers.99]", "generator.layers.0"),
        ("[translator]", "discriminator"),
        ("[generator]", "generator.layers"),
        ("[generator.layers.0,discriminator]", "discriminator.features"),
    ],
)
def test_prefixes_without_parameters_and_groups_without_any_left_are_refused(value: str, listed: str, tmp_path: Path) -> None:
    with raises(ConfigError, "freeze", listed):
        trained(tmp_path / "run", "trainer.duration=1 steps", f"freeze={value}")
    assert not (tmp_path / "run").exists()


def test_frozen_modules_stay_in_evaluation_mode_also_in_copies() -> None:
    gan = tiny.gan()
    freeze(gan, ["generator.layers.0", "generator.layers.1"])
    for method in (gan, copy.deepcopy(gan)):
        norm, other = method.generator.layers[1], method.generator.layers[4]
        assert isinstance(norm, nn.BatchNorm2d)
        statistics = norm.running_mean.clone()
        method.train()
        with eval_mode(method.generator):
            pass
        latent = torch.randn(4, 5)
        with train_mode(method.generator):
            method.generator(latent, tiny.no_condition(4))
        method.generator(latent, tiny.no_condition(4))
        take_standing_statistics(method.generator, [(latent, tiny.no_condition(4))])
        assert (norm.training, torch.equal(norm.running_mean, statistics)) == (False, True)
        assert other.running_mean.abs().max() > 0
    assert copy.deepcopy(gan).generator.layers[1].train().training is False


def test_a_module_with_some_trained_parameters_stays_in_training_mode() -> None:
    gan = tiny.gan()
    freeze(gan, ["generator.layers.1.weight"])
    gan.train()
    assert gan.generator.layers[1].training
    names = {name for name, parameter in gan.named_parameters() if id(parameter) in map(id, trained_groups(gan)["generator"])}
    assert "generator.layers.1.bias" in names
    assert "generator.layers.1.weight" not in names


SMALL = ("data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
         "evaluation=none", "device=cpu", "precision=fp32")  # fmt: skip


@pytest.mark.parametrize(
    ("model", "prefix", "more"),
    [
        ("sngan", "discriminator.features", tiny.SIZES["sngan"]),  # with spectral norm
        ("stylegan2", "generator.styles", [*tiny.SIZES["stylegan2"], "penalty=[r1_lazy,path_length]"]),
        ("edm2", "denoiser.network.stem", tiny.DENOISERS["edm2"]),  # whose weights are normalised after each step
        ("rae", "encoder", [*tiny.AUTOENCODERS["rae"], "loss=rae_gp"]),
        ("kl_autoencoder", "encoder", [*tiny.LATENT_AUTOENCODERS["kl_autoencoder"], "model.adversary.start=0 images"]),
        ("kl_autoencoder", "decoder", [*tiny.LATENT_AUTOENCODERS["kl_autoencoder"], "model.adversary.start=0 images"]),
        ("vq_vae_small", "encoder", tiny.AUTOENCODERS["vq_vae_small"]),
    ],
)
def test_other_models_keep_the_bits_of_frozen_parts(model: str, prefix: str, more: list[str], tmp_path: Path) -> None:
    base = (*SMALL, f"model={model}", *more, f"freeze=[{prefix}]")
    first = trained(tmp_path / "run", "trainer.duration=1 steps", base=base)["method"]
    last = trained(tmp_path / "run", "trainer.duration=3 steps", base=base)["method"]
    for name, value in last.items():
        if f"{name}.".startswith(f"{prefix}."):
            assert torch.equal(value, first[name]), name
    assert any(not torch.equal(value, first[name]) for name, value in last.items())


def test_a_lazy_penalty_of_frozen_layers_alone_changes_nothing(tmp_path: Path) -> None:
    base = (*SMALL, "model=dcgan_small", *tiny.SIZES["dcgan_small"], "model.discriminator.bias=true", "penalty=[r1_lazy]",
            "freeze=[discriminator.features,discriminator.logit.weight]")  # fmt: skip
    state = trained(tmp_path / "run", "trainer.duration=2 steps", base=base)
    assert state["optimizers"]["discriminator"]["state"].keys() == {0}
