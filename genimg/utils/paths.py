"""Where genimg's own configs are, and where it keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path

from genimg.errors import CheckpointError, ConfigError, UserError

RUN_FILES = (
    "config.yaml", ".hydra", "train.log", "console.log", "metrics.jsonl", "summary.json", "report.html", "report.csv",
    "report.md", "samples", "tensorboard", "checkpoints", "wandb-id.txt", "wandb",
)  # fmt: skip
"""What a run writes into its directory; the content of ``wandb`` is that program's own, and holds links."""


def config_dir() -> str:
    """Return the directory of genimg's configs, in a wheel or in a checkout.

    Raises:
        UserError: If the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise UserError(f"genimg's configs are not installed beside {package}", "reinstall genimg")


def cache_dir(given: str | None = None) -> Path:
    """Return the directory of what can be computed again: ``given``, else $GENIMG_CACHE, else ~/.cache/genimg.

    Raises:
        ConfigError: If it would be in a home directory that cannot be found.
    """
    return expanded("GENIMG_CACHE", given or os.environ.get("GENIMG_CACHE") or "~/.cache/genimg")


def expanded(key: str, given: object) -> Path:
    """Return a path that a user gives, with ``~`` and ``~NAME`` replaced by home directories.

    Args:
        key: The setting that it is the value of.
        given: The value.

    Raises:
        ConfigError: If there is no such home directory.
    """
    try:
        return Path(str(given)).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}={given} is in a home directory that cannot be found: give an absolute path") from error


def run_directory_of(path: Path) -> Path:
    """Return the run directory that a path belongs to: a checkpoint's, that of its folder, or the path itself."""
    folder = path.parent if path.suffix == ".pt" else path
    return folder.parent if folder.name == "checkpoints" else folder


def directory_to_continue_in(path: Path) -> Path:
    """Return the run directory of what ``resume=`` names.

    Raises:
        CheckpointError: For a file that lies in no run directory.
    """
    folder = run_directory_of(path)
    if path.is_file() and path.parent.name != "checkpoints" and not (folder / "config.yaml").is_file():
        raise CheckpointError(f"resume={path} lies in no run directory", "give run_dir=DIR to continue in", key="resume")
    return folder


def relative(path: Path) -> Path:
    """As seen from the working directory, where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
