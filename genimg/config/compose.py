"""Compose the config of a command, once."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def require_all_values(composed: DictConfig) -> None:
    """Refuse a config in which a ``???`` is left.

    Raises:
        ValueError: naming the first.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ValueError(f"{missing[0]} is required: set {missing[0]}=VALUE")
