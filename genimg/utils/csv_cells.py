"""Escape text in CSV cells that spreadsheets would read as formulas."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def neutral(text: str) -> str:
    """Prefix a cell's text with an apostrophe if a spreadsheet would evaluate it as a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original(cell: str) -> str:
    """Return the text that was passed to ``neutral``."""
    return cell[1:] if cell.startswith("'") and neutral(cell[1:]) == cell else cell
