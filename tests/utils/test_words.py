"""Values of the command line with and without quotes."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genimg.utils.words import quoted, unquoted

VALUES = ["runs/a", "it's", "a\\b", "a\\", "\\'", "\\\\'x\\", "a 'b' \"c\"", "", "\\\\", "'", "x=[1,2]"]


@pytest.mark.parametrize("value", VALUES)
def test_quoting_is_undone_as_hydra_does(value: str) -> None:
    assert unquoted(quoted(value)) == value
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


@pytest.mark.parametrize(("given", "value"), [("plain", "plain"), ('"a b"', "a b"), ('"a\\"b"', 'a"b'), ("'", ""), ("a'", "a")])
def test_other_quotes_and_none(given: str, value: str) -> None:
    assert unquoted(given) == value
