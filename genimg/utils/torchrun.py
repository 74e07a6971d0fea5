"""Read torchrun's environment variables, before any slow import."""

from __future__ import annotations

import os


def is_of_several() -> bool:
    """Return whether torchrun has started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes_of_this_host() -> int:
    """Return the number of torchrun processes that share this host's cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank_of_torchrun() -> int:
    """Return this process's rank under torchrun; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if is_of_several() else 0


def is_restarted() -> bool:
    """Return whether torchrun has restarted its processes after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Return whether torchrun would restart its processes after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
