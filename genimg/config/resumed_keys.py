"""Keys of the run that ``resume=PATH`` continues, which Hydra does not know, because it composes the default groups.

``genimg-train resume=RUN data.root=DIR`` sets a key of the run's own dataset. Such a key is given to Hydra as one that it may
add; ``config.resume`` then applies it on top of the checkpoint's config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from genimg.utils.paths import run_directory_of
from genimg.utils.regular_files import UnsafeFileError, read_regular

_MOST_BYTES = 2**22  # of a run's config.yaml; that of a large model takes less than 2**15


def with_keys_of_run(arguments: Sequence[str]) -> list[str]:
    """Let Hydra add keys that the config of the resumed run has.

    Args:
        arguments: Arguments of genimg-train.
    """
    config = config_of_resumed(arguments)
    keys = [re.match(r"([a-z_]\w*(?:\.\w+)+)=", argument) for argument in arguments]
    return [
        f"++{argument}" if key is not None and _has(config, key[1]) else argument
        for key, argument in zip(keys, arguments, strict=True)
    ]


def config_of_resumed(arguments: Sequence[str]) -> Mapping[str, Any]:
    """Return the config.yaml of the run that ``resume=PATH`` names; empty if there is none, or it cannot be read."""
    given = [argument.partition("=")[2].strip("'\"") for argument in arguments if argument.startswith("resume=")]
    if not given or given[-1] in ("", "auto", "null"):
        return {}
    try:
        folder = run_directory_of(Path(given[-1]).expanduser())
        config = yaml.safe_load(read_regular(folder / "config.yaml", most=_MOST_BYTES))
    except (OSError, UnsafeFileError, ValueError, yaml.YAMLError):  # what is wrong with the run is reported when it is opened
        return {}
    return config if isinstance(config, Mapping) else {}


def group_of(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the group that holds a dotted key; empty if the config does not have this group."""
    node: Any = config
    for name in key.split(".")[:-1]:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _has(config: Mapping[str, Any], key: str) -> bool:
    return key.rpartition(".")[2] in group_of(config, key)
