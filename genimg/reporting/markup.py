"""Build HTML as text. Everything read from files passes through ``escape`` or ``json_in_script``."""

from __future__ import annotations

import html
import json
from typing import Any


class Raw(str):
    """Text that is already HTML."""


def escape(content: object) -> Raw:
    """Escape content for HTML text and for attributes in double quotes. Raw is returned unchanged."""
    return content if isinstance(content, Raw) else Raw(html.escape(str(content), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Raw:
    """Return an element.

    An attribute that is None or False is omitted; True gives it no value. In its name, a trailing ``_`` is dropped and others
    become ``-``.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(value)}"')
    opened = f"<{' '.join(words)}>"
    return Raw(opened if name in ("img", "input", "meta", "br", "link") else f"{opened}{join(*children)}</{name}>")


def join(*children: object) -> Raw:
    """Concatenate children, skipping None."""
    return Raw("".join(escape(child) for child in children if child is not None))


def json_in_script(data: Any, **attributes: object) -> Raw:
    """Return a JSON element for the page's script; no text in the data can end the element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Raw(text), type="application/json", **attributes)


def table(caption: str, head: list[object], rows: list[list[object]], **attributes: object) -> Raw:
    """Return a table in a scrollable region; the cells of the first row and column are headers."""
    numeric = [is_number_cell(cell) for cell in rows[0]] if rows else [False] * len(head)
    titles = (
        tag("th", title, scope="col", class_="number" if is_numeric else None)
        for title, is_numeric in zip(head, numeric, strict=True)
    )
    body = (tag("tr", tag("th", row[0], scope="row"), *(c if is_cell(c) else tag("td", c) for c in row[1:])) for row in rows)
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *titles)), tag("tbody", *body), **attributes)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def is_cell(content: object) -> bool:
    """Return whether content is a table cell."""
    return isinstance(content, Raw) and content.startswith("<td")


def is_number_cell(content: object) -> bool:
    """Return whether content is a cell made by ``number_cell``."""
    return isinstance(content, Raw) and content.startswith('<td class="number"')


def number_cell(text: object, value: float | None = None) -> Raw:
    """Return a right-aligned cell; ``value`` is its sort key."""
    return tag("td", text, class_="number", data_value=None if value is None else repr(float(value)))
