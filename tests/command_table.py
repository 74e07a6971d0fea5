"""What the tables of models have in common: a row is a training in one go and in two, through the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fork_server import run_commands

from genimg.config.messages import is_choice
from genimg.utils.paths import config_dir


def run(commands: list[list[str]], folder: Path) -> tuple[list[int], str]:
    """Run commands one after the other in ``folder``; return their exit codes and all that they have printed."""
    environment = os.environ | {"GENIMG_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return run_commands(commands, folder, environment)


def succeed(commands: list[list[str]], folder: Path) -> str:
    """Run commands that must not fail; return all that they have printed."""
    codes, output = run(commands, folder)
    assert codes == [0] * len(commands), output
    return output


def walk(arguments: list[str], folder: Path, *more: list[str], steps: int = 3) -> dict[str, Any]:
    """Train in one go and in two, and assert that the two checkpoints are equal bit for bit.

    Args:
        arguments: Of genimg-train, with a checkpoint after every step.
        folder: Directory of the runs ``whole`` and ``parts``.
        more: Commands that must succeed afterwards.
        steps: Length of the training; the first part is one step shorter.

    Returns:
        The last checkpoint.
    """
    runs = [("whole", steps), ("parts", steps - 1), ("parts", steps)]
    trained = [["train", *arguments, f"trainer.duration={length} steps", f"run_dir={name}"] for name, length in runs]
    succeed([*trained, *more], folder)
    whole, parts = (torch.load(folder / name / "checkpoints/last.pt", weights_only=True) for name in ("whole", "parts"))
    assert parts["training"]["images"] == steps * whole["config"]["trainer"]["batch_size"]
    assert parts["training"]["last"] == whole["training"]["last"]
    for key in ("method", "optimizers", "means"):
        differ = [path for path, same in compare(whole[key], parts[key], key) if not same]
        assert not differ, differ[:5]
    checkpoint: dict[str, Any] = whole
    return checkpoint


def compare(one: Any, other: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the path of every leaf, and whether it is equal bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            yield from compare(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from compare(a, b, f"{path}[{i}]")
    else:
        yield path, torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def options(group: str) -> set[str]:
    """Return the names of a config group's choices."""
    return {path.stem for path in (Path(config_dir()) / group).glob("*.yaml") if is_choice(path.stem)}
