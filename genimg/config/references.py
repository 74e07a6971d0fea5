"""Distinguish plain references, ``${key}``, from resolver calls in configs.

A resolver can read an environment variable, create a directory or parse text as a config, so only configs that the user wrote
may call one. A checkpoint's config may only refer to its own keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from genimg.errors import ConfigError, join

_PLAIN = re.compile(r"\$\{(?:oc\.select:\s*)?(\w[\w.]*)(?:,\s*[\w.-]*)?\}")
_MOST = 10**7  # maximum number of nodes, and of characters of text
_LONGEST = 32  # maximum number of references in a chain


def is_plain(text: str) -> bool:
    """Return whether a text contains only references to keys and no resolver calls."""
    return "${" not in _PLAIN.sub("", text)


def with_values(raw: Any, resolved: Any) -> Any:
    """Return an unresolved config in which every text that calls a resolver is replaced by its value.

    Args:
        raw: The unresolved config, or a part of it.
        resolved: The same config, or part, after resolution.
    """
    if isinstance(raw, Mapping) and isinstance(resolved, Mapping):
        return {key: with_values(value, resolved.get(key)) for key, value in raw.items()}
    if isinstance(raw, list) and isinstance(resolved, list) and len(raw) == len(resolved):
        return [with_values(value, found) for value, found in zip(raw, resolved, strict=True)]
    return resolved if isinstance(raw, str) and not is_plain(raw) else raw


def require_plain_references(raw: Mapping[str, Any]) -> None:
    """Refuse a checkpoint's unresolved config if it refers to anything but its own keys, for example by calling a resolver.

    Raises:
        ConfigError: If a text calls a resolver, or if references are circular or would make the config too large.
    """
    _require_plain(raw, "")
    if _extent(raw, raw, {}, ())[0] > _MOST:
        raise ConfigError("the checkpoint's config refers to itself so often that it would grow without limit")


def _require_plain(node: Any, key: str) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            _require_plain(value, join(key, str(name)))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            _require_plain(value, f"{key}[{position}]")
    elif isinstance(node, str) and not is_plain(node):
        raise ConfigError(
            f"{key} of the checkpoint's config is {node}, but only references to its own keys are evaluated",
            f"if you trust it, give the value on the command line with {key}=VALUE",
            key=key,
        )


def _extent(node: Any, root: Mapping[str, Any], known: dict[str, tuple[int, int]], path: tuple[str, ...]) -> tuple[int, int]:
    """Return the size of a node after resolution, and the length of its longest chain of references.

    Args:
        node: Node of the unresolved config.
        root: The whole unresolved config.
        known: Cache of the results by key.
        path: Keys of the references followed so far.

    Returns:
        Number of nodes and characters, each counted once for every reference to it, and the length of the longest chain.
    """
    if isinstance(node, Mapping | list):
        parts = [_extent(value, root, known, path) for value in (node.values() if isinstance(node, Mapping) else node)]
        return 1 + sum(size for size, _ in parts), max((length for _, length in parts), default=0)
    if not isinstance(node, str):
        return 1, 0
    size, longest = 1 + len(node), 0
    for found in _PLAIN.finditer(node):
        key = found[1]
        if key in path:
            raise ConfigError(f"the checkpoint's config refers in a circle: {' -> '.join((*path, key))}", key=key)
        if len(path) == _LONGEST:
            raise _too_long(key)
        if key not in known:
            known[key] = _extent(_at(root, key), root, known, (*path, key))
        size, longest = size + known[key][0], max(longest, known[key][1] + 1)
    if longest > _LONGEST:
        raise _too_long(key)
    return size, longest


def _too_long(key: str) -> ConfigError:
    return ConfigError(f"the checkpoint's config refers to {key} in a circle, or by more than {_LONGEST} references", key=key)


def _at(root: Mapping[str, Any], key: str, followed: int = 0) -> Any:
    """Return the node at a dotted key, following references on the way, or None if there is none."""
    if followed > _LONGEST:
        raise _too_long(key)
    node: Any = root
    for name in key.split("."):
        if isinstance(node, str) and (found := _PLAIN.fullmatch(node)):
            node = _at(root, found[1], followed + 1)
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
