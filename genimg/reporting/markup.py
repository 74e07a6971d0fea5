"""HTML as text. Everything that comes from files passes through ``escape`` or ``json_in_script``."""

from __future__ import annotations

import html
import json
from typing import Any


class Raw(str):
    """Text that is HTML already."""


def escape(content: object) -> Raw:
    """As text; also fit for attributes in double quotes. Raw stays as it is."""
    return content if isinstance(content, Raw) else Raw(html.escape(str(content), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Raw:
    """An element. None and False leave an attribute out, True gives it no value; A last ``_``
    is dropped, others become ``-``."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(value)}"')
    opened = f"<{' '.join(words)}>"
    return Raw(opened if name in ("img", "input", "meta", "br", "link") else f"{opened}{join(*children)}</{name}>")


def join(*children: object) -> Raw:
    """Side by side; None is nothing."""
    return Raw("".join(escape(child) for child in children if child is not None))


def json_in_script(data: Any, **attributes: object) -> Raw:
    """Data that a script reads; no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Raw(text), type="application/json", **attributes)


def table(caption: str, head: list[object], rows: list[list[object]], **attributes: object) -> Raw:
    """With a header for each column and each row's first cell, in a region of its own that scrolls."""
    numeric = [is_number_cell(cell) for cell in rows[0]] if rows else [False] * len(head)
    titles = (
        tag("th", title, scope="col", class_="number" if is_numeric else None)
        for title, is_numeric in zip(head, numeric, strict=True)
    )
    body = (tag("tr", tag("th", row[0], scope="row"), *(c if is_cell(c) else tag("td", c) for c in row[1:])) for row in rows)
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *titles)), tag("tbody", *body), **attributes)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def is_cell(content: object) -> bool:
    """Whether it is a whole cell of a table."""
    return isinstance(content, Raw) and content.startswith("<td")


def is_number_cell(content: object) -> bool:
    """Whether ``number_cell`` made it."""
    return isinstance(content, Raw) and content.startswith('<td class="number"')


def number_cell(text: object, value: float | None = None) -> Raw:
    """Aligned to the right; ``value`` is what it is sorted by."""
    return tag("td", text, class_="number", data_value=None if value is None else repr(float(value)))
