"""Format the shell commands that reproduce pictures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from genimg.utils.words import quoted

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:-]*")
_NOT_TEXT = re.compile(r"null|true|false|yes|no|on|off|nan|inf|[\d.][\d._]*(e[+-]?\d+)?", re.IGNORECASE)
_SPECIAL = re.compile(r"[\"$`\\!]")  # within the shell's double quotes


def command_line(program: str, options: Mapping[str, Any]) -> str:
    """Return a command line for a POSIX shell.

    Args:
        program: Name of the program.
        options: Primitives or lists of text by key; None and empty lists are omitted.
    """
    words = [_word(key, value) for key, value in options.items() if value is not None and value != []]
    return " ".join([program, *words])


def _word(key: str, value: Any) -> str:
    if isinstance(value, list):
        return _for_shell(f"{key}=[{','.join(map(str, value))}]")
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if not isinstance(value, str):
        return f"{key}={value}"
    if _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
        return f"{key}={value}"
    escaped = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)  # OmegaConf would replace ${...}
    return _for_shell(f"{key}={quoted(escaped)}")


def _for_shell(word: str) -> str:
    return shlex.quote(word) if "'" not in word or _SPECIAL.search(word) else f'"{word}"'
