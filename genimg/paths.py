"""Where genimg's own configs are."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> str:
    """The directory of genimg's configs, in a wheel or in a checkout.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise FileNotFoundError(f"genimg's configs are not installed beside {package}: reinstall genimg")
