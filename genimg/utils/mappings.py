"""Nested mappings, as configs and provenance are."""

from __future__ import annotations

from typing import Any


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for everything that is not a mapping; an empty mapping is a value."""
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {name: leaf for key, value in node.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def merged(node: Any, changes: Any) -> Any:
    """Return ``node`` with the values of ``changes`` on top, mapping by mapping."""
    if not isinstance(node, dict) or not isinstance(changes, dict):
        return changes
    return {**node, **{key: merged(node.get(key, {}), value) for key, value in changes.items()}}
