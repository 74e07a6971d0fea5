"""Assertions about errors that do not depend on how their messages are worded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from genimg.errors import UserError, subject_of


@contextmanager
def raises(kind: type[Any] | tuple[type[Any], ...], setting: str = "", word: str = "") -> Iterator[pytest.ExceptionInfo[Any]]:
    """Assert that an error of a class is raised, the setting that it is about, and at most one word of its message.

    Args:
        kind: Class of the error, or several.
        setting: Name of the setting that the error is about, or ``name=value`` to compare its value, too. Errors that are no
            UserError are about what their message begins with.
        word: Word or value that the message must contain.
    """
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert word in message
    if setting:
        named = caught.value if isinstance(caught.value, UserError) else UserError(message)
        assert (named.key or subject_of(message)) == setting.partition("=")[0], message
        assert "=" not in setting or re.search(rf"{re.escape(setting)}(?!\w|\.\d)", message), message
