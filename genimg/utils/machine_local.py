"""Which settings belong to the machine and its user, so that the config of a checkpoint never brings them."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


class Required:
    """Stands for a value that must be named again, because nothing can take its place."""


@dataclass(frozen=True)
class MachineLocal:
    """Marks a constructor's parameter whose value decides which file is opened: ``weights: LocalPath``.

    A checkpoint may be downloaded from anywhere. If its config could name the files that are opened, it could name one
    beside itself, and TorchScript, torch.export and torch.hub run the code that such a file holds. ``Builder`` therefore
    refuses a value of these parameters that comes from a checkpoint, unless the command line names the same value.

    Attributes:
        published: Whether any config may bring a value, because it names something that genimg or a publisher ships.
        instead: The value that takes the place of a dropped one, or ``Required``.
    """

    published: Callable[[Any], bool] = lambda value: value is None
    instead: Any = Required


class Importable:
    """Marks a constructor's parameter that takes a class or function, which a config names as ``package.module:name``.

    The config layer imports it, if its package is allowed.
    """


LocalPath = Annotated[str, MachineLocal()]
"""A path of weights or code that nothing can replace."""

FoundPath = Annotated[str, MachineLocal(instead=None)]
"""A path that may be left out: the file is then looked for where this machine keeps it."""

PublishedDigest = Annotated[str, MachineLocal(published=lambda value: value == "published", instead="published")]
"""A digest of published weights: ``published``, or another one of the user's own."""


MayDownload = Annotated[bool, MachineLocal(published=lambda value: value is False, instead=False)]
"""Whether files that are not at hand are downloaded; the config layer passes False for what a checkpoint's config names."""


def is_importable(hint: Any) -> bool:
    """Return whether a parameter with this type hint, with extras, takes what a config names as ``package.module:name``."""
    return any(isinstance(extra, Importable) for extra in getattr(hint, "__metadata__", ()))


def marker_of(hint: Any) -> MachineLocal | None:
    """Return the mark of a parameter, given its type hint with extras; None for a parameter that any config may set."""
    found = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, MachineLocal)), None)
    return found or next((mark for part in typing.get_args(hint) if (mark := marker_of(part))), None)
