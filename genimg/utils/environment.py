"""Versions and commit, recorded with every reported number."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import genimg


def versions() -> dict[str, str]:
    """Return the versions of genimg, Python and the packages that affect results."""
    found = {"genimg": genimg.__version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "hydra-core", "omegaconf", "torch-fidelity", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str | None:
    """Return the git commit of genimg's checkout, or None outside a checkout."""
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
