"""What ``errors.raises`` compares of an error."""

from __future__ import annotations

import pytest
from errors import raises

from genimg.errors import ConfigError

NOTED = ConfigError("width=0.5 is odd", "use 4 or 5", key="model.width")


@pytest.mark.parametrize(
    ("error", "setting", "word"),
    [
        (ConfigError("width=0.5 is odd"), "width", "odd"),
        (ConfigError("width=0.5 is odd"), "width=0.5", ""),
        (ConfigError("width=a b: is odd"), "width=a b", ""),
        (ConfigError("layers=[] is empty"), "layers=[]", ""),
        (NOTED, "model.width", "4"),
        (ValueError("width=0.5 is odd"), "width=0.5", ""),
        (ValueError("width is odd"), "width", ""),
    ],
)
def test_an_error_is_that_of_its_setting_and_word(error: Exception, setting: str, word: str) -> None:
    with raises(type(error), setting, word=word) as caught:
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("kind", "setting", "word"),
    [
        (ConfigError, "height", ""),
        (ConfigError, "width", "even"),
        (ConfigError, "width=0", ""),
        (ConfigError, "width=0.55", ""),
        (ConfigError, "model.width", ""),
    ],
)
def test_another_setting_value_or_word_is_a_failure(kind: type[Exception], setting: str, word: str) -> None:
    with pytest.raises(AssertionError), raises(kind, setting, word=word):
        raise ConfigError("width=0.5 is odd")


def test_another_class_or_no_error_is_a_failure() -> None:
    with pytest.raises(ConfigError), raises(KeyError):
        raise ConfigError("width=0.5 is odd")
    with pytest.raises(pytest.fail.Exception), raises(ConfigError):
        pass
