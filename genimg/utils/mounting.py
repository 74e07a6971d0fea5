"""The place in the config of the object that is being built or used, so messages can name its parameters by their keys.

Library code names its own parameters. Errors get the keys when they leave the block of ``mounting``. Log messages cannot be
changed later, so they are written with ``in_config``. An object whose methods raise errors later keeps the ``place`` at which
it was built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from genimg.errors import UserError, name_in_config

_Error = TypeVar("_Error", bound=UserError)


@dataclass(frozen=True)
class _Mount:
    """The arguments of ``UserError.mounted``."""

    path: str
    parameters: tuple[str, ...]
    origins: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """A place in the config; without mounts, a place outside any config, where parameters keep their names.

    Attributes:
        mounts: Mounts of the object and of those around it, the innermost first.
    """

    mounts: tuple[_Mount, ...] = ()

    def name(self, text: str) -> str:
        """Return a message in which dotted keys replace the names of parameters; see ``name_in_config``."""
        for mount in self.mounts:
            text = name_in_config(text, mount.path, mount.parameters, mount.origins)
        return text

    def mounted(self, error: _Error) -> _Error:
        """Return the same error with dotted keys instead of the names of parameters; see ``UserError.mounted``."""
        for mount in self.mounts:
            error = error.mounted(mount.path, mount.parameters, mount.origins)
        return error


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


def place() -> Place:
    """Return the place of the innermost block of ``mounting``."""
    return _PLACE.get() or Place()


def in_config(text: str) -> str:
    """Return a message about parameters with their keys at this place; see ``Place.name``."""
    return place().name(text)


@contextlib.contextmanager
def mounting(path: str, parameters: Collection[str], origins: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Name the parameters of the object at ``path`` by their keys in messages of the block; see ``UserError.mounted``.

    Raises:
        UserError: If the block raises one; its type is kept.
    """
    before = place()
    token = _PLACE.set(Place((_Mount(path, tuple(parameters), dict(origins)), *before.mounts)))  # a dict can be pickled
    try:
        yield
    except UserError as error:
        raise error.mounted(path, parameters, origins) from error
    finally:
        _PLACE.reset(token)
