"""docs/python.md is one program: it runs as it stands, and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("unchanged_process")
def test_the_page_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(page)
    assert len(blocks) == page.count("```python") > 10
    assert sum(bool(shown) for _, shown in blocks) == page.count("```text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    namespace = {"__name__": "page"}
    for number, (code, shown) in enumerate(blocks):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"docs/python.md, block {number}", "exec"), namespace)
        assert printed.getvalue() == shown, code
    sys.modules.pop("mypackage", None)
