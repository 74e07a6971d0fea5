"""Compose the config of a command, which is immutable afterwards."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genimg.config.additional_extractors import keep_extractors_and_metrics, with_additional_extractors
from genimg.config.references import with_values
from genimg.config.resumed_keys import with_keys_of_run
from genimg.config.sampling_arguments import WITH_MODEL_OPTIONS, with_open_sampling, with_sampling_options
from genimg.errors import ConfigError
from genimg.utils.paths import config_dir

log = logging.getLogger(__name__)


class FrozenDict(dict[str, Any]):
    """An immutable dictionary."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is immutable: make another one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


class FrozenList(list[Any]):
    """An immutable list."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is immutable: make another one")

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> Any:
        return type(self), (list(self),)


class Config(FrozenDict):
    """A composed config. Its items are resolved; ``raw`` keeps the interpolations.

    Args:
        raw: The unresolved config.

    Raises:
        ConfigError: If a reference points to a missing key.
    """

    raw: FrozenDict

    def __init__(self, raw: Mapping[str, Any]) -> None:
        try:
            resolved = OmegaConf.to_container(OmegaConf.create(thaw(raw)), resolve=True)
        except OmegaConfBaseException as error:
            raise _unresolved(error) from error
        super().__init__(freeze(resolved))
        self.raw = freeze(thaw(raw))

    @classmethod
    def of(cls, composed: DictConfig) -> Config:
        """Return the immutable form of a config that Hydra composed."""
        return cls(OmegaConf.to_container(composed, resolve=False))  # type: ignore[arg-type]

    def replaced(self, **groups: Any) -> Config:
        """Return a copy of the config with the given groups replaced."""
        return Config({**self.raw, **groups})

    def record(self) -> dict[str, Any]:
        """Return the plain dictionaries to store in a checkpoint: ``config`` and ``raw_config``."""
        config = thaw(self)
        return {"config": config, "raw_config": with_values(thaw(self.raw), config)}

    def __reduce__(self) -> Any:
        return Config, (thaw(self.raw),)


@dataclass(frozen=True)
class Composition:
    """A composed config and the choices that led to it.

    Attributes:
        config: The read-only config with its interpolations.
        overrides: Arguments with which it was composed, such as ``model=dcgan``.
        choices: Chosen option of each group.
        folders: Directories of configs.
    """

    config: DictConfig
    overrides: tuple[str, ...]
    choices: Mapping[str, str | None]
    folders: tuple[Path, ...]

    def __post_init__(self) -> None:
        OmegaConf.set_readonly(self.config, True)

    @classmethod
    def of_hydra(cls, config: DictConfig) -> Composition:
        """Return the composition of the running command or job of a sweep."""
        composition = cls._of(config, HydraConfig.get())
        composition._warn_of_repeated_keys()
        return composition

    @classmethod
    def _of(cls, config: DictConfig, hydra: Any) -> Composition:
        overrides, choices = overrides_in(hydra.overrides.task), dict(hydra.runtime.choices)
        keep_extractors_and_metrics(config, overrides, choices)
        folders = tuple(Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file")
        return cls(config, overrides, choices, folders)

    def _warn_of_repeated_keys(self) -> None:
        given: dict[str, list[str]] = {}
        for override in self.overrides:
            key, _, value = override.lstrip("+").partition("=")
            given.setdefault(key, []).append(value)
        for key, values in given.items():
            if len(set(values)) > 1:
                log.warning("%s is given %d times, and only the last value is used: %s (a shell expands {a,b} without quotes)",
                            key, len(values), values[-1])  # fmt: skip

    def typed(self) -> list[Override]:
        """Return the overrides, parsed."""
        return OverridesParser.create().parse_overrides(list(self.overrides))

    def typed_keys(self) -> set[str]:
        """Return the keys and groups that are overridden, such as ``trainer.batch_size`` or ``evaluation``."""
        return {each.key_or_group for each in self.typed()}


def compose(overrides: Sequence[str] = (), command: str = "train") -> Composition:
    """Compose the config of a command as its command line would.

    Args:
        overrides: Arguments such as ``model=dcgan`` and ``trainer.batch_size=32``.
        command: Name of the primary config.

    Raises:
        ConfigError: If a key or option is unknown, or a value has the wrong type.
    """
    if isinstance(overrides, str) or not all(isinstance(each, str) for each in overrides):
        raise ConfigError(f"overrides={overrides!r} must be a list of strings such as ['model=dcgan']", key="overrides")
    for override in overrides:
        if override.startswith("-"):
            raise ConfigError(f"{override} is available only on the command line: remove it", key="overrides")
        if override.lstrip("+~").startswith(("hydra.", "hydra/", "sweep=")):
            raise ConfigError(f"{override} is for the command line, which can start several runs: remove it", key="overrides")
    overrides = with_sampling_options(overrides, command) if command in WITH_MODEL_OPTIONS else overrides
    overrides = with_keys_of_run(overrides) if command == "train" else overrides
    overrides = with_additional_extractors(with_open_sampling(overrides))
    for name in ("new_run_dir", "new_sweep_dir"):
        if not OmegaConf.has_resolver(f"genimg.{name}"):  # a command's own resolver creates directories
            OmegaConf.register_new_resolver(f"genimg.{name}", str)
    own = contextlib.nullcontext() if GlobalHydra.instance().is_initialized() else initialize_config_dir(
        config_dir=config_dir(), version_base="1.3"
    )  # fmt: skip
    try:
        with own:
            composed = hydra.compose(command, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group's option is not text
        from genimg.config.messages import explain

        text = explain(error, command, overrides)
        if text is None:
            raise
        named = re.match(r"unknown (?:option|key) ([\w./@]+)", text)
        raise ConfigError(text, key=named[1] if named else None) from error
    how = composed.hydra
    with open_dict(composed):
        del composed["hydra"]
        if command == "train" and not any(each.partition("=")[0] == "run_dir" for each in overrides):
            composed.run_dir = ""  # only a run needs a directory
    return Composition._of(composed, how)


def overrides_in(node: Any) -> tuple[str, ...]:
    """Return the overrides of a list in Hydra's config, with interpolations unresolved."""
    given = OmegaConf.to_container(node, resolve=False)
    assert isinstance(given, list)
    return tuple(map(str, given))


def options_of_group(group: str) -> list[str]:
    """Return the options of a config group, including those in ``--config-dir``."""
    if GlobalHydra.instance().is_initialized():
        return GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))


def freeze(node: Any) -> Any:
    """Return an immutable copy of nested dictionaries and lists."""
    if isinstance(node, Mapping):
        return FrozenDict({key: freeze(value) for key, value in node.items()})
    return FrozenList(map(freeze, node)) if isinstance(node, list | tuple) else node


def thaw(node: Any) -> Any:
    """Return a copy as plain nested dictionaries and lists."""
    if isinstance(node, Mapping):
        return {key: thaw(value) for key, value in node.items()}
    return [thaw(value) for value in node] if isinstance(node, list | tuple) else node


def require_all_values(composed: DictConfig) -> None:
    """Refuse a config in which a required value is missing.

    Raises:
        ConfigError: If a value is ``???``, or a reference points to a missing key.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
    except OmegaConfBaseException as error:
        raise _unresolved(error) from error
    if missing:
        raise ConfigError(f"{missing[0]} is required: set {missing[0]}=VALUE", key=missing[0])


def resolved(composed: DictConfig, key: str) -> Any:
    """Return the value of a top-level key.

    Raises:
        ConfigError: If the value refers to a missing key.
    """
    try:
        return composed[key]
    except OmegaConfBaseException as error:
        raise _unresolved(error) from error


def _unresolved(error: OmegaConfBaseException) -> ConfigError:
    """Return the error for an interpolation that cannot be resolved."""
    key, problem = error.full_key or "", str(error).splitlines()[0]
    return ConfigError(f"{key}: {problem}", "correct the reference", key=key)
