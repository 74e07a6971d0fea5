"""JSON of unknown origin."""

import pytest

from genimg.utils.json_text import parse_json


def test_what_json_says() -> None:
    assert parse_json(b'{"a": [1, null, "\\u00fc"]}') == {"a": [1, None, "ü"]}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, b"\xff", "9" * 10_000])
def test_anything_else_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)
