"""What torchrun says to a process through its environment; read before anything heavy is imported."""

from __future__ import annotations

import os


def is_of_several() -> bool:
    """Whether torchrun has started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes_of_this_host() -> int:
    """How many processes of torchrun share this host's cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank_of_torchrun() -> int:
    """This process's number among those of torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0")) if is_of_several() else 0


def is_restarted() -> bool:
    """Return whether torchrun has restarted its processes after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Return whether torchrun would restart its processes."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
