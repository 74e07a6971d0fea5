"""What the messages are made of, without the commands around them (tests/test_cli.py has those)."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genimg.utils.words import nearest, quoted


@pytest.mark.parametrize("value", ["a b", "it's", r"a\b", r"a\'b", "end\\", "\\\\'", "'", "${x}", "a,b=c", "tag(log)", ""])
def test_what_is_quoted_is_taken_literally(value: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


def test_the_nearest_word_is_named_where_one_is_near() -> None:
    assert nearest("higne", ["hinge", "wasserstein"]) == " (did you mean 'hinge'?)"
    assert nearest("zebra", ["hinge", "wasserstein"]) == ""
