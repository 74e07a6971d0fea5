"""What the messages are made of, without the commands around them (tests/test_cli.py has those)."""

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genimg import cli
from genimg.config import foreign
from genimg.config.compose import compose
from genimg.config.messages import explain, explain_flag
from genimg.errors import ConfigError
from genimg.utils.words import nearest, quoted


@pytest.mark.parametrize("value", ["a b", "it's", r"a\b", r"a\'b", "end\\", "\\\\'", "'", "${x}", "a,b=c", "tag(log)", ""])
def test_what_is_quoted_is_taken_literally(value: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


def test_the_nearest_word_is_named_where_one_is_near() -> None:
    assert nearest("higne", ["hinge", "wasserstein"]) == " (did you mean 'hinge'?)"
    assert nearest("zebra", ["hinge", "wasserstein"]) == ""


TRAIN = {
    "trainer.duration", "trainer", "optimizer.lr", "trainer.batch_size", "data.image_size", "device",
    "ema.exponential.half_life", "model.latent.dim", "data", "data.num_workers", "precision",
    "trainer.checkpoint_interval", "evaluation.interval",
    "model.generator_interval", "resume", "run_dir", "logger",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", "5", "trainer.duration='5 epochs'"),
        ("num_epochs", "", "trainer.duration='N epochs'"),
        ("max_epochs", "many", "trainer.duration='N epochs'"),
        ("trainer.epochs", "5", "trainer.duration='5 epochs'"),
        ("max_steps", "10k", "trainer.duration='10k steps'"),
        ("iterations", "100", "trainer.duration='100 steps'"),
        ("lr", "0.1", "optimizer.lr=0.1"),
        ("optimizer.learning_rate", "1e-4", "optimizer.lr=1e-4"),
        ("bs", "64", "trainer.batch_size=64"),
        ("data.img_size", "64", "data.image_size=64"),
        ("resolution", "64", "data.image_size=64"),
        ("cuda", "true", "device=cuda:N (several GPUs: torchrun, docs/distributed.md)"),
        ("gpu", "1", "device=cuda:1 (several GPUs: torchrun, docs/distributed.md)"),
        ("ema_decay", "0.999", "ema.exponential.half_life='N images'"),
        ("z_dim", "64", "model.latent.dim=64"),
        ("dataset", "mnist", "data=mnist"),
        ("dataroot", "my pictures", "data=NAME data.root=\"'my pictures'\""),
        ("workers", "4", "data.num_workers=4"),
        ("amp", "true", "precision=bf16"),
        ("amp", "false", "precision=fp32"),
        ("save_every", "1000", "trainer.checkpoint_interval='1000 steps'"),
        ("fid_every", "1000", "evaluation.interval='1000 steps'"),
        ("n_critic", "5", "model.generator_interval=5"),
        ("resume_from", "outputs/a", "resume=outputs/a"),
        ("checkpoint", "outputs/a", "resume=outputs/a"),
        ("exp_name", "a", "run_dir=outputs/a"),
        ("wandb", "true", "logger=wandb"),
        ("seed", "3", None),
        ("model.generator.size", "3", None),
    ],
)
def test_keys_of_other_programs_have_an_answer(key: str, value: str, expected: str | None) -> None:
    assert foreign.answer(key, value, TRAIN) == expected


def test_an_answer_names_a_key_that_the_command_has() -> None:
    assert foreign.answer("latent_dim", "8", {"model.latent_dim"}) == "model.latent_dim=8"
    assert foreign.answer("checkpoint", "a", {"ckpt"}) == "ckpt=a"
    assert foreign.answer("gpu", "1", {"device"}) == "device=cuda:1"
    assert foreign.answer("epochs", "5", {"ckpt"}) is None


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("train", ["--lr", "0.1"], "--lr 0.1: arguments are written key=value, without dashes: set optimizer.lr=0.1"),
        ("train", ["seed=1", "--lr=0.1"], "--lr=0.1: arguments are written key=value, without dashes: set optimizer.lr=0.1"),
        ("train", ["--batch-size", "8"], "set trainer.batch_size=8"),
        ("train", ["--amp", "--epochs", "5"], "--amp: arguments are written key=value, without dashes: set precision=bf16"),
        ("sample", ["--batch_size", "8"], "--batch_size 8: arguments are written key=value, without dashes: set batch_size=8"),
        ("train", ["--sed", "8"], "--help lists the keys (did you mean 'seed'?)"),
    ],
)
def test_options_with_dashes_are_answered(command: str, arguments: list[str], expected: str) -> None:
    message = explain_flag(command, arguments)
    assert message is not None
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "arguments", [[], ["seed=1"], ["--cfg", "job"], ["--config-dir=configs"], ["-m", "seed=1,2"], ["--multirun"]]
)
def test_hydras_own_options_stay(arguments: list[str]) -> None:
    assert explain_flag("train", arguments) is None


@pytest.mark.usefixtures("unchanged_process")
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("epochs=5", "unknown key epochs: set trainer.duration='5 epochs'"),
        ("+epochs=5", "unknown key epochs: set trainer.duration='5 epochs'"),
        ("trainer.epochs=5", "unknown key trainer.epochs: set trainer.duration='5 epochs'"),
        ("+trainer.epochs=5", "unknown key trainer.epochs: set trainer.duration='5 epochs'"),
        ("--epochs=5", "--epochs=5: arguments are written key=value, without dashes: set trainer.duration='5 epochs'"),
    ],
)
def test_the_command_ends_in_one_line(
    argument: str, expected: str, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["genimg-train", argument, f"run_dir={tmp_path / 'run'}", "device=cpu"])
    with pytest.raises(SystemExit) as ended:
        cli.train()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"genimg-train: error: {expected}"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data.num_classes=3", "it follows the data now; remove it"),
        ("model.generator.image_size=32", "it follows the data now; remove it"),
        ("conditioning.image_channels=2", "remove it"),
        ("model.a2b.width=8", "set model.translator.width"),
        ("model.discriminator_b.num_strided=8", "set model.discriminator.num_strided"),
        ("model.augment={}", "it is called model.discriminator_augment now"),
        ("augment.p=0.2", "set discriminator_augment.p"),
        ("data_augment=strong", "it is called augment now"),
        ("data_augment.rotation=5", "set augment.rotation"),
    ],
)
def test_a_key_of_an_earlier_version_is_answered_with_what_took_its_place(key, words):
    with pytest.raises(ConfigError) as caught:
        compose([key])
    assert str(caught.value).startswith(f"{key.partition('=')[0]} is a key of earlier versions: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("option", ["diffaugment", "ada", "r3gan"])
def test_an_option_of_an_earlier_version_is_answered_with_the_one_that_replaces_it(option):
    with pytest.raises(ConfigError) as caught:
        compose([f"augment={option}"])
    assert str(caught.value) == f"augment={option} is an option of earlier versions: set discriminator_augment={option}"


def test_a_model_that_still_sets_a_former_key_is_answered_with_the_new_one():
    """As in a user's own YAML, whose unknown key only the builder notices."""
    error = ConfigError("unknown key model.augment: model takes generator")
    assert (
        explain(error, "train", [])
        == "model.augment is a key of earlier versions: it is called model.discriminator_augment now"
    )


@pytest.mark.parametrize("key", ["sampler.steps", "sampling.steps"])
def test_steps_of_a_sampler_are_not_those_of_the_training(key: str) -> None:
    assert foreign.answer(key, "5", ["trainer.duration", "evaluation.sampling"]) == "evaluation.sampling.steps=5"
    assert foreign.answer(key, "5", ["trainer.duration"]) is None
    assert foreign.answer("trainer.steps", "5", ["trainer.duration", "evaluation.sampling"]) == "trainer.duration='5 steps'"
