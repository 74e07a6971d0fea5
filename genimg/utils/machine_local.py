"""Markers of settings that belong to the machine and its user, which a checkpoint's config must not set."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


class Required:
    """Placeholder for a value that has no default and must be given again."""


@dataclass(frozen=True)
class MachineLocal:
    """Marks a constructor parameter whose value decides which file is opened, as in ``weights: LocalPath``.

    A checkpoint may come from anywhere. If its config could choose the files that are opened, it could choose a file beside
    the checkpoint, and TorchScript, torch.export and torch.hub run the code in such a file. ``Builder`` therefore rejects a
    value of these parameters from a checkpoint, unless the command line gives the same value.

    Attributes:
        published: Function that returns whether any config may set a value, because genimg or a publisher ships the file.
        instead: Replacement for a dropped value, or ``Required``.
    """

    published: Callable[[Any], bool] = lambda value: value is None
    instead: Any = Required


class Importable:
    """Marks a constructor parameter whose value is a class or function, written ``package.module:name`` in a config.

    The config layer imports it if its package is allowed.
    """


LocalPath = Annotated[str, MachineLocal()]
"""A path of weights or code that has no replacement."""

FoundPath = Annotated[str, MachineLocal(instead=None)]
"""An optional path; by default the file is searched for in this machine's usual place."""

PublishedDigest = Annotated[str, MachineLocal(published=lambda value: value == "published", instead="published")]
"""A digest of weights: ``published``, or a digest given by the user."""


MayDownload = Annotated[bool, MachineLocal(published=lambda value: value is False, instead=False)]
"""Whether missing files are downloaded; the config layer passes False for files that a checkpoint's config names."""


def is_importable(hint: Any) -> bool:
    """Return whether a parameter's value is written ``package.module:name``, given its type hint with extras."""
    return any(isinstance(extra, Importable) for extra in getattr(hint, "__metadata__", ()))


def marker_of(hint: Any) -> MachineLocal | None:
    """Return the marker of a parameter, given its type hint with extras; None for a parameter that any config may set."""
    found = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, MachineLocal)), None)
    return found or next((mark for part in typing.get_args(hint) if (mark := marker_of(part))), None)
