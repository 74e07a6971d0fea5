"""Nested mappings, such as configs and provenance."""

from __future__ import annotations

from typing import Any


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key; an empty mapping counts as a value."""
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {name: leaf for key, value in node.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def merged(node: Any, changes: Any) -> Any:
    """Return ``node`` with the values of ``changes`` merged over it recursively."""
    if not isinstance(node, dict) or not isinstance(changes, dict):
        return changes
    return {**node, **{key: merged(node.get(key, {}), value) for key, value in changes.items()}}
