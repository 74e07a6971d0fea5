"""The config of a command: composed once, and immutable from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from genimg.errors import ConfigError


class FrozenDict(dict[str, Any]):
    """A dictionary that nobody can write into."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is immutable: make another one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


class FrozenList(list[Any]):
    """A list that nobody can write into."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is immutable: make another one")

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> Any:
        return type(self), (list(self),)


class Config(FrozenDict):
    """A composed config: its items are resolved, and ``raw`` holds the same with its interpolations.

    Args:
        raw: The unresolved config.
    """

    raw: FrozenDict

    def __init__(self, raw: Mapping[str, Any]) -> None:
        super().__init__(freeze(OmegaConf.to_container(OmegaConf.create(thaw(raw)), resolve=True)))
        self.raw = freeze(thaw(raw))

    def replaced(self, **groups: Any) -> Config:
        """Return the config with other groups in place of its own."""
        return Config({**self.raw, **groups})

    def record(self) -> dict[str, Any]:
        """Return the plain dictionaries that a checkpoint holds: ``config`` and ``raw_config``."""
        return {"config": thaw(self), "raw_config": thaw(self.raw)}

    def __reduce__(self) -> Any:
        return Config, (thaw(self.raw),)


def freeze(node: Any) -> Any:
    """Return a copy of nested dictionaries and lists that nobody can write into."""
    if isinstance(node, Mapping):
        return FrozenDict({key: freeze(value) for key, value in node.items()})
    return FrozenList(map(freeze, node)) if isinstance(node, list | tuple) else node


def thaw(node: Any) -> Any:
    """Return a copy of nested dictionaries and lists as plain ones."""
    if isinstance(node, Mapping):
        return {key: thaw(value) for key, value in node.items()}
    return [thaw(value) for value in node] if isinstance(node, list | tuple) else node


def require_all_values(composed: DictConfig) -> None:
    """Refuse a config in which a ``???`` is left.

    Raises:
        ConfigError: Naming the first.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{missing[0]} is required: set {missing[0]}=VALUE", key=missing[0])
