"""Text in the cells of CSV files, which spreadsheets would read as formulas."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def neutral(text: str) -> str:
    """Return the text of a cell with an apostrophe in front where a spreadsheet would otherwise calculate it."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original(cell: str) -> str:
    """Return the text that ``neutral`` was given."""
    return cell[1:] if cell.startswith("'") and neutral(cell[1:]) == cell else cell
