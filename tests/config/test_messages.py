"""What the messages are made of, without the commands around them (tests/test_cli.py has those)."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genimg.config.compose import compose
from genimg.errors import ConfigError
from genimg.utils.words import nearest, quoted


@pytest.mark.parametrize("value", ["a b", "it's", r"a\b", r"a\'b", "end\\", "\\\\'", "'", "${x}", "a,b=c", "tag(log)", ""])
def test_what_is_quoted_is_taken_literally(value: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


def test_the_nearest_word_is_named_where_one_is_near() -> None:
    assert nearest("higne", ["hinge", "wasserstein"]) == " (did you mean 'hinge'?)"
    assert nearest("zebra", ["hinge", "wasserstein"]) == ""


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data.num_classes=3", "it follows the data now; remove it"),
        ("model.generator.image_size=32", "it follows the data now; remove it"),
        ("conditioning.image_channels=2", "remove it"),
        ("model.a2b.width=8", "set model.translator.width"),
        ("model.discriminator_b.num_strided=8", "set model.discriminator.num_strided"),
    ],
)
def test_a_key_of_an_earlier_version_is_answered_with_what_took_its_place(key, words):
    with pytest.raises(ConfigError) as caught:
        compose([key])
    assert str(caught.value).startswith(f"{key.partition('=')[0]} is a key of earlier versions: ")
    assert words in str(caught.value)
