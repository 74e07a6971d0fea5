"""Paths of genimg's configs, its cache and run directories."""

from __future__ import annotations

import os
from pathlib import Path

from genimg.errors import CheckpointError, ConfigError, UserError

RUN_FILES = (
    "config.yaml", ".hydra", "train.log", "console.log", "metrics.jsonl", "summary.json", "report.html", "report.csv",
    "report.md", "samples", "tensorboard", "checkpoints", "averages", "mlflow-id.txt", "trackio-id.txt", "wandb-id.txt",
    "wandb",
)  # fmt: skip
"""Files and folders that a run writes into its directory. The content of ``wandb`` belongs to that program and has links."""


def config_dir() -> str:
    """Return the directory of genimg's configs, in a wheel or a checkout.

    Raises:
        UserError: If the installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise UserError(f"genimg's configs are not installed beside {package}", "reinstall genimg")


def cache_dir(given: str | None = None) -> Path:
    """Return the cache directory: ``given``, else $GENIMG_CACHE, else ~/.cache/genimg.

    Raises:
        ConfigError: If the home directory cannot be found.
    """
    return expanded("GENIMG_CACHE", given or os.environ.get("GENIMG_CACHE") or "~/.cache/genimg")


def expanded(key: str, given: object) -> Path:
    """Return a user's path with ``~`` and ``~NAME`` replaced by home directories.

    Args:
        key: Name of the setting.
        given: Value of the setting.

    Raises:
        ConfigError: If there is no such home directory.
    """
    try:
        return Path(str(given)).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}={given} is in a home directory that cannot be found: give an absolute path") from error


def run_directory_of(path: Path) -> Path:
    """Return the run directory of a checkpoint or of a folder of checkpoints; return any other path unchanged."""
    folder = path.parent if path.suffix == ".pt" else path
    return folder.parent if folder.name == "checkpoints" else folder


def directory_to_continue_in(path: Path) -> Path:
    """Return the run directory that ``resume=`` refers to.

    Raises:
        CheckpointError: For a file that is not in a run directory.
    """
    folder = run_directory_of(path)
    if path.is_file() and path.parent.name != "checkpoints" and not (folder / "config.yaml").is_file():
        raise CheckpointError(f"resume={path} is not in a run directory", "give run_dir=DIR to continue in", key="resume")
    return folder


def relative(path: Path) -> Path:
    """Return a path relative to the working directory if that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
