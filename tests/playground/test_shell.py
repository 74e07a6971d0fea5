"""Commands to paste into a shell, read back by the shell's and by Hydra's grammar."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from genimg.playground.shell import command_line
from genimg.utils.paths import config_dir

TEXTS = [
    "a small red circle", "it's", 'say "hi"', "a, b", "[a]", "{a: 1}", "${seed}", "\\${seed}", "a\\", "null", "true", "3",
    "3e4", "-1", "inf", "", " a ", "$HOME `ls` !", "é ✓", "a=b", "a:b", "#a", "a/b.png", "*", "~", "\\'", "%x",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_what_the_command_reads(text: str) -> None:
    line = command_line("genimg-sample", {"ckpt": "a", "text": text, "label": None})
    program, *words = shlex.split(line)
    assert (program, words[0]) == ("genimg-sample", "ckpt=a")
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        assert compose("sample", overrides=words).text == text


@pytest.mark.parametrize("value", [1, 0.25, 1e-7, True, None])
def test_other_values_are_what_the_command_reads(value: Any) -> None:
    _, *words = shlex.split(command_line("genimg-sample", {"ckpt": "a", "text": value}))
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        assert compose("sample", overrides=words).text == value


def test_plain_words_have_no_quotes() -> None:
    options = {"ckpt": "outputs/run", "allow": ["mine"], "label": "cross", "seed": 3, "truncation": 0.7}
    assert command_line("genimg-sample", options) == (
        "genimg-sample ckpt=outputs/run 'allow=[mine]' label=cross seed=3 truncation=0.7"
    )
