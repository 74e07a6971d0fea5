"""genimg.compose refuses what its command line would."""

from __future__ import annotations

from typing import Any

import pytest

import genimg


@pytest.mark.parametrize(
    ("overrides", "command", "key"),
    [
        (["+sed=1"], "train", "sed"),
        (["ckpt=run", "+sed=1"], "sample", "sed"),
        (["ckpt=run", "+sed=1"], "eval", "sed"),
        (["modle=dcgan"], "train", "modle"),
        (["trainer.batch_size=${nowhere}"], "train", "trainer.batch_size"),
        (["model=3"], "train", "model"),
        (["~model.generator"], "train", None),
        (["sweep=gan_losses"], "train", "overrides"),
        (["hydra/launcher=gpu_queue"], "train", "overrides"),
        (["-m", "seed=1,2"], "train", "overrides"),
        ("model=dcgan", "train", "overrides"),
        ([3], "train", "overrides"),
        ([], "sing", "command"),
        ([], "sample", "ckpt"),
    ],
)
def test_what_no_command_line_would_take_is_refused(overrides: Any, command: str, key: str | None) -> None:
    with pytest.raises(genimg.ConfigError) as caught:
        genimg.compose(overrides, command=command)
    assert key is None or caught.value.key == key


def test_groups_and_keys_of_a_checkpoints_config_are_taken() -> None:
    assert genimg.compose(["model=dcgan", "seed=3"])["model"]["_target_"].endswith(".GAN")
    assert genimg.compose(["ckpt=run", "+evaluation.extractor.weights=FILE"], command="eval")["ckpt"] == "run"
