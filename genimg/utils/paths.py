"""Where genimg's own configs are, and where it keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def config_dir() -> str:
    """The directory of genimg's configs, in a wheel or in a checkout.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise FileNotFoundError(f"genimg's configs are not installed beside {package}: reinstall genimg")


def cache_dir(given: str | None = None) -> Path:
    """The directory of what can be computed again: ``given``, else $GENIMG_CACHE, else ~/.cache/genimg.

    Raises:
        RuntimeError: if it would be in a home directory that cannot be found.
    """
    return Path(given or os.environ.get("GENIMG_CACHE") or Path.home() / ".cache" / "genimg").expanduser()


def relative(path: Path) -> Path:
    """As seen from the working directory, where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
