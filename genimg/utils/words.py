"""Text for messages: suggestions of known words, and quoted command-line values."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` if one of the words is similar, else an empty text."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quoted(value: str) -> str:
    """Quote a value for Hydra's grammar, where a backslash is an escape only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def unquoted(value: str) -> str:
    """Parse a value with or without quotes as Hydra's grammar does; the inverse of ``quoted``."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return value.strip("'\"")
    quote = value[0]
    return re.sub(rf"(\\+)({quote}|$)", lambda found: "\\" * (len(found[1]) // 2) + found[2], value[1:-1])


def argument(key: str, path: Path) -> str:
    """Format ``key=path`` for pasting, with the quotes that Hydra and the shell need."""
    text = str(path)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return f"{key}={text}"
    return shlex.quote(f"{key}={quoted(text)}")
