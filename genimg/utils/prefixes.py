"""Beginnings of dotted names, such as those of parameters, in whole components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MOST_NAMES = 30  # names listed in a message


def begins_with(name: str, prefixes: Iterable[str]) -> bool:
    """Return whether a name begins with one of the prefixes: ``a.0`` begins ``a.0.weight``, but not ``a.01.weight``."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def distinct_prefixes(prefixes: Iterable[str]) -> list[str]:
    """Return prefixes that begin the same names, each once and in sorted order.

    Prefixes that others make superfluous are omitted: with ``encoder``, ``encoder.blocks`` selects nothing more.
    """
    given = sorted(set(prefixes))
    return [each for each in given if not any(each.startswith(f"{other}.") for other in given)]


def next_components(names: Iterable[str], prefix: str) -> str:
    """List the names' beginnings that are one component longer than the longest existing part of a prefix, for a message."""
    names, parts = list(names), prefix.split(".")
    while parts and not any(begins_with(name, [".".join(parts)]) for name in names):
        parts.pop()
    beginnings = [name.split(".") for name in names if name.split(".")[: len(parts)] == parts]
    found = list(dict.fromkeys(".".join(each[: len(parts) + 1]) for each in beginnings))
    more = len(found) - _MOST_NAMES
    return ", ".join(found[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def shared_beginning(names: Sequence[str]) -> str:
    """Return the components with which all names begin, without the last component of any name."""
    shared = []
    for components in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(components)) > 1:
            break
        shared.append(components[0])
    return ".".join(shared)
