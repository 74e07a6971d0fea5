"""What torchrun says to a process through its environment; read before anything heavy is imported."""

from __future__ import annotations

import os

from genimg.errors import ConfigError
from genimg.utils.paths import expanded


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


def arguments_of_rank(arguments: list[str]) -> list[str]:
    """A training's arguments as this process should take them.

    Only the first rank has a run directory and a log file, and a dry run has none. A restarted training continues from its
    newest checkpoint, whatever it began with.

    Raises:
        ConfigError: If a restarted training would not find its checkpoints.
    """
    given = next((argument.partition("=")[2] for argument in arguments if argument.startswith("run_dir=")), None)
    if may_restart() and (given is None or "${" in given):
        raise ConfigError(
            "torchrun --max-restarts needs a fixed run_dir=DIR (or resume=RUN), where a restarted run finds its checkpoints"
        )
    if is_restarted() and given is not None:
        resume = next((argument for argument in arguments if argument.startswith("resume=")), "resume=auto")
        arguments = [argument for argument in arguments if not argument.startswith("resume=")]
        has_checkpoints = any(expanded("run_dir", given.strip("'\"")).glob("checkpoints/step-*.pt"))
        named = resume.partition("=")[2] not in ("auto", "null", "")
        if named:
            arguments.append(f"resume={given}" if has_checkpoints else resume)
    if rank_of_torchrun() > 0 or "dry_run=true" in (argument.lower() for argument in arguments):
        # Hydra then makes no directory and no file.
        arguments = [
            *arguments,
            "hydra.run.dir=.",
            "hydra.output_subdir=null",
            f"hydra.job_logging.handlers.file.filename={os.devnull}",
        ]
    return arguments
