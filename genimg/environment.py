"""Versions and commit, which every reported number carries."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import genimg


def environment() -> dict[str, dict[str, str] | str | None]:
    """Versions of what the numbers depend on, and the commit of genimg's checkout, if it is one."""
    packages = ("torch", "torchvision", "hydra-core", "omegaconf", "torch-fidelity", "numpy", "pillow")
    versions = {"genimg": genimg.__version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {"versions": versions, "git_commit": _commit()}


def _commit() -> str | None:
    root = Path(genimg.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
