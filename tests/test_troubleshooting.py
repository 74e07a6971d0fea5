"""The messages that docs/troubleshooting.md quotes are those of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUOTED = re.findall(r"^> `([^`]+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def without_paths(text: str) -> str:
    """Name keys by their last part: a class says ``root=``, and the config layer ``data.root=`` in the same message."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[a-z_]+=)", "", text)


def text_of(node: ast.AST) -> str:
    """A string of the source, with one ``…`` for every value that is put into it; nothing of what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[\d.]*[dsfg]", "…", node.value).replace("%%", "%")
    return ""


@pytest.fixture(scope="module")
def strings() -> set[str]:
    files = (ROOT / "genimg").rglob("*.py")
    return {without_paths(text_of(node)) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))}


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) > 20


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_source(message: str, strings: set[str]) -> None:
    parts = [part.strip() for part in without_paths(message).split("…") if part.strip()]
    assert max(map(len, parts)) >= 15, "too short to be found by accident"
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(string) for string in strings), message
